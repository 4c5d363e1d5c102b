"""An encoder and images, ready to be looked at: any encoder at its own size and normalisation, the same images for all.

Shapes: B images, C channels, N = gh * gw patches or places, D width.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError, DataError
from imprint.data.batch import Normalise
from imprint.data.headers import Layout
from imprint.data.loader import sweep
from imprint.data.sources import Sample, Source, digest, open_source, spread
from imprint.evals.features import printable
from imprint.evals.pixels import PixelEncoder
from imprint.evals.represent import evaluation_view, pick_device, resting
from imprint.viz.raster import Picture, picture

EncoderLike = str | os.PathLike[str] | Encoder
SourceLike = str | os.PathLike[str] | Source | Sequence[str | os.PathLike[str]]
PLACES = 8
"""A hierarchical encoder is looked at in its deepest stage with at least this many places a side."""


@dataclass(frozen=True)
class Eye:
    """An encoder and how it wants its images.

    Attributes:
        name: what stands beside its pictures.
        encoder: the encoder.
        normalise: its pixel normalisation.
        image_size: side of the view it is given, in pixels.
        device: where it runs.
    """

    name: str
    encoder: Encoder
    normalise: Normalise
    image_size: int
    device: torch.device


@dataclass(frozen=True)
class Views:
    """Some images of a source as one encoder sees them.

    Attributes:
        rows: positions in the source.
        names: what a person finds them by.
        pictures: evaluation views, before normalisation.
        inputs_BCHW: the same, normalised, on the encoder's device.
    """

    rows: npt.NDArray[np.int64]
    names: list[str]
    pictures: list[Picture]
    inputs_BCHW: Tensor


class Recoloured(Source):
    """A source of grey images delivered in colour, or of colour images in grey, as the encoder takes them."""

    def __init__(self, source: Source, channels: int) -> None:
        self.source = source
        self.spec, self.labels, self.classes = source.spec, source.labels, source.classes
        self.layout = Layout(channels, source.dtype)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.source)

    def read(self, i: int) -> Sample:
        """Return sample `i`; arrays get their channels here, encoded bytes when they are decoded."""
        sample = self.source.read(i)
        if isinstance(sample, np.ndarray) and sample.shape[2] != self.channels:
            if sample.shape[2] == 1:
                return np.repeat(sample, self.channels, axis=2)
            return (sample @ np.array([0.299, 0.587, 0.114])).round().astype(sample.dtype)[..., None]
        return sample

    def name(self, i: int) -> str:
        """Return the name of sample `i`."""
        return self.source.name(i)

    @property
    def fingerprint(self) -> str:
        """Hex digest of the samples and the number of channels."""
        return digest(self.source.fingerprint, f"channels {self.channels}")


def open_eye(
    encoder: EncoderLike,
    *,
    image_size: int | None = None,
    normalise: Normalise | None = None,
    device: str = "auto",
    seed: int = 0,
    channels: int = 3,
) -> Eye:
    """Load what is looked with.

    Args:
        encoder: a run folder, an exported file, `timm:NAME`, `random:NAME` (untrained), `pixels`, or an Encoder.
        image_size: side of the view; None takes the encoder's own.
        normalise: None takes the one stored with the encoder, else ImageNet's.
        device: auto, cpu, cuda or mps.
        seed: of the weights of an untrained encoder.
        channels: for `pixels`.

    Raises:
        ConfigError: for a name that is no encoder, or a size that its patches do not divide.
    """
    if isinstance(encoder, Encoder):
        model, own, name = encoder, Normalise(), encoder.name
    elif os.fspath(encoder) == "pixels":
        model, own, name = PixelEncoder(image_size or 32, channels), Normalise(), "pixels"
    else:
        from imprint.backbones.load import load_encoder, load_normalise

        spec = os.fspath(encoder)
        mean, std = load_normalise(spec)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = load_encoder(spec, image_size=image_size)
        own = Normalise(tuple(mean), tuple(std))
        name = spec if ":" in spec else Path(spec).expanduser().resolve().name
    side = image_size or model.image_size
    if model.has_tokens and side % model.patch_size:
        raise ConfigError(
            f"'{name}' cuts patches of {model.patch_size} px, which do not divide images of {side} px; use an image "
            f"size that is a multiple of {model.patch_size}."
        )
    return Eye(name, model, normalise or own, side, pick_device(device, model))


def open_images(data: SourceLike, encoder: Encoder | None = None) -> Source:
    """Open a source, or image files by their paths; with an encoder, grey or colour as it takes them.

    Raises:
        ConfigError: for channels that the encoder cannot be given.
        DataError: for what cannot be opened.
    """
    source = _files(data) or open_source(data)
    if encoder is None or source.channels == encoder.channels:
        return source
    if {source.channels, encoder.channels} == {1, 3} or source.channels == 1:
        return Recoloured(source, encoder.channels)
    if source.channels < encoder.channels:
        raise ConfigError(
            f"'{source.spec}' has {source.channels} channels and '{encoder.name}' takes {encoder.channels}; give "
            "images with as many channels, or an encoder built for these."
        )
    return source  # an encoder of RGB is shown the first channels of RGB with depth, as in every evaluation


def _files(data: SourceLike) -> Source | None:
    """Return image files given one by one as a source, or None when the words are something else."""
    from imprint.data.compact import Names
    from imprint.data.filelist import ListSource
    from imprint.data.index import EXTENSIONS

    if isinstance(data, Source):
        return None
    paths = [Path(p).expanduser() for p in ([data] if isinstance(data, (str, os.PathLike)) else data)]
    if not paths or not all(p.suffix.lower() in EXTENSIONS - {".npy"} and p.is_file() for p in paths):
        return None
    spec = " ".join(map(os.fspath, paths))
    return ListSource(Names.of(os.fsencode(p) for p in paths), None, base=Path.cwd(), spec=spec)


def pick_rows(source: Source, images: int, rows: Sequence[int] = ()) -> npt.NDArray[np.int64]:
    """Return the rows asked for, or `images` of them spread evenly over the source.

    Raises:
        ConfigError: for a row that the source does not have.
    """
    if not len(rows):
        return spread(len(source), images)
    found = np.asarray(rows, dtype=np.int64)
    if found.min() < 0 or found.max() >= len(source):
        raise ConfigError(f"'{source.spec}' has images 0 to {len(source) - 1}; row {int(found.max())} is not there.")
    return found


def view(eye: Eye, source: Source, rows: npt.ArrayLike, workers: int | None = None) -> Views:
    """Read some images and cut them to the encoder's plain evaluation view; damaged ones are left out.

    Raises:
        DataError: when none of them can be read.
    """
    wanted = np.asarray(rows, dtype=np.int64)
    cut = evaluation_view(eye.image_size)
    kept: list[Tensor] = []
    found: list[int] = []
    for batch in sweep(source.subset(wanted), cut, batch_size=32, workers=workers, bad_limit=1.0):
        kept.append(batch.views[cut.name][0])
        found += batch.index_B.tolist()
    if not kept:
        raise DataError(f"not one of the {len(wanted)} images chosen from '{source.spec}' can be read.")
    raw = torch.cat(kept)[:, : eye.encoder.channels]
    there = wanted[np.asarray(found)]
    return Views(
        rows=there,
        names=[printable(source.name(int(i))) for i in there],
        pictures=[picture(image.numpy(), channels_first=True) for image in raw],
        inputs_BCHW=eye.normalise(raw.to(eye.device)),
    )


def feature_map(eye: Eye, inputs_BCHW: Tensor, layer: int | None = None) -> tuple[Tensor, tuple[int, int]]:
    """Return the features (B, N, D) of the places of an image, float32 on the CPU, and their grid (gh, gw).

    A ViT gives its patch tokens; a hierarchical encoder (CNN, Swin) the map of one stage, by default the deepest with
    at least 8 places a side (the finest when all are coarser).

    Args:
        eye: who looks.
        inputs_BCHW: normalised images.
        layer: block or stage, negatives count back; None is a ViT's output, or the stage above.

    Raises:
        ConfigError: for a layer that the encoder does not have.
    """
    encoder = eye.encoder
    parts: list[Tensor] = []
    grid = (1, 1)
    with resting(encoder, eye.device), torch.no_grad():
        for start in range(0, len(inputs_BCHW), 16):
            images = inputs_BCHW[start : start + 16]
            if layer is not None:
                found = encoder.encode_layers(images, [layer])[0]
                patches_BND, grid = found.patches_BND, found.grid
            else:
                maps = encoder.encode_maps(images)
                fine = [m for m in maps if min(m.shape[2:]) >= PLACES]
                chosen = fine[-1] if fine else maps[0]
                patches_BND, grid = chosen.flatten(2).transpose(1, 2), (chosen.shape[2], chosen.shape[3])
            parts.append(patches_BND.float().cpu())
    return torch.cat(parts), grid
