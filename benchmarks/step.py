"""A whole training step, images per second: Imprint against the same step written with lightly, in one run.

Networks, batch, optimizer and settings are equal; images are ready on the device, so only the step is timed. Imprint is
timed twice: in float32, and with the precision and layout that it chooses by itself on this machine.

    python benchmarks/step.py [--only simclr dino mae dinov2] [--steps 8] [--quick]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich import print
from rich.table import Table
from torch import nn

import imprint.backbones.torchvision_compat  # noqa: F401  (before lightly imports torchvision)
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.data.masks import Place, draw_masks
from imprint.dist.world import current
from imprint.methods.catalog import method_class
from imprint.recipes.book import recipe
from imprint.train.build import build_method
from imprint.train.config import EncoderConfig, RunConfig
from imprint.train.optim import build_optimizer
from imprint.train.precision import choose_precision, to_channels_last
from imprint.train.step import Stepper
from measure import write_results

Step = Callable[[], Any]


def configs(quick: bool) -> dict[str, RunConfig]:
    """Return the workloads: the small-scale recipes at 32 pixels, with the networks the claim names."""
    simclr = recipe("simclr/small", image_size=32)
    dino = recipe("dino/small", image_size=32)
    mae = recipe("mae/small", image_size=32)
    dinov2 = recipe("dinov2/small", image_size=32)
    size = 32 if quick else 64
    return {
        "simclr resnet18 2x32": replace(simclr, batch_size=size),
        "dino vit-tiny/4 2x32+4x16": replace(dino, batch_size=size),
        "mae vit-tiny/4 32": replace(mae, batch_size=2 * size),
        "dinov2 vit-tiny/4 2x32+4x16": replace(
            dinov2,
            batch_size=size,
            encoder=EncoderConfig(name="vit_tiny_patch16_224", image_size=32, patch_size=4),
            method=replace(
                dinov2.method,
                local_crops=4,
                local_size=16,
                centring="mean",
                patch_prototypes=dinov2.method.prototypes,
                bottleneck=dinov2.method.patch_bottleneck,
            ),
        ),
    }


def images_of(config: RunConfig) -> Batch:
    """Return random images and masks of the shapes the method asks for."""
    torch.manual_seed(0)
    size, patch = config.encoder.image_size, config.encoder.patch_size or 4
    cls = method_class(config.name)
    views = {
        v.name: torch.randint(0, 256, (v.count, config.batch_size, 3, v.crop.size, v.crop.size), dtype=torch.uint8)
        for v in cls.views(config.method, size)
    }
    index = np.arange(config.batch_size)
    place = Place(seed=0, epoch=0, step=0, index_B=index, first=0, total=config.batch_size)
    masks = {
        name: torch.from_numpy(mask)
        for kind in cls.masks(config.method, size, patch)
        for name, mask in draw_masks(kind, place).items()
    }
    return Batch(views=views, masks=masks, index_B=torch.from_numpy(index))


def ours(config: RunConfig, precision: str, batch: Batch) -> Step:
    """Return Imprint's step."""
    torch.manual_seed(0)
    method = build_method(config, 3)
    encoder = method.encoder
    formats = choose_precision(precision, torch.device("cpu"), None, not encoder.has_tokens)
    if formats.channels_last:
        to_channels_last(method)
    optimizer = build_optimizer(method.param_groups(), config.optim, torch.device("cpu"))
    stepper = Stepper(config, method, optimizer, current(), formats)
    clock = Progress(0, 1000, 100)
    return lambda: stepper(batch, clock)


