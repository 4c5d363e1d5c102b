"""A frozen encoder as a source of conditions: images -> standardised vectors.

Shape suffixes: B images, C channels, H x W pixels, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder
from imprint.nn.branch import Branch
from imprint.nn.heads import PrototypeHead

CHUNK = 32
"""Images that `learn_scale` encodes at a time."""


def find_projector(module: nn.Module, encoder: Encoder) -> nn.Module | None:
    """Return the head that follows `encoder` on whole images somewhere in `module`, or None.

    It is the head of the `Branch` around the encoder, or the `PrototypeHead` of a network that also has patches. Heads
    of patches (masked methods) are none.
    """
    for part in module.modules():
        head = getattr(part, "head", None)
        if getattr(part, "backbone", None) is not encoder or not isinstance(head, nn.Module):
            continue
        if isinstance(part, Branch) or isinstance(head, PrototypeHead):
            return head
    return None


class Conditioner(nn.Module):
    """Representation of whole images, from the encoder or from the projector behind it; nothing in here learns.

    Vectors are centred and divided by one number, so that their mean squared value is 1 over the training images:
    encoders differ in scale by orders of magnitude. Of a head with prototypes the vector before them is taken.

    Args:
        encoder: any; it is put into evaluation mode for good.
        projector: (B, embed_dim) -> (B, D), or None for the encoder's own vectors.
    """

    centre_D: Tensor
    spread: Tensor

    def __init__(self, encoder: Encoder, projector: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.requires_grad_(False)
        self.eval()
        device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
        if projector is None:
            self.width = encoder.embed_dim
        else:
            with torch.no_grad():
                self.width = self._projected(torch.zeros(2, encoder.embed_dim, device=device)).shape[1]
        self.register_buffer("centre_D", torch.zeros(self.width, device=device))
        self.register_buffer("spread", torch.ones((), device=device))

    def train(self, mode: bool = True) -> Conditioner:
        """Stay in evaluation mode: batch norms keep the statistics they were trained with."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return standardised vectors (B, D), float32, of normalised images."""
        return (self._raw(images_BCHW) - self.centre_D) / self.spread

    @torch.no_grad()
    def learn_scale(self, images_BCHW: Tensor) -> None:
        """Take centre and scale from training images."""
        raw_BD = torch.cat([self._raw(part) for part in images_BCHW.split(CHUNK)])
        self.centre_D.copy_(raw_BD.mean(0))
        self.spread.copy_((raw_BD - self.centre_D).square().mean().sqrt().clamp(min=1e-8))

    def _raw(self, images_BCHW: Tensor) -> Tensor:
        pooled_BD = self.encoder(images_BCHW).pooled_BD
        return (pooled_BD if self.projector is None else self._projected(pooled_BD)).float()

    def _projected(self, pooled_BD: Tensor) -> Tensor:
        if isinstance(self.projector, PrototypeHead):
            return self.projector.unit(pooled_BD)
        assert self.projector is not None
        out: Tensor = self.projector(pooled_BD)
        return out
