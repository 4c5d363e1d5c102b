"""How each parity case calls Imprint. An entry arranges arrays and calls; what is computed is the library's.

A case holds its inputs and hyper-parameters under the papers' names; an entry returns `out_*` and `grad_*` arrays.
Not offered: `out_mocov3_float32` is `sincos_2d(layout="mocov3")` in float64 here (compared at 1e-5);
I-JEPA's schedules are the run's clock counted from 1 and stretched to T_max.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # so that this file can be loaded by its path from anywhere

from case import Case, Out, arrays, tensor

from imprint.core.progress import Epochs, Progress, Steps
from imprint.core.schedules import Schedule, cosine
from imprint.losses.contrastive import nt_xent, similarity_logits
from imprint.losses.distillation import cross_view_cross_entropy, ema_center
from imprint.losses.reconstruction import masked_patch_mse
from imprint.ops.masking import random_masking, take_tokens
from imprint.ops.neighbours import knn_classify, knn_scores, top_accuracy
from imprint.ops.patchify import normalise_patches, patchify
from imprint.ops.positions import Style, interpolate_positions, sincos_2d
from imprint.ops.ranks import alpha_req, lidar, rankme, singular_values
from imprint.train.config import LR
from imprint.train.lars import LARS, LarsVariant, lars_groups, trust_ratios


def nt_xent_case(case: Case) -> Out:
    """SimCLR's loss; the public code's number is the sum over both directions, and its logits are cosines over tau."""
    z1, z2 = tensor(case["z1"], True), tensor(case["z2"], True)
    temperature = float(case["temperature"])
    loss = nt_xent(z1, z2, temperature)
    loss.backward()
    assert z1.grad is not None and z2.grad is not None
    return arrays(
        {
            "out_loss": loss,
            "out_loss_simclr_code": 2 * loss,
            "out_logits_ab": similarity_logits(z1, z2, temperature),
            "grad_z1": z1.grad,
            "grad_z2": z2.grad,
        }
    )


def dino_case(case: Case) -> Out:
    """DINO's loss at the epoch's teacher temperature, and the centre after it."""
    epochs, crops = int(case["nepochs"]), int(case["ncrops"])
    temperature = _teacher_temp(case)
    clock = Progress(0, epochs, 1)
    schedule = [temperature(clock.at(e)) for e in range(epochs)]
    student, teacher, center = tensor(case["student"], True), tensor(case["teacher"]), tensor(case["center"])
    student_VBK, teacher_WBK = student.unflatten(0, (crops, -1)), teacher.unflatten(0, (2, -1))
    now = temperature(clock.at(int(case["epoch"])))
    loss = cross_view_cross_entropy(student_VBK, teacher_WBK, center, float(case["student_temp"]), now)
    loss.backward()
    assert student.grad is not None
    moved = ema_center(center, teacher_WBK, float(case["center_momentum"]))
    out = arrays({"out_loss": loss, "out_center": moved, "grad_student": student.grad})
    return out | {"out_teacher_temp_schedule": np.array(schedule)}


def _teacher_temp(case: Case) -> Schedule:
    return Schedule(
        start=float(case["teacher_temp"]),
        shape="constant",
        warmup=Epochs(int(case["warmup_teacher_temp_epochs"])),
        warmup_from=float(case["warmup_teacher_temp"]),
        warmup_reaches_start=True,
        per_epoch=True,
    )


def mae_case(case: Case) -> Out:
    """MAE's patches, masking and loss; `out_loss` is against normalised targets."""
    pred = tensor(case["pred"], True)
    patches = patchify(tensor(case["imgs"]), int(case["patch_size"]))
    keep, mask, restore = random_masking(tensor(case["noise"]), float(case["mask_ratio"]))
    loss = masked_patch_mse(pred, normalise_patches(patches), mask)
    loss.backward()
    assert pred.grad is not None
    return arrays(
        {
            "out_loss": loss,
            "out_loss_no_norm": masked_patch_mse(pred, patches, mask),
            "out_patches": patches,
            "grad_pred": pred.grad,
            "out_mask": mask.double(),
            "out_ids_restore": restore,
            "out_tokens_kept": take_tokens(tensor(case["tokens"]), keep),
        }
    )


