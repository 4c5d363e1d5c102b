"""From images to a table of features: one ordered pass, streamed to disk, cached by content.

Shapes: N images of the source, B of a batch, D width of the representation.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
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
) -> Iterator[tuple[Tensor, Batch]]:
    """Yield (features float32 (V, B, D) on the device, the batch they came from) in the order of the source.

    Images with more channels than the encoder takes lose the last ones, and a warning says so.
    """
    if source.channels > encoder.channels:
        _logger.warning(
            "%s has %d channels and the encoder takes the first %d only", source.spec, source.channels, encoder.channels
        )
    place = pick_device(device, encoder)
    dtype = pick_precision(precision, place)
    with resting(encoder, place):
        for batch in sweep(source, view, batch_size=batch_size, workers=workers):
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
    the source's fingerprint, the view, the normalisation and the precision, and memory-mapped from there.

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
    rows = stream(
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
        return _table(source, *_fill(rows, len(source), None))
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
            _, index = _fill(rows, len(source), folder / "features.npy")
            np.save(folder / "index.npy", index)
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
    rows: Iterator[tuple[Tensor, Batch]], count: int, path: Path | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Write the stream into one array, in memory or in a .npy file; return it with the index of its rows."""
    table: npt.NDArray[np.float32] | None = None
    index = np.empty(count, dtype=np.int64)
    done = 0
    for features, batch in rows:
        block = features[0].cpu().numpy()
        if table is None:
            shape = (count, block.shape[1])
            if path is None:
                table = np.empty(shape, dtype=np.float32)
            else:
                table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        table[done : done + len(block)] = block
        index[done : done + len(block)] = batch.index_B.numpy()
        done += len(block)
    if table is None:
        raise DataError("not one image of the source could be read.")
    if isinstance(table, np.memmap):
        table.flush()
    return table[:done], index[:done]


def _table(source: Source, features: npt.NDArray[np.float32], index: npt.NDArray[np.int64]) -> FeatureTable:
    labels = None if source.labels is None else np.asarray(source.labels, dtype=np.int64)[index]
    return FeatureTable(features, labels, index, tuple(source.classes), SourceNames(source, index))
