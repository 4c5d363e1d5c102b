"""The table of formats, and the one function that exports."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from imprint.backbones.dual_encoder import DualEncoder
from imprint.backbones.encoder import Encoder
from imprint.backbones.language_model import LanguageModel
from imprint.backbones.load import load_encoder, load_normalise
from imprint.backbones.pixel_transformer import PixelTransformer
from imprint.backbones.stored import IMAGENET_MEAN, IMAGENET_STD, description_of
from imprint.core.errors import ConfigError, unknown
from imprint.export.check import ExportResult, Subject, subject
from imprint.export.dual import export_dual
from imprint.export.language import export_language

FORMATS: dict[str, tuple[str, str]] = {
    "safetensors": ("imprint.export.native", "export_safetensors"),
    "timm": ("imprint.export.timm_folder", "export_timm"),
    "torchvision": ("imprint.export.torchvision_names", "export_torchvision"),
    "hf": ("imprint.export.huggingface", "export_hf"),
    "onnx": ("imprint.export.onnx_graph", "export_onnx"),
}
"""Format -> (module, function); imported when asked for, as some need optional packages."""


def export(
    encoder: Encoder | str | Path,
    format: str,
    out: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> ExportResult:
    """Write an encoder for another library, load it back there, and compare features on the same images.

    Args:
        encoder: an encoder, or what `load_encoder` takes (a run folder, an exported file, timm:NAME).
        format: `safetensors`, `timm`, `torchvision`, `hf` or `onnx`. Of a model of images and texts `safetensors` holds
            both towers, the others the image tower.
        out: file or folder to write; made when absent.
        mean: per-channel mean of its images in [0, 1]; None takes the stored one, else ImageNet's.
        std: per-channel standard deviation, likewise.
        provenance: JSON-ready facts kept beside it; None takes the stored ones.

    Returns:
        Where it is, how far its features are from ours, and the Python that loads it.

    Raises:
        ConfigError: for an unknown format, or an encoder the format cannot hold.
        MissingExtra: when the format needs a package that is absent.
        CheckpointError: when it cannot be written, or what was written gives other numbers.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    out = Path(out).expanduser()
    if not isinstance(encoder, Encoder):
        stored = description_of(encoder)
        if stored is not None and stored[0].resolve() in (out.resolve(), (out / stored[0].name).resolve()):
            raise ConfigError(f"{stored[0]} is what would be exported; choose another place for --out.")
    if not isinstance(encoder, Encoder):
        stored_as, encoder = encoder, load_encoder(encoder)
    else:
        stored_as = None
    if isinstance(encoder, LanguageModel):
        described = None if stored_as is None else description_of(stored_as)
        known = provenance if described is None or provenance is not None else described[1].get("provenance")
        return export_language(encoder, format, out, known)
    own_mean, own_std, known = _known(encoder, stored_as, provenance)
    colours = tuple(mean or own_mean), tuple(std or own_std)
    if isinstance(encoder, DualEncoder) and format == "safetensors":
        return export_dual(encoder, out, *colours, known)
    # Other libraries get the image tower of a model of images and texts.
    source = subject(encoder.vision if isinstance(encoder, DualEncoder) else encoder, *colours, known)
    if isinstance(source.encoder, PixelTransformer) and format not in ("safetensors", "onnx"):
        raise ConfigError(
            f"'{source.encoder.name}' is Imprint's own network, which {format} does not have. Use --format safetensors "
            "(read by imprint.load_encoder) or onnx."
        )
    module, function = FORMATS[format]
    write: Callable[[Subject, Path], ExportResult] = getattr(importlib.import_module(module), function)
    return write(source, out)


def _known(
    model: Encoder, stored_as: str | Path | None, provenance: Mapping[str, Any] | None
) -> tuple[tuple[float, ...], tuple[float, ...], Mapping[str, Any] | None]:
    """Return mean and std of an encoder's images and its provenance, as it was stored; ImageNet's for one that is not.

    A provenance that was given stays.
    """
    if stored_as is None:
        if model.channels != len(IMAGENET_MEAN):
            return (sum(IMAGENET_MEAN) / 3,), (sum(IMAGENET_STD) / 3,), provenance
        return IMAGENET_MEAN, IMAGENET_STD, provenance
    described = description_of(stored_as)
    if provenance is None and described is not None:
        provenance = described[1].get("provenance")
    return *load_normalise(stored_as), provenance
