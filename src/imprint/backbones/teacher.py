"""A frozen network that students learn from: a timm classifier, or any encoder that Imprint can load.

Shapes: B images, C channels, H x W pixels, N = gh * gw patches, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint.backbones.build import build_encoder, published_config, published_state
from imprint.backbones.convert import load_state
from imprint.backbones.dual_encoder import DualEncoder
from imprint.backbones.encoder import Encoder
from imprint.backbones.language_model import LanguageModel
from imprint.backbones.load import is_stored, load_encoder, load_normalise
from imprint.backbones.read import read_state
from imprint.core.errors import ConfigError
from imprint.data.batch import Normalise


@dataclass(frozen=True)
class TeacherOutput:
    """What a teacher says about a batch.

    Attributes:
        logits_BK: class logits, or None for a teacher without a classifier.
        pooled_BD: one vector per image, what a classifier reads.
        patches_BND: patch tokens after the final norm, or a CNN's feature map flattened row-major.
        grid: (gh, gw) of the patches.
    """

    logits_BK: Tensor | None
    pooled_BD: Tensor
    patches_BND: Tensor
    grid: tuple[int, int]


class Teacher(nn.Module):
    """An encoder and, where it has them, its linear classifiers: always in evaluation mode, without any gradient.

    Images come as the student sees them: normalised by the run, at the run's size. They are normalised anew by what
    the teacher was trained with, and resized where it is to see them at another size.

    Args:
        encoder: the network.
        heads: no, one, or two linear maps to classes; the second reads the first register (DeiT's distillation token),
            and the logits are then the mean of both.
        normalise: mean and standard deviation of the images that the encoder was trained on.
        image_size: side in pixels at which it sees the images; None leaves them as they come.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, encoder: Encoder, heads: Sequence[nn.Linear], normalise: Normalise, image_size: int | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.heads, self.image_size = encoder, nn.ModuleList(heads), image_size
        self.normalise = normalise
        for name, value in (("scale", 1.0), ("shift", 0.0)):
            self.register_buffer(name, torch.full((encoder.channels, 1, 1), value), persistent=False)
        self.requires_grad_(False)
        self.train(False)

    @property
    def classes(self) -> int:
        """Number of classes, 0 without a classifier."""
        return self.heads[0].out_features if len(self.heads) else 0  # type: ignore[return-value]

    def normalised_by(self, normalise: Normalise) -> None:
        """Learn how the images that come are normalised; until then as the teacher's own."""
        channels = self.encoder.channels
        (mean, std), (own_mean, own_std) = normalise.per_channel(channels), self.normalise.per_channel(channels)
        scale = [s / o for s, o in zip(std, own_std, strict=True)]
        shift = [(m - o) / s for m, o, s in zip(mean, own_mean, own_std, strict=True)]
        self.scale.copy_(torch.tensor(scale).view(-1, 1, 1))
        self.shift.copy_(torch.tensor(shift).view(-1, 1, 1))

    @torch.no_grad()
    def forward(self, images_BCHW: Tensor) -> TeacherOutput:
        """Return what the teacher says.

        Raises:
            ConfigError: for images of another number of channels.
        """
        if images_BCHW.shape[1] != self.encoder.channels:
            raise ConfigError(
                f"the teacher '{self.encoder.name}' takes images of {self.encoder.channels} channels and these have "
                f"{images_BCHW.shape[1]}; choose a teacher for them."
            )
        images = torch.addcmul(self.shift, images_BCHW, self.scale)
        said = self.encoder(resized(images, self.image_size))
        logits_BK: Tensor | None = None
        if len(self.heads):
            logits_BK = self.heads[0](said.pooled_BD if len(self.heads) == 1 else said.cls_BD)
        if len(self.heads) == 2:
            logits_BK = (logits_BK + self.heads[1](said.registers_BRD[:, 0])) / 2
        return TeacherOutput(logits_BK, said.pooled_BD, said.patches_BND, said.grid)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode: BatchNorm uses what it learned, nothing is dropped."""
        super().train(False)
        return self


def resized(images_BCHW: Tensor, image_size: int | None) -> Tensor:
    """Return square images of this side in pixels, bicubic and antialiased; None leaves them as they are."""
    if image_size is None or tuple(images_BCHW.shape[-2:]) == (image_size, image_size):
        return images_BCHW
    return F.interpolate(images_BCHW.float(), size=(image_size, image_size), mode="bicubic", antialias=True)


def load_teacher(name: str | Path, *, image_size: int, channels: int = 3, weights: str | Path | None = None) -> Teacher:
    """Load a teacher, on the CPU.

    Args:
        name: `timm:NAME` with its classifier; or what `load_encoder` takes, which gives features without logits.
        image_size: side in pixels at which it sees the images; they are resized when they come at another.
        channels: of the images; a timm model is fitted to them, any other must have been made for them.
        weights: local file for `timm:NAME`, in place of the published weights: of the whole network, or without a
            classifier (then there are no logits). It was trained on images normalised as timm says for NAME.

    Raises:
        ConfigError: for an unknown name, a network for text, other channels, or weights for what is not a timm model.
        CheckpointError: for damaged or foreign files.
    """
    text = str(name)
    prefix, _, bare = text.partition(":")
    if prefix == "timm" and not is_stored(text):
        return _timm_teacher(bare, image_size, channels, weights)
    if weights is not None:
        raise ConfigError(f"teacher '{text}' brings its own weights; a file of weights goes with timm:NAME.")
    encoder = load_encoder(text, image_size=None if text.startswith("hf:") else image_size)
    if isinstance(encoder, LanguageModel):
        raise ConfigError(f"teacher '{text}' reads text; give one that sees images.")
    if isinstance(encoder, DualEncoder):
        encoder = encoder.vision
    if encoder.channels != channels:
        raise ConfigError(
            f"teacher '{text}' takes images of {encoder.channels} channels and these have {channels}; choose a teacher "
            "for them."
        )
    return Teacher(encoder, (), Normalise(*load_normalise(text)), image_size)


def _timm_teacher(name: str, image_size: int, channels: int, weights: str | Path | None) -> Teacher:
    published = published_config(name)
    encoder = build_encoder(name, image_size=image_size, channels=channels)
    if isinstance(encoder, LanguageModel | DualEncoder):
        raise ConfigError(f"teacher '{name}' reads text; give one that sees images.")
    state = published_state(encoder) if weights is None else read_state(weights)
    load_state(encoder, state, source=f"timm:{name}" if weights is None else str(weights))
    words = published.get("classifier") or ()
    heads = [_head(state, word, encoder.embed_dim) for word in ((words,) if isinstance(words, str) else words)]
    normalise = Normalise(tuple(published["mean"]), tuple(published["std"])) if "mean" in published else Normalise()
    whole = heads if all(head is not None for head in heads) else []
    return Teacher(encoder, [head for head in whole if head is not None], normalise, image_size)


def _head(state: Mapping[str, Tensor], word: str, width: int) -> nn.Linear | None:
    """Return the classifier that is called `word` in a state, whatever wraps the names; None where there is none."""
    found = sorted((k for k in state if k == f"{word}.weight" or k.endswith(f".{word}.weight")), key=len)
    weight_KD = state[found[0]].flatten(1) if found else torch.empty(0, 0)  # some are 1x1 convolutions
    if weight_KD.shape[1] != width:
        return None
    bias = state.get(f"{found[0].removesuffix('weight')}bias")
    head = nn.Linear(width, weight_KD.shape[0], bias=bias is not None)
    head.load_state_dict({"weight": weight_KD} | ({} if bias is None else {"bias": bias}))
    return head