def sincos_case(case: Case) -> Out:
    """The fixed table with and without a class token, and MoCo v3's order of axes."""
    dim = int(case["embed_dim"])
    sides = np.atleast_1d(case["grid_size"])
    grid = (int(sides[0]), int(sides[-1]))
    return arrays(
        {
            "out_mae_with_cls": sincos_2d(dim, grid, cls=True),
            "out_ijepa": sincos_2d(dim, grid),
            "out_mocov3_float32": sincos_2d(dim, grid, cls=True, layout="mocov3"),
        }
    )


def positions_case(case: Case) -> Out:
    """Learned positions resized by every style; MAE's public code knows square grids only."""
    pos = tensor(case["pos_embed"])
    patch = int(case["patch_size"])
    grid = (int(case["height"]) // patch, int(case["width"]) // patch)
    styles: list[Style] = ["dino", "dinov2_offset", "dinov2_offset_aa", "dinov2_size", "dinov2_size_aa"]
    if grid[0] == grid[1]:
        styles.append("mae")
    return arrays({f"out_{style}": interpolate_positions(pos, grid, style) for style in styles})


def schedules_case(case: Case) -> Out:
    """Every public schedule as a `Schedule` or `LR` evaluated over the run."""
    epochs, per_epoch, batch = int(case["epochs"]), int(case["niter_per_ep"]), int(case["batch_size"])
    run = Progress(0, epochs * per_epoch, per_epoch)
    warmup = Epochs(int(case["warmup_epochs"]))
    base, floor = float(case["lr"]), float(case["min_lr"])
    decay, decay_end = float(case["weight_decay"]), float(case["weight_decay_end"])
    momentum = float(case["momentum_teacher"])
    peak = LR(base=base).peak(batch)
    # I-JEPA's clock ends at T_max, given by the case.
    stretched = Progress(0, int(case["ijepa_T_max"]), per_epoch)
    dinov2 = Schedule(
        start=peak,
        end=floor,
        freeze=Steps(int(case["dinov2_freeze_iters"])),
        warmup=warmup,
        warmup_from=float(case["dinov2_start_warmup_value"]),
        warmup_reaches_start=True,
    )
    barlow = Progress(0, int(case["barlow_epochs"]) * per_epoch, per_epoch)
    barlow_rates = [
        LR(base=float(case[f"barlow_lr_{kind}"]), end=1e-3, warmup=Epochs(10)).schedule(batch)
        for kind in ("weights", "biases")
    ]
    ijepa = Schedule(start=base, end=floor, warmup=warmup, warmup_from=float(case["ijepa_start_lr"]), counted_from=1)
    series = {
        "out_dino_lr": _over(run, LR(base=base, floor=floor, warmup=warmup, warmup_reaches_peak=True).schedule(batch)),
        "out_dino_wd": _over(run, cosine(decay, decay_end)),
        "out_dino_momentum": _over(run, cosine(momentum, 1.0)),
        "out_dino_teacher_temp": _over(Progress(0, epochs, 1), _teacher_temp(case)),
        "out_dinov2_lr": _over(run, dinov2),
        "out_dinov2_past_end": dinov2(run.at(run.total_steps)),
        "out_ijepa_lr": _over(stretched, ijepa, run.total_steps),
        "out_ijepa_wd": _over(stretched, Schedule(start=decay, end=decay_end, counted_from=1), run.total_steps),
        "out_msn_momentum": _over(run, Schedule(start=momentum, end=1.0, shape="linear", stretch=1.25)),
        "out_mae_lr": _over(run, LR(base=base, floor=floor, warmup=warmup).schedule(batch)),
        "out_mocov3_momentum": _over(run, cosine(momentum, 1.0)),
        "out_barlow_lr": np.stack([_over(barlow, rate) for rate in barlow_rates], axis=1),
        "out_byol_tau": _over(run, cosine(momentum, 1.0)),
    }
    return {name: np.asarray(values) for name, values in series.items()}


def _over(run: Progress, schedule: Schedule, steps: int | None = None) -> np.ndarray:
    return np.array([schedule(run.at(step)) for step in range(run.total_steps if steps is None else steps)])


def lars_case(case: Case) -> Out:
    """Two steps of every variant at two learning rates, and the first trust ratios of MoCo v3's rule."""
    names = [key[3:] for key in case if key.startswith("g1_")]
    decay, trust = float(case["weight_decay"]), float(case["trust_coefficient"])
    out: Out = {}
    variants: tuple[LarsVariant, ...] = ("mocov3", "barlow", "simclr", "larc")
    for variant in variants:
        params = {name: tensor(case[name], True) for name in names}
        groups = lars_groups(params.values(), variant, decay)
        optimizer = LARS(groups, momentum=float(case["momentum"]), trust=trust, variant=variant)
        for step, rate in enumerate(case["lr"], start=1):
            for group in optimizer.param_groups:
                group["lr"] = float(rate)
            for name, parameter in params.items():
                parameter.grad = tensor(case[f"g{step}_{name}"])
            optimizer.step()
            for name, parameter in params.items():
                out[f"out_{variant}_{name}_step{step}"] = parameter.detach().numpy().copy()
    weights = [tensor(case[name]) for name in names]
    grads = [tensor(case[f"g1_{name}"]) for name in names]
    ratios = trust_ratios(weights, grads, weight_decay=decay, trust=trust, variant="mocov3")
    return out | {f"out_trust_{name}": ratio.numpy() for name, ratio in zip(names, ratios, strict=True)}


def knn_case(case: Case) -> Out:
    """Votes and classes of DINO's protocol, and DINOv2's votes at two k."""
    queries, bank = tensor(case["test_features"]), tensor(case["train_features"])
    labels, truth = tensor(case["train_labels"]), tensor(case["test_labels"])
    classes, k, temperature = int(case["num_classes"]), int(case["k"]), float(case["temperature"])
    deepest = int(case["dinov2_max_k"])
    ranked = knn_classify(queries, bank, labels, classes, [k], [temperature], top=min(5, k))[k, temperature]

    def softmax_votes(count: int) -> Tensor:
        return knn_scores(queries, bank, labels, classes, count, temperature, weighting="softmax", max_k=deepest)

    return arrays(
        {
            "out_scores": knn_scores(queries, bank, labels, classes, k, temperature),
            "out_pred": ranked[:, 0],
            "out_top1": 100.0 * top_accuracy(ranked, truth),
            "out_top5": 100.0 * top_accuracy(ranked, truth, top=5),
            "out_dinov2_probs_k": softmax_votes(k),
            "out_dinov2_probs_maxk": softmax_votes(deepest),
        }
    )


def rankme_case(case: Case) -> Out:
    """RankMe at the paper's and at one lab's epsilon."""
    features = tensor(case["Z"])
    return arrays(
        {
            "out_rankme": rankme(features, float(case["eps"])),
            "out_rankme_eps1e5": rankme(features, 1e-5),
            "out_singular_values": singular_values(features),
        }
    )


def alpha_req_case(case: Case) -> Out:
    """The power law of the eigenspectrum; the public code's float32 weights move alpha by about 1e-10."""
    law = alpha_req(tensor(case["X"]), int(case["trange_start"]), int(case["trange_stop"]))
    return arrays(
        {
            "out_eigenspectrum": law.eigenspectrum_D,
            "out_alpha": law.alpha,
            "out_alpha_exact64": law.alpha,
            "out_alpha_ols": law.alpha_ols,
            "out_r2": law.r2,
        }
    )


def lidar_case(case: Case) -> Out:
    """LiDAR by the paper's and by the code's formula."""
    features, delta, eps = tensor(case["X"]), float(case["delta"]), float(case["eps"])
    paper = lidar(features, delta, eps)
    return arrays(
        {
            "out_lidar": paper.value,
            "out_lidar_code": lidar(features, delta, eps, variant="code").value,
            "out_eigenvalues": paper.eigenvalues_D,
        }
    )


CASES: dict[str, Callable[[Case], Out]] = {
    "alpha_req": alpha_req_case,
    "dino": dino_case,
    "knn": knn_case,
    "lars": lars_case,
    "lidar": lidar_case,
    "mae": mae_case,
    "nt_xent": nt_xent_case,
    "pos_embed_interp": positions_case,
    "rankme": rankme_case,
    "schedules": schedules_case,
    "sincos_2d": sincos_case,
}

LOSSES: dict[str, tuple[str, ...]] = {"nt_xent": ("z1", "z2"), "dino": ("student", "teacher"), "mae": ("pred",)}
"""Cases whose loss takes network outputs, with the names of these inputs: they arrive in low precision, too."""

for _path in sorted(Path(__file__).parent.glob("adapters_*.py")):  # one file per family, with the same two tables
    _family = importlib.import_module(_path.stem)
    CASES |= _family.CASES
    LOSSES |= _family.LOSSES
