"""What DINOv2 and Gram anchoring share: class tokens matched across crops, masked patches within a crop, and KoLeo.

Shape suffixes: V crops of the student, W large crops (the teacher's), B images, R = W B large crops in the order
(w, b), N patches of a large crop, M patches of all R that are matched, D width, K prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from imprint.backbones.convert import load_state
from imprint.backbones.encoder import Encoder, Features
from imprint.core.errors import ConfigError
from imprint.data.batch import Batch
from imprint.dist.collectives import all_reduce_max, all_reduce_sum, gather_with_grad
from imprint.losses.distillation import centred_softmax, cross_entropy_to, entropy
from imprint.losses.koleo import koleo
from imprint.losses.patches import masked_mean_weights
from imprint.losses.streamed import (
    StreamedTargets,
    streamed_cross_entropy,
    streamed_cross_view,
    streamed_targets,
)
from imprint.losses.streamed_sinkhorn import sinkhorn_centre
from imprint.nn.center import RunningMean
from imprint.nn.ema import ema_update_, frozen_copy
from imprint.nn.heads import PrototypeHead
from imprint.ops.sinkhorn import sinkhorn
from imprint.ops.spread import agreement

Centring = Literal["sinkhorn", "mean"]
_MONITORED = slice(0, 16)  # enough rows of a shuffled batch for a monitor
_MANY = 2**25
"""Logits of a batch from which on they are not held all at once."""
_HELD = 2**30
"""Largest number of patches of a process's large crops times prototypes up to which the teacher's balanced codes of the
chosen ones (a seventh of them, say: 600 MB) are held; the same on every process, so that all take the same way."""


class Parts(Protocol):
    """A network in its three parts; a method is one itself, so that each part is clipped by its own norm."""

    backbone: Encoder
    image_head: PrototypeHead
    patch_head: PrototypeHead | None
    """None where class tokens and patches share `image_head`."""


class Network(nn.Module):
    """The three parts as one module."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.backbone = parts.backbone
        self.image_head = parts.image_head
        self.patch_head = parts.patch_head


def average_of(student: Parts) -> Network:
    """Return a frozen copy of a network, to follow it by `follow_`."""
    return frozen_copy(Network(student))


def follow_(average: Network, student: Parts, momentum: float) -> None:
    """Move an average: theta_a <- m theta_a + (1 - m) theta_s."""
    ema_update_(average, Network(student), momentum)


class Centres(nn.Module):
    """Running means of the teacher's logits, one for class tokens and one for patches (`centring="mean"`)."""

    def __init__(self, image_prototypes: int, patch_prototypes: int, momentum: float) -> None:
        super().__init__()
        self.image = RunningMean(image_prototypes, momentum)
        self.patch = RunningMean(patch_prototypes, momentum)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Settings of the loss; see `DINOv2Config` for each."""

    student_temp: float
    centring: Centring
    iterations: int
    patch_weight: float
    koleo_weight: float
    koleo_across: bool


@dataclass(frozen=True)
class Matched:
    """What one step gives.

    Attributes:
        loss: 0-d.
        metrics: detached 0-d values by bare name.
        student: the student's features of the large crops, R rows.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    student: Features


def match(
    student: Parts,
    teacher: Parts,
    centres: Centres | None,
    batch: Batch,
    objective: Objective,
    *,
    teacher_temp: float,
    hide: bool,
    patches: Literal["masked", "all", "none"],
) -> Matched:
    r"""Return L_image + w_patch L_patch + w_koleo sum over large crops of KoLeo (DINOv2, arXiv 2304.07193, Sec. 4).

    L_image is the mean over images and pairs of different crops (v, w) of H(P_t(w), P_s(v)); L_patch the mean over
    large crops of the mean over their chosen patches of H(P_t(patch), P_s(patch)), teacher and student in the same
    crop. All crops of the student go through its backbone in one packed pass, and only chosen patches through a patch
    head.

    Args:
        student: the network that learns.
        teacher: takes no gradient, sees the large crops whole.
        centres: moved after use, so a batch is centred by the past (the public code's lazy update); None for Sinkhorn.
        batch: views `global` (W = 2) and perhaps `local`; masks and places `global` unless `patches` says otherwise.
        objective: settings.
        teacher_temp: tau_t.
        hide: put the mask token where the masks are.
        patches: which ones are matched: the masked ones, all of both large crops (distillation), or none.
    """
    large_WBCHW = batch.views["global"]
    small_VBCHW = batch.views.get("local")
    count, images = large_WBCHW.shape[:2]
    large_RCHW = large_WBCHW.flatten(0, 1)
    mask_RN = batch.masks["global"].flatten(0, 1) if hide or patches == "masked" else None
    with torch.no_grad():
        seen = teacher.backbone(large_RCHW)
        taught_RD = teacher.image_head.unit(class_token(seen))
    crops = [large_RCHW] if small_VBCHW is None else [large_RCHW, small_VBCHW.flatten(0, 1)]
    masks = [mask_RN if hide else None, None][: len(crops)]
    features = student.backbone.encode_many(crops, masks)
    tokens = torch.cat([class_token(f) for f in features]) if len(features) > 1 else class_token(features[0])
    z_VBD = student.image_head.unit(tokens).unflatten(0, (-1, images))
    loss, spread = _image_loss(
        z_VBD, taught_RD.unflatten(0, (count, images)), student, teacher, centres, objective, teacher_temp
    )
    metrics = {"teacher_entropy": spread, "image_loss": loss.detach()}

    if patches != "none":
        places_M, weight_M = _chosen(batch, mask_RN, patches, seen)
        student_head = student.image_head if student.patch_head is None else student.patch_head
        teacher_head = teacher.image_head if teacher.patch_head is None else teacher.patch_head
        z_MD = student_head.unit(features[0].patches_BND.flatten(0, 1).index_select(0, places_M))
        with torch.no_grad():
            taught_MD = teacher_head.unit(seen.patches_BND.flatten(0, 1).index_select(0, places_M))
            every = seen.patches_BND.shape[0] * seen.patches_BND.shape[1]
            targets = _patch_targets(taught_MD, teacher_head, centres, teacher_temp, objective.iterations, every)
        patch_loss = streamed_cross_entropy(
            z_MD, student_head.prototypes.normalised(), targets, weight_M, objective.student_temp
        )
        if centres is not None:
            _move_by_vectors(centres.patch, taught_MD, teacher_head.prototypes.normalised())
        metrics["patch_loss"] = patch_loss.detach()
        loss = loss + objective.patch_weight * patch_loss

    class_WBD = class_token(features[0]).unflatten(0, (count, images))
    if objective.koleo_weight:
        spread = _spread(class_WBD, objective.koleo_across)
        metrics["koleo"] = spread.detach() / count
        loss = loss + objective.koleo_weight * spread
    return Matched(loss, metrics | agreement(class_WBD[0].detach(), class_WBD[1].detach()), features[0])


