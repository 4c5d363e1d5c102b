"""RotNet: unsupervised representation learning by predicting image rotations.

Gidaris, Singh, Komodakis 2018, arXiv 1803.07728. Every image is shown in four rotations and the network says which one
it sees; to know that, it must know what is in the picture and how such things stand.

Shapes: B images, R rotations (4), D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.data.view_recipes import probe_views
from imprint.data.views import View
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.ops.marks import framed
from imprint.ops.rotations import quarter_turns, turn_each


@dataclass(frozen=True, kw_only=True)
class RotationConfig(MethodConfig):
    """RotNet's choices.

    Attributes:
        angles: the rotations in degrees, multiples of 90, which need no interpolation (Sec. 2.2; Table 2: four are
            better than two, and than eight).
        crop_scale: bounds of the crop's area share (public code: RandomSizedCrop and a flip).
    """

    angles: tuple[int, ...] = (0, 90, 180, 270)
    crop_scale: tuple[float, float] = (0.08, 1.0)

    @property
    def quarters(self) -> tuple[int, ...]:
        """The rotations in quarters of a turn, counterclockwise."""
        return tuple(angle // 90 for angle in self.angles)


class Rotation(Method):
    """Encoder, a linear layer to R classes, cross-entropy over all rotations of all images (Eqs. 2 and 3).

    All rotations of an image are in the same batch (Sec. 2.2: it learned better than with one of them), so a batch of
    B images is R * B inputs.
    """

    Config: ClassVar[type[MethodConfig]] = RotationConfig

    def __init__(self, cfg: RotationConfig, encoder: Encoder) -> None:
        super().__init__()
        quarters = cfg.quarters
        if any(angle % 90 for angle in cfg.angles) or len({q % 4 for q in quarters}) < max(2, len(quarters)):
            raise ConfigError(
                f"rotation: angles {cfg.angles} must be two to four different multiples of 90 degrees; others would "
                "be told by their interpolation. Set --method.angles, for example to 0 90 180 270."
            )
        self.cfg = cfg
        self.backbone = encoder
        self.classifier = nn.Linear(encoder.embed_dim, len(quarters))

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """One random resized crop with a flip; the rotations are made on the device."""
        assert isinstance(cfg, RotationConfig)
        return probe_views(image_size, scale=cfg.crop_scale)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Show every image in every rotation and name them."""
        logits_RBR = self.predict(batch.views["global"][0])
        truth_RB = self._truth(logits_RBR)
        loss = F.cross_entropy(logits_RBR.flatten(0, 1).float(), truth_RB.flatten())
        right = (logits_RBR.detach().argmax(-1) == truth_RB).float()
        return StepOutput(loss, {"rotation/accuracy": right.mean()})

    def predict(self, images: Tensor) -> Tensor:
        """Return logits (R, B, R): first all images by the first rotation."""
        turned = quarter_turns(images, self.cfg.quarters)
        logits: Tensor = self.classifier(self.backbone(turned).pooled_BD)
        return logits.unflatten(0, (len(self.cfg.angles), -1))

    def _truth(self, logits_RBR: Tensor) -> Tensor:
        rotations, images, _ = logits_RBR.shape
        return torch.arange(rotations, device=logits_RBR.device)[:, None].expand(rotations, images)

    def chance(self) -> float:
        """Share of right answers of one who guesses."""
        return 1 / len(self.cfg.angles)

    @torch.no_grad()
    def solved(self, batch: Batch, t: Progress) -> Tensor:
        """Return the share of its rotations that are named rightly, for each image (B,)."""
        logits_RBR = self.predict(batch.views["global"][0])
        return (logits_RBR.argmax(-1) == self._truth(logits_RBR)).float().mean(0)

    @property
    def encoder(self) -> Encoder:
        """The encoder; the paper reads its middle layers (Table 1), which know more of objects than the last."""
        return self.backbone

    @torch.no_grad()
    def reconstruct(self, batch: Batch, t: Progress) -> dict[str, Tensor]:
        """Return images as they are, turned, and turned back by the predicted rotation.

        The n-th image has the rotation number n modulo R; a green frame says that the prediction was right.
        """
        images = batch.views["global"][0]
        chosen_B = torch.arange(len(images), device=images.device) % len(self.cfg.angles)
        quarters_R = torch.tensor(self.cfg.quarters, device=images.device)
        turned = turn_each(images, quarters_R[chosen_B])
        guess_B = self.classifier(self.backbone(turned).pooled_BD).argmax(-1)
        undone = turn_each(turned, -quarters_R[guess_B])
        return {"image": images, "rotated": turned, "turned back": framed(undone, guess_B == chosen_B)}