def lightly_simclr(config: RunConfig, batch: Batch) -> Step:
    """Return SimCLR's step with lightly's head and loss."""
    import timm
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import SimCLRProjectionHead

    torch.manual_seed(0)
    backbone = timm.create_model("resnet18", num_classes=0)
    backbone.conv1, backbone.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    head = SimCLRProjectionHead(512, 512, 128)
    criterion = NTXentLoss(config.method.temperature)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=1e-3, weight_decay=1e-4)
    x0, x1 = normalised(batch.views["global"])

    def step() -> None:
        loss = criterion(head(backbone(x0)), head(backbone(x1)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def lightly_dino(config: RunConfig, batch: Batch) -> Step:
    """Return DINO's step with lightly's head, loss and momentum update."""
    import copy

    import timm
    from lightly.loss import DINOLoss
    from lightly.models.modules.heads import DINOProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    torch.manual_seed(0)
    cfg, e = config.method, config.encoder
    backbone = timm.create_model(
        e.name, num_classes=0, img_size=e.image_size, patch_size=e.patch_size, dynamic_img_size=True
    )
    head = DINOProjectionHead(backbone.num_features, cfg.hidden, cfg.bottleneck, cfg.prototypes, freeze_last_layer=1)
    teacher, teacher_head = (
        copy.deepcopy(backbone),
        DINOProjectionHead(backbone.num_features, cfg.hidden, cfg.bottleneck, cfg.prototypes),
    )
    deactivate_requires_grad(teacher)
    deactivate_requires_grad(teacher_head)
    criterion = DINOLoss(cfg.prototypes, warmup_teacher_temp_epochs=5)
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.04)
    large, small = list(normalised(batch.views["global"])), list(normalised(batch.views["local"]))

    def step() -> None:
        update_momentum(backbone, teacher, m=0.99)
        update_momentum(head, teacher_head, m=0.99)
        with torch.no_grad():
            targets = [teacher_head(teacher(x)) for x in large]
        outputs = [head(backbone(x)) for x in [*large, *small]]
        loss = criterion(targets, outputs, epoch=0)
        loss.backward()
        head.cancel_last_layer_gradients(current_epoch=0)
        torch.nn.utils.clip_grad_norm_(parameters, 3.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def lightly_mae(config: RunConfig, batch: Batch) -> Step:
    """Return MAE's step with lightly's masked ViT and decoder."""
    import timm
    from lightly.models import utils
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM

    torch.manual_seed(0)
    cfg, e = config.method, config.encoder
    vit = timm.create_model(e.name, num_classes=0, img_size=e.image_size, patch_size=e.patch_size)
    backbone = MaskedVisionTransformerTIMM(vit=vit)
    decoder = MAEDecoderTIMM(
        num_patches=vit.patch_embed.num_patches, patch_size=e.patch_size, embed_dim=vit.embed_dim,
        decoder_embed_dim=cfg.decoder_width, decoder_depth=cfg.decoder_depth, decoder_num_heads=cfg.decoder_heads,
    )  # fmt: skip
    criterion = nn.MSELoss()
    parameters = [*backbone.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(
        [p for p in parameters if p.requires_grad], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05
    )
    images = normalised(batch.views["global"])[0]
    length = backbone.sequence_length

    def step() -> None:
        keep, masked = utils.random_token_mask((len(images), length), mask_ratio=cfg.mask_ratio)
        encoded = decoder.embed(backbone.encode(images, idx_keep=keep))
        tokens = utils.repeat_token(decoder.mask_token, (len(images), length))
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        pred = decoder.predict(utils.get_at_index(decoder.decode(tokens), masked))
        target = utils.get_at_index(utils.patchify(images, e.patch_size), masked - 1)
        criterion(pred, utils.normalize_mean_var(target, dim=-1)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def lightly_dinov2(config: RunConfig, batch: Batch) -> Step:
    """Return DINOv2's step with lightly's masked ViT, heads and three losses, as its own example does."""
    import copy

    import timm
    from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
    from lightly.models.modules import MaskedVisionTransformerTIMM
    from lightly.models.modules.heads import DINOProjectionHead
    from lightly.models.utils import update_momentum

    torch.manual_seed(0)
    cfg, e = config.method, config.encoder
    vit = timm.create_model(
        e.name, num_classes=0, img_size=e.image_size, patch_size=e.patch_size, dynamic_img_size=True
    )

    def network() -> nn.ModuleDict:
        heads = [DINOProjectionHead(vit.num_features, cfg.hidden, cfg.bottleneck, cfg.prototypes) for _ in range(2)]
        return nn.ModuleDict(
            {"vit": MaskedVisionTransformerTIMM(vit=copy.deepcopy(vit)), "cls": heads[0], "patch": heads[1]}
        )

    student, teacher = network(), network().requires_grad_(False)
    dino, ibot, koleo = DINOLoss(cfg.prototypes), IBOTPatchLoss(cfg.prototypes), KoLeoLoss()
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.04)
    large, small = normalised(batch.views["global"]).flatten(0, 1), normalised(batch.views["local"]).flatten(0, 1)
    (patches,) = (m.flatten(0, 1) for name, m in batch.masks.items())  # (2 B, N)
    rows = batch.views["global"].shape[1]
    grid = e.image_size // e.patch_size
    mask = torch.cat([torch.zeros(len(patches), 1, dtype=torch.bool), patches], 1)  # the class token is seen

    def step() -> None:
        update_momentum(student, teacher, m=0.99)
        with torch.no_grad():
            seen = teacher["vit"].encode(large)
            targets = teacher["cls"](seen[:, 0]).split(rows)
            patch_targets = teacher["patch"](seen[:, 1:][patches])
        global_tokens = student["vit"].encode(large, mask=mask)
        outputs = student["cls"](global_tokens[:, 0]).split(rows)
        locals_ = student["cls"](student["vit"].encode(small)[:, 0]).split(rows)
        loss = dino(list(targets), [*outputs, *locals_], epoch=0)
        loss = loss + ibot(patch_targets, student["patch"](global_tokens[:, 1:][patches]), patches.view(-1, grid, grid))
        loss = loss + 0.1 * sum(koleo(part) for part in global_tokens[:, 0].split(rows))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 3.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def normalised(views: torch.Tensor) -> torch.Tensor:
    """Return floats as the rival's loader would have made them."""
    from imprint.data.batch import Normalise

    return Normalise()(views)


def images_per_second(contenders: dict[str, Step], batch_size: int, steps: int) -> dict[str, float]:
    """Time the contenders in turns, so that a change of the machine's mood hits all alike; the best step counts."""
    for step in contenders.values():
        step()
        step()
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(steps):
        for name, step in contenders.items():
            start = time.perf_counter()
            step()
            best[name] = min(best[name], time.perf_counter() - start)
    return {name: batch_size / seconds for name, seconds in best.items()}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["simclr", "dino", "mae", "dinov2"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="half the batch, two steps: checks that it runs")
    args = parser.parse_args()
    rivals = {"simclr": lightly_simclr, "dino": lightly_dino, "mae": lightly_mae, "dinov2": lightly_dinov2}
    rows = []
    for title, config in configs(args.quick).items():
        if config.name not in args.only:
            continue
        batch = images_of(config)
        speeds = images_per_second(
            {
                "lightly": rivals[config.name](config, batch),
                "imprint fp32": ours(config, "fp32", batch),
                "imprint auto": ours(config, "auto", batch),
            },
            config.batch_size,
            2 if args.quick else args.steps,
        )
        base = speeds["lightly"]
        rows.append(
            {"step": title, "batch": config.batch_size}
            | {f"{name}, images/s": round(value, 1) for name, value in speeds.items()}
            | {
                "fp32 / lightly": round(speeds["imprint fp32"] / base, 2),
                "auto / lightly": round(speeds["imprint auto"] / base, 2),
            }
        )
    table = Table(*rows[0], title="One training step on ready images")
    for row in rows:
        table.add_row(*map(str, row.values()))
    print(table)
    if not args.quick and len(rows) == len(configs(False)):
        print(write_results("step", {row["step"]: row for row in rows}, command="python benchmarks/step.py"))


if __name__ == "__main__":
    main()