def _image_loss(
    z_VBD: Tensor,
    taught_WBD: Tensor,
    student: Parts,
    teacher: Parts,
    centres: Centres | None,
    objective: Objective,
    teacher_temp: float,
) -> tuple[Tensor, Tensor]:
    """Return the loss between crops' vectors before the prototypes, and the entropy of a few targets.

    Many logits are made for some images at a time: memory then does not grow with crops times prototypes.
    """
    own, other = student.image_head.prototypes, teacher.image_head.prototypes
    taught_RD = taught_WBD.flatten(0, 1)
    if z_VBD.shape[:2].numel() * own.direction.shape[0] > _MANY:
        weight_KD, other_KD = own.normalised(), other.normalised().detach()
        if centres is None:
            center_K = sinkhorn_centre(
                taught_RD,
                other_KD,
                teacher_temp,
                objective.iterations,
                reduce=all_reduce_sum,
                reduce_max=all_reduce_max,
            )
        else:
            center_K = centres.image.value.clone()  # this batch is centred by the past
            _move_by_vectors(centres.image, taught_RD, other_KD)
        loss = streamed_cross_view(
            z_VBD, weight_KD, taught_WBD, other_KD, center_K, objective.student_temp, teacher_temp
        )
        with torch.no_grad():
            few_RK = centred_softmax(other(taught_WBD[:, :4].flatten(0, 1)), center_K, teacher_temp)
        return loss, entropy(few_RK).mean()
    with torch.no_grad():
        taught_RK = other(taught_RD)
    if centres is None:
        targets_RK = _balanced(taught_RK, teacher_temp, objective.iterations)
    else:
        targets_RK = centred_softmax(taught_RK, centres.image.value, teacher_temp)
        _move(centres.image, taught_RK)
    targets_WBK = targets_RK.unflatten(0, taught_WBD.shape[:2])
    spread = entropy(targets_WBK[:, _MONITORED]).mean()
    # The loss asks for every row of targets once and may write over it.
    loss = cross_entropy_to(
        lambda rows: targets_WBK[:, rows], len(taught_WBD), (own(z_VBD),), objective.student_temp, overwrite=True
    )
    return loss, spread


def class_token(features: Features) -> Tensor:
    """Return the class token, or the pooled vector of a network without one."""
    return features.pooled_BD if features.cls_BD is None else features.cls_BD


def _balanced(logits_MK: Tensor, temperature: float, iterations: int) -> Tensor:
    return sinkhorn(
        logits_MK, temperature, iterations, reduce=all_reduce_sum, reduce_max=all_reduce_max, overwrite=True
    )


def _chosen(batch: Batch, mask_RN: Tensor | None, patches: str, seen: Features) -> tuple[Tensor, Tensor]:
    """Return the flat places of the patches that are matched, and their weights."""
    if patches == "masked":
        assert mask_RN is not None
        places_M = batch.places["global"]
        return places_M, masked_mean_weights(mask_RN, places_M)
    total = seen.patches_BND.shape[0] * seen.patches_BND.shape[1]
    places_M = torch.arange(total, device=seen.patches_BND.device)
    return places_M, torch.full((total,), 1.0 / total, device=places_M.device)


