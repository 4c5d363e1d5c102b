"""What every exporter shares: a fixed input, the reference output, the comparison, and the result."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imprint.backbones.encoder import Encoder, Features
from imprint.backbones.pixel_transformer import Backbone
from imprint.core.errors import CheckpointError, ConfigError


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written, and how well it agrees.

    Attributes:
        format: its name.
        path: file or folder.
        max_abs_diff: largest absolute difference between our features and those of what was read back.
        how_to_load: Python that loads it into `model` without Imprint (or with it, for the `safetensors` format).
    """

    format: str
    path: Path
    max_abs_diff: float
    how_to_load: str


@dataclass(frozen=True)
class Subject:
    """An encoder about to be written: a float32 copy on the CPU in evaluation mode, and what belongs to it.

    Attributes:
        encoder: the copy.
        mean: per-channel mean of its images, one value per channel.
        std: per-channel standard deviation.
        provenance: JSON-ready facts kept beside it.
    """

    encoder: Backbone
    mean: tuple[float, ...]
    std: tuple[float, ...]
    provenance: Mapping[str, Any]

    def images(self, batch: int = 2) -> Tensor:
        """Return the same normalised-looking images every time, (batch, C, S, S) with S the built size."""
        generator = torch.Generator().manual_seed(0)
        size = self.encoder.image_size
        return torch.randn(batch, self.encoder.channels, size, size, generator=generator)


def subject(
    encoder: Encoder, mean: tuple[float, ...], std: tuple[float, ...], provenance: Mapping[str, Any] | None
) -> Subject:
    """Return a copy of `encoder` ready to be written, without its mask token, which only pretraining needs.

    Raises:
        ConfigError: when `encoder` is no backbone that `build_encoder` makes, or mean and std do not fit its channels.
    """
    if not isinstance(encoder, Backbone):
        raise ConfigError(
            f"only encoders that build_encoder makes can be exported, '{type(encoder).__name__}' is none."
        )
    for what, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, encoder.channels):
            raise ConfigError(f"{what} has {len(values)} values for {encoder.channels} channels; give one or one each.")
    own = copy.deepcopy(encoder).float().cpu().eval()
    own.drop_mask_token()
    own.requires_grad_(False)
    repeat = {"mean": mean, "std": std}
    full = {k: tuple(v) if len(v) == own.channels else tuple(v) * own.channels for k, v in repeat.items()}
    return Subject(own, full["mean"], full["std"], dict(provenance or {}))


def reference(source: Subject, images_BCHW: Tensor) -> Features:
    """Return our own features of `images_BCHW`."""
    with torch.no_grad():
        return source.encoder.encode(images_BCHW)


def compare(path: Path, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], tolerance: float) -> float:
    """Return the largest absolute difference over all outputs.

    Args:
        path: named in the error.
        ours: output name -> tensor.
        theirs: the same from what was read back.
        tolerance: allowed difference as a share of the largest magnitude of each of our outputs.

    Raises:
        CheckpointError: when shapes differ or a difference exceeds the tolerance.
    """
    worst = 0.0
    for name, mine in ours.items():
        other = theirs[name].to(mine.dtype)
        if mine.shape != other.shape:
            raise CheckpointError(
                f"{path}: '{name}' reads back as {tuple(other.shape)}, not {tuple(mine.shape)}; export failed."
            )
        diff = float((mine - other).abs().max())
        allowed = tolerance * max(1e-6, float(mine.abs().max()))
        if not diff <= allowed:
            raise CheckpointError(
                f"{path}: '{name}' of the model read back differs by {diff:.3g} (allowed {allowed:.3g}); "
                "do not use the file. The safetensors format carries this encoder exactly."
            )
        worst = max(worst, diff)
    return worst
