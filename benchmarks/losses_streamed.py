"""Cross entropy with its prototype layer, from the vectors before it; and SIGReg."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from measure import rival_module

SIZES: dict[str, tuple[str, ...]] = {
    "dino_head": ("64x10x65536",),
    "ibot_head": ("3840x8192", "3840x65536"),
    "sigreg": ("8x128x128x1024", "8x512x128x1024"),
}
QUICK: dict[str, tuple[str, ...]] = {
    "dino_head": ("8x10x65536",),
    "ibot_head": ("480x8192",),
    "sigreg": ("4x64x64x256",),
}
RIVALS: dict[str, tuple[str, ...]] = {
    "dino_head": ("imprint", "imprint materialised", "lightly"),
    "ibot_head": ("imprint", "imprint materialised", "lightly"),
    "sigreg": ("imprint", "stable-pretraining", "definition"),
}
_WIDTH = 256


def dino_head_call(rival: str, size: str) -> Callable[[], object]:
    """Images x crops x prototypes from vectors of width 256: both prototype layers, DINO's loss, all gradients."""
    batch, crops, count = (int(n) for n in size.split("x"))
    generator = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(crops, batch, _WIDTH, generator=generator), dim=-1).requires_grad_()
    teacher_z = F.normalize(torch.randn(2, batch, _WIDTH, generator=generator), dim=-1)

    if rival.startswith("imprint"):
        from imprint.losses.distillation import cross_view_cross_entropy
        from imprint.losses.streamed import mean_logits, streamed_cross_view

        layer, teacher_layer = _prototypes(count)
        center = torch.zeros(count)

        def call() -> None:
            _forget(z, layer)
            if rival == "imprint":
                weight, other = layer.normalised(), teacher_layer.normalised()
                streamed_cross_view(z, weight, teacher_z, other, center, 0.1, 0.04).backward()
                center.lerp_(mean_logits(teacher_z, other)[0], 0.1)
                return
            with torch.no_grad():
                teacher = teacher_layer(teacher_z)
            cross_view_cross_entropy(layer(z), teacher, center, 0.1, 0.04, overwrite=True).backward()
            center.lerp_(teacher.mean(dim=(0, 1)), 0.1)

        return call

    loss = rival_module("lightly.loss").DINOLoss(output_dim=count, teacher_temp=0.04, student_temp=0.1)
    layer, teacher_layer = _lightly_prototypes(count)

    def rival_call() -> None:
        _forget(z, layer)
        with torch.no_grad():
            teacher = [teacher_layer(view) for view in teacher_z]
        loss(teacher, [layer(view) for view in z]).backward()

    return rival_call


def ibot_head_call(rival: str, size: str) -> Callable[[], object]:
    """Masked patches (60 of each image) x prototypes from vectors of width 256: both layers, loss, all gradients."""
    rows, count = (int(n) for n in size.split("x"))
    generator = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(rows, _WIDTH, generator=generator), dim=-1).requires_grad_()
    teacher_z = F.normalize(torch.randn(rows, _WIDTH, generator=generator), dim=-1)
    mask = torch.zeros(rows // 60, 196, dtype=torch.bool)
    mask[:, :60] = True

    if rival.startswith("imprint"):
        from imprint.losses.patches import centred_targets, masked_mean_weights, patch_cross_entropy
        from imprint.losses.streamed import mean_logits, streamed_cross_entropy, streamed_targets

        layer, teacher_layer = _prototypes(count)
        center = torch.zeros(count)
        weights = masked_mean_weights(mask, mask.flatten().nonzero().squeeze(1))

        def call() -> None:
            _forget(z, layer)
            if rival == "imprint":
                weight, other = layer.normalised(), teacher_layer.normalised()
                targets = streamed_targets(teacher_z, other, center, 0.07)
                streamed_cross_entropy(z, weight, targets, weights, 0.1).backward()
                center.lerp_(mean_logits(teacher_z, other)[0], 0.1)
                return
            with torch.no_grad():
                teacher = teacher_layer(teacher_z)
            made = centred_targets(teacher, center, 0.07)
            patch_cross_entropy(layer(z), made, weights, 0.1, overwrite=True).backward()
            center.lerp_(teacher.mean(dim=0), 0.1)

        return call

    loss = rival_module("lightly.loss").IBOTPatchLoss(output_dim=count, teacher_temp=0.07, student_temp=0.1)
    layer, teacher_layer = _lightly_prototypes(count)

    def rival_call() -> None:
        _forget(z, layer)
        with torch.no_grad():
            teacher = teacher_layer(teacher_z)
        loss(teacher, layer(z), mask.view(-1, 14, 14)).backward()

    return rival_call


def sigreg_call(rival: str, size: str) -> Callable[[], object]:
    """Views x images x width x directions: value and gradient, 17 points."""
    views, batch, width, slices = (int(n) for n in size.split("x"))
    z = torch.randn(views, batch, width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    step = 0

    if rival == "imprint":
        from imprint.losses.sigreg import random_directions, sigreg

        def value() -> Tensor:
            return sigreg(z, random_directions(width, slices, step, z.device))
    elif rival == "stable-pretraining":
        module = rival_module("stable_pretraining.methods.lejepa").SlicedEppsPulley(num_slices=slices)

        def value() -> Tensor:
            return sum(module(view) for view in z) / views
    else:
        t = torch.linspace(0, 3, 17)
        normal = torch.exp(-t.square() / 2)
        weights = normal * torch.tensor([3 / 16] + [6 / 16] * 15 + [3 / 16])

        def value() -> Tensor:
            a = F.normalize(torch.randn(width, slices), dim=0)
            angle = (z @ a).unsqueeze(-1) * t
            off = (angle.cos().mean(-3) - normal).square() + angle.sin().mean(-3).square()
            return (off @ weights).mean() * batch

    def call() -> None:
        nonlocal step
        step += 1
        z.grad = None
        value().backward()

    return call


def _prototypes(count: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    from imprint.nn.ema import frozen_copy
    from imprint.nn.prototypes import Prototypes

    layer = Prototypes(_WIDTH, count)
    return layer, frozen_copy(layer)


def _lightly_prototypes(count: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return the last layer of lightly's DINO head, and a teacher's."""
    heads = rival_module("lightly.models.modules.heads")
    layers = [heads.DINOProjectionHead(8, 8, _WIDTH, count).last_layer for _ in range(2)]
    return layers[0], layers[1].requires_grad_(False)


def _forget(z: Tensor, layer: torch.nn.Module) -> None:
    z.grad = None
    for parameter in layer.parameters():
        parameter.grad = None


CALLS: dict[str, Callable[[str, str], Callable[[], object]]] = {
    "dino_head": dino_head_call,
    "ibot_head": ibot_head_call,
    "sigreg": sigreg_call,
}
