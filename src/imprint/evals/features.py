"""From images to a table of features: one ordered pass, streamed to disk, cached by content.

Shapes: N images of the source, B of a batch, D width of the representation.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imprint.core.errors import DataError
from imprint.data.batch import Batch, Normalise
from imprint.data.loader import sweep
from imprint.data.views import View
from imprint.evals import feature_cache
from imprint.evals.feature_part import Part
from imprint.evals.protocol import Precision, ProtocolConfig, Tokens
from imprint.evals.represent import evaluation_view, pick_device, pick_precision, represent, resting

if TYPE_CHECKING:
    from imprint.backbones.encoder import Encoder
    from imprint.data.sources import Source

_logger = logging.getLogger(__name__)


def printable(name: str) -> str:
    """Return a name that any text file can hold: bytes that are no UTF-8 (old file systems) become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@dataclass(frozen=True)
class SourceNames(Sequence[str]):
    """Names of the rows of a table, looked up in the source on demand (a million names need no memory)."""

    source: Source
    index_N: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Return N."""
        return len(self.index_N)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]  # one name, or a list of names for a slice
        """Return the name of a row."""
        if isinstance(row, slice):
            return [printable(self.source.name(int(i))) for i in self.index_N[row]]
        return printable(self.source.name(int(self.index_N[row])))


@dataclass(frozen=True)
class FeatureTable:
    """Features of a source in its order.

    Attributes:
        features_ND: float32, memory-mapped when it came from the cache.
        labels_N: int64, or None.
        index_N: position of each row in the source (all of them, unless damaged images were left out).
        classes: class names, position = label.
        names: names of the rows.
    """

    features_ND: npt.NDArray[np.float32]
    labels_N: npt.NDArray[np.int64] | None
    index_N: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    names: Sequence[str]

    def __len__(self) -> int:
        """Return N."""
        return len(self.index_N)

    @property
    def tensor(self) -> Tensor:
        """The features as a tensor that shares their memory."""
        return torch.from_numpy(np.asarray(self.features_ND))


def stream(
    encoder: Encoder,
    source: Source,
    *,
    view: View,
    normalise: Normalise,
    batch_size: int = 256,
    workers: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    tokens: Tokens = "pooled",
    layers: Sequence[int] = (),
    seed: int = 0,
    first: int = 0,
) -> Iterator[tuple[Tensor, Batch]]:
    """Yield (features float32 (V, B, D) on the device, the batch they came from) in the order of the source.

    Views that are drawn follow from `seed`; `first` leaves out that many samples at the start.
    Images with more channels than the encoder takes lose the last ones, and a warning says so.
    """
    if source.channels > encoder.channels:
        _logger.warning(
            "%s has %d channels and the encoder takes the first %d only", source.spec, source.channels, encoder.channels
        )
    place = pick_device(device, encoder)
    dtype = pick_precision(precision, place)
    with resting(encoder, place):
        for batch in sweep(source, view, batch_size=batch_size, workers=workers, seed=seed, first=first):
            # no_grad, not inference_mode: tensors that an encoder caches here may meet autograd in training later.
            # It is entered per batch, so that it does not leak into the consumer between two of ours.
            with torch.no_grad(), torch.autocast(place.type, dtype, enabled=dtype != torch.float32):
                images = normalise(batch.views[view.name].to(place, non_blocking=True))
                images = images[:, :, : encoder.channels]  # an encoder of RGB may be judged on RGB with depth
                features = torch.stack([represent(encoder, crop, tokens, layers) for crop in images])
            yield features.float(), batch


def extract(
    encoder: Encoder,
    source: Source,
    *,
    image_size: int | None = None,
    normalise: Normalise | None = None,
    batch_size: int = 256,
    workers: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    tokens: Tokens = "pooled",
    layers: Sequence[int] | None = None,
    cache: bool = True,
) -> FeatureTable:
    """Encode every image of a source under the plain evaluation view.

    With `cache` the features are kept in the user's cache under a hash of the encoder's weights, its configuration,
    the source's fingerprint, the view, the normalisation and the precision, and memory-mapped from there. A killed
    call goes on where it was: the next one with the same key encodes the rest.

    Args:
        encoder: any encoder under the contract; it is given back in the mode and place it was in.
        source: images, with or without labels.
        image_size: side of the view; None takes the encoder's.
        normalise: pixel normalisation; None is ImageNet's.
        batch_size: images per forward.
        workers: loader threads; None measures the machine.
        device: auto, cpu, cuda or mps.
        precision: auto, fp32, bf16 or fp16; features come back as float32.
        tokens: see `represent`.
        layers: see `represent`.
        cache: keep and reuse.

    Raises:
        DataError: for an empty source, or one without a single readable image.
        ConfigError: for options that the encoder or the machine does not support.
    """
    if len(source) == 0:
        raise DataError(f"source '{source.spec}' is empty; there is nothing to encode.")
    normalise = normalise or Normalise()
    view = evaluation_view(image_size or encoder.image_size)
    rows_from = functools.partial(
        stream,
        encoder,
        source,
        view=view,
        normalise=normalise,
        batch_size=batch_size,
        workers=workers,
        device=device,
        precision=precision,
        tokens=tokens,
        layers=tuple(layers or ()),
    )
    if not cache:
        return _table(source, *_fill(rows_from, len(source)))
    key = feature_cache.key_of(
        {
            "weights": feature_cache.weights_digest(encoder),
            "encoder": [type(encoder).__name__, encoder.config],
            "source": [source.fingerprint, len(source)],
            "view": repr(view),
            "normalise": repr(normalise),
            "precision": str(pick_precision(precision, pick_device(device, encoder))),
            "tokens": [tokens, list(layers or ())],
        }
    )
    found = feature_cache.load(key)
    if found is None:
        with feature_cache.entry(key) as folder:
            part = Part.of(folder)
            _, index = _fill(rows_from, len(source), part)
            np.save(folder / "index.npy", index)
            part.rows.unlink()
        found = feature_cache.load(key)
        if found is None:
            where = feature_cache.cache_folder()
            raise DataError(f"the cache folder {where} loses what is written to it; use cache=False.")
    return _table(source, *found)


def extract_for(encoder: Encoder, source: Source, normalise: Normalise, config: ProtocolConfig) -> FeatureTable:
    """Call `extract` with the options that every protocol shares."""
    return extract(
        encoder,
        source,
        image_size=config.image_size,
        normalise=normalise,
        batch_size=config.batch_size,
        workers=config.workers,
        device=config.device,
        precision=config.precision,
        tokens=config.tokens,
        layers=config.layers,
        cache=config.cache,
    )


def _fill(
    rows_from: Callable[..., Iterator[tuple[Tensor, Batch]]], count: int, part: Part | None = None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Write the stream into one array, in memory or in files; return it with the index of its rows."""
    table: npt.NDArray[np.float32] | None = None
    index: npt.NDArray[np.int64] = np.empty(count, dtype=np.int64)
    done = seen = 0
    found = None if part is None else part.reopen(count)
    if found is not None:
        table, index, done, seen = found
        _logger.info("%d of %d images are encoded already; going on from there", seen, count)
    for features, batch in rows_from(first=seen) if seen < count else ():
        block = features[0].cpu().numpy()
        if table is None:
            width = block.shape[1]
            if part is None:
                table = np.empty((count, width), dtype=np.float32)
            else:
                table, index = part.create(count, width)
        table[done : done + len(block)] = block
        index[done : done + len(block)] = batch.index_B.numpy()
        done += len(block)
        if part is not None:
            part.keep(table, index, done)
    if table is None:
        raise DataError("not one image of the source could be read.")
    if isinstance(table, np.memmap):
        table.flush()
    return table[:done], np.array(index[:done])


def _table(source: Source, features: npt.NDArray[np.float32], index: npt.NDArray[np.int64]) -> FeatureTable:
    labels = None if source.labels is None else np.asarray(source.labels, dtype=np.int64)[index]
    return FeatureTable(features, labels, index, tuple(source.classes), SourceNames(source, index))