def _patch_targets(
    taught_MD: Tensor, head: PrototypeHead, centres: Centres | None, temperature: float, iterations: int, every: int
) -> StreamedTargets:
    weight_KD = head.prototypes.normalised()
    if centres is not None:
        return streamed_targets(taught_MD, weight_KD, centres.patch.value, temperature)
    if every * weight_KD.shape[0] > _HELD:
        center_K = sinkhorn_centre(
            taught_MD, weight_KD, temperature, iterations, reduce=all_reduce_sum, reduce_max=all_reduce_max
        )
        return streamed_targets(taught_MD, weight_KD, center_K, temperature)
    codes_MK = _balanced(head.prototypes(taught_MD), temperature, iterations)
    return lambda rows: codes_MK[rows]


@torch.no_grad()
def _move(center: RunningMean, rows_MK: Tensor) -> None:
    """Move a centre by the mean over the rows of all processes, which may have different numbers of them."""
    dtype = center.value.dtype
    _move_by(center, rows_MK.sum(dim=0, dtype=dtype), rows_MK.shape[0])


@torch.no_grad()
def _move_by_vectors(center: RunningMean, z_MD: Tensor, weight_KD: Tensor) -> None:
    """The same for logits z W^T that are not at hand: their sum is that of the vectors, times W^T."""
    dtype = center.value.dtype
    with torch.autocast(z_MD.device.type, enabled=False):
        _move_by(center, weight_KD.to(dtype) @ z_MD.sum(dim=0, dtype=dtype), z_MD.shape[0])


def _move_by(center: RunningMean, sum_K: Tensor, rows: int) -> None:
    both = all_reduce_sum(torch.cat([sum_K, sum_K.new_full((1,), rows)]))
    mean_K = both[:-1] / both[-1].clamp_min(1)
    center.update_(torch.where(both[-1] > 0, mean_K, center.value)[None], lambda mean: mean)


def _spread(class_WBD: Tensor, across: bool) -> Tensor:
    """Return the sum over large crops of KoLeo: neighbours are looked for in the same crop of other images."""
    if not across:
        return torch.stack([koleo(x_BD) for x_BD in class_WBD]).sum()
    gathered, offset = gather_with_grad(class_WBD.transpose(0, 1).contiguous())
    terms = [koleo(x, x_all=all_AD, offset=offset) for x, all_AD in zip(class_WBD, gathered.unbind(1), strict=True)]
    return torch.stack(terms).sum()


def make_heads(
    width: int, hidden: int, image: tuple[int, int], patch: tuple[int, int] | None
) -> tuple[PrototypeHead, PrototypeHead | None]:
    """Return the heads of class tokens and patches; each is given as (bottleneck, prototypes), no patch head as None.

    The gain of the prototypes is trained, as in the public code of DINOv2.
    """
    image_head = PrototypeHead(width, hidden, *image, train_gain=True)
    return image_head, None if patch is None else PrototypeHead(width, hidden, *patch, train_gain=True)


def drop_prototype_gradients(parts: Parts) -> None:
    """Forget the gradients of the last layers, so that the optimizer skips them, weight decay included."""
    for head in (parts.image_head, parts.patch_head):
        if head is not None:
            for parameter in head.prototypes.parameters():
                parameter.grad = None


def take_over(own: Parts, average: Network, centres: Centres | None, previous: nn.Module) -> None:
    """Go on from a finished run of the same family: its student, its average, and its centres.

    Positions are interpolated where this run is built for another image size.

    Raises:
        ConfigError: when the run has no such parts, or heads of other shapes.
        CheckpointError: when its backbone has another shape.
    """
    before, old = average_in(previous), cast(Parts, previous)
    for mine, theirs in ((own, old), (average, before)):
        fit_backbone(mine.backbone, theirs.backbone)
        for name in ("image_head", "patch_head"):
            head, given = getattr(mine, name), getattr(theirs, name)
            if (head is None) != (given is None):
                raise ConfigError(
                    "one of this run and the run it starts from shares a head between class token and "
                    "patches; give both the same shared_head."
                )
            if head is not None:
                try:
                    head.load_state_dict(given.state_dict())
                except RuntimeError as error:
                    raise ConfigError(f"the run to start from has another {name}: {error}") from error
    was = getattr(previous, "centres", None)
    if centres is not None and was is not None:
        centres.load_state_dict(was.state_dict())


def average_in(previous: nn.Module) -> Network:
    """Return the average of a finished run's method.

    Raises:
        ConfigError: when it keeps none of this kind.
    """
    found = getattr(previous, "average", None)
    if not isinstance(found, Network):
        raise ConfigError(
            f"a {type(previous).__name__} keeps no average of backbone and heads to start from; "
            "start from a run of dinov2 or gram."
        )
    return found


def fit_backbone(own: Encoder, previous: Encoder) -> None:
    """Put the weights of a backbone into another one of its kind, perhaps built for another image size."""
    state = {name.removeprefix("model."): value for name, value in previous.state_dict().items()}
    load_state(cast(Any, own), state, source="the run to start from")
    tokens = [getattr(encoder, "mask_token", None) for encoder in (own, previous)]
    if isinstance(tokens[0], Tensor) and isinstance(tokens[1], Tensor):
        with torch.no_grad():
            tokens[0].copy_(tokens[1])
