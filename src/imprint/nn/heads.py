"""Projection and prototype heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from imprint.nn.prototypes import Prototypes


class ProjectionMLP(nn.Sequential):
    """Linear layers with BatchNorm and ReLU between them: (B, widths[0]) -> (B, widths[-1]).

    Args:
        widths: input width, hidden widths, output width.
        norm: BatchNorm after the hidden layers.
        last_norm: `none`, `affine`, `scale` (gain without shift: SimCLR's code) or `plain` (neither).
        bias: whether hidden layers without a following norm and the last layer carry a bias; a layer that a
            BatchNorm with shift follows never does, its bias would be cancelled.
    """

    def __init__(self, widths: Sequence[int], *, norm: bool = True, last_norm: str = "none", bias: bool = True) -> None:
        layers: list[nn.Module] = []
        last = len(widths) - 2
        for i, (fan_in, fan_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            normed = norm if i < last else last_norm != "none"
            layers.append(nn.Linear(fan_in, fan_out, bias=bias and not normed))
            if i < last:
                if norm:
                    layers.append(nn.BatchNorm1d(fan_out))
                layers.append(nn.ReLU(inplace=True))
            elif last_norm != "none":
                layers.append(final_norm(fan_out, last_norm))
        super().__init__(*layers)


def final_norm(width: int, kind: str) -> nn.BatchNorm1d:
    """Return the BatchNorm that ends a head: `affine`, `scale` (no shift) or `plain` (no parameters)."""
    norm = nn.BatchNorm1d(width, affine=kind != "plain")
    if kind == "scale":
        norm.bias.requires_grad_(False)  # stays at its initial zero: a gain without a shift
    return norm


class PrototypeHead(nn.Module):
    r"""DINO's head: MLP with GELU, L2 normalisation, then K weight-normalised prototypes (arXiv 2104.14294, App. C).

    logits = z / ||z|| . V^T with rows v_k / ||v_k|| (gain g_k fixed at 1, or trained).

    Args:
        width: input width.
        hidden: width of the two hidden layers.
        bottleneck: width before the prototypes.
        prototypes: K.
        train_gain: train g_k (the public recipe for ViT-S); otherwise it is the constant 1.
        norm: BatchNorm after the hidden layers (off in the paper's ViT recipes).
    """

    def __init__(
        self,
        width: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        prototypes: int = 65_536,
        *,
        train_gain: bool = False,
        norm: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for fan_in in (width, hidden):
            layers.append(nn.Linear(fan_in, hidden))
            if norm:
                layers.append(nn.BatchNorm1d(hidden))
            layers.append(nn.GELU())
        layers.append(nn.Linear(hidden, bottleneck))
        self.mlp = nn.Sequential(*layers)
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.prototypes = Prototypes(bottleneck, prototypes, train_gain=train_gain)

    def unit(self, features_BD: Tensor) -> Tensor:
        """Return what the prototypes see: vectors of length 1, (B, bottleneck)."""
        return F.normalize(self.mlp(features_BD), dim=-1)

    def forward(self, features_BD: Tensor) -> Tensor:
        """Return logits (B, K)."""
        logits: Tensor = self.prototypes(self.unit(features_BD))
        return logits
