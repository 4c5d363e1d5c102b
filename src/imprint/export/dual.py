"""A model of images and texts in our own format: both towers, the projections, scale and bias, and the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imprint.backbones.dual_encoder import DualEncoder
from imprint.backbones.load import load_encoder
from imprint.backbones.stored import save_encoder
from imprint.core.errors import CheckpointError, ConfigError
from imprint.export.check import ExportResult, compare

_TEXTS = ("a", "a photo of a dog on the grass", "two red boats by the sea at night")


def export_dual(
    encoder: DualEncoder, out: Path, mean: Sequence[float], std: Sequence[float], provenance: Mapping[str, Any] | None
) -> ExportResult:
    """Write `out` (a .safetensors file, or a folder that gets encoder.safetensors), its JSON and its tokenizer.

    Read back by `load_encoder`: the vectors of images and of texts must agree exactly up to float rounding.

    Raises:
        ConfigError: for a model that was not trained here (`hf:FOLDER`), whose folder is its format.
        CheckpointError: when it cannot be written or reads back differently.
    """
    if encoder.tokenizer is None:
        raise ConfigError(
            f"'{encoder.name}' brings its own tokenizer and stays in its own folder, which --encoder hf:FOLDER reads."
        )
    folder, stem = (out.parent, out.stem) if out.suffix == ".safetensors" else (out, "encoder")
    path = save_encoder(encoder, folder, mean=mean, std=std, provenance=provenance, stem=stem)
    back = load_encoder(path)
    if not isinstance(back, DualEncoder):
        raise CheckpointError(f"{path}: reads back without its text tower; export failed.")
    diff = compare(path, _answers(encoder.eval()), _answers(back), tolerance=1e-5)
    lines = f"import imprint\nmodel = imprint.load_encoder({str(path)!r})\nvectors = model.encode_text(['a photo'])"
    return ExportResult(format="safetensors", path=path, max_abs_diff=diff, how_to_load=lines)


def _answers(encoder: DualEncoder) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    side = encoder.image_size
    with torch.no_grad():
        pooled = encoder.encode(torch.randn(2, encoder.channels, side, side, generator=generator)).pooled_BD
        return {"images": encoder.project(pooled), "texts": encoder.encode_text(_TEXTS)}
