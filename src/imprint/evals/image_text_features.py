"""Texts and images as vectors of one space: every text once, batched by length, cached by content like images.

Shapes: M texts, N images, E width of the shared space.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from imprint.backbones.dual_encoder import DualEncoder
from imprint.core.errors import ConfigError, DataError
from imprint.data.batch import Normalise
from imprint.data.sources import Source
from imprint.evals import feature_cache
from imprint.evals.features import FeatureTable, extract_for
from imprint.evals.protocol import ProtocolConfig
from imprint.evals.represent import pick_device, pick_precision, resting

_logger = logging.getLogger(__name__)
_WINDOW = 1 << 16  # texts ordered by length at a time


@dataclass(frozen=True)
class TextTable:
    """Vectors of texts in their order.

    Attributes:
        features_ME: float32 of length 1.
        cut_M: int64, 1 for texts that were longer than the tower's context and lost their end.
    """

    features_ME: npt.NDArray[np.float32]
    cut_M: npt.NDArray[np.int64]

    @property
    def cut(self) -> int:
        """How many were."""
        return int(self.cut_M.sum())

    @property
    def tensor(self) -> Tensor:
        """The vectors as a tensor that shares their memory."""
        return torch.from_numpy(np.asarray(self.features_ME))


def text_features(encoder: DualEncoder, texts: Sequence[str], config: ProtocolConfig) -> TextTable:
    """Encode texts, or take them from the cache of features.

    Raises:
        DataError: for an empty list or an empty text.
    """
    if not texts:
        raise DataError("there are no texts to encode.")
    if not config.cache:
        return _encoded(encoder, texts, config, None)
    place = pick_device(config.device, encoder)
    key = feature_cache.key_of(
        {
            "weights": feature_cache.weights_digest(encoder),
            "encoder": [type(encoder).__name__, encoder.config],
            "tokenizer": encoder.text.tokenizer.fingerprint,
            "texts": _digest(texts),
            "precision": str(pick_precision(config.precision, place)),
        }
    )
    found = feature_cache.load(key)
    if found is None:
        with feature_cache.entry(key) as folder:
            made = _encoded(encoder, texts, config, folder / "features.npy")
            np.save(folder / "index.npy", made.cut_M)  # what stands beside features of texts: which of them were cut
            del made  # the file is renamed next, which some systems refuse while it is mapped
        found = feature_cache.load(key)
        if found is None:
            raise DataError(f"the cache folder {feature_cache.cache_folder()} loses what is written to it.")
    return TextTable(found[0], found[1])


def joint_images(
    encoder: DualEncoder, source: Source, normalise: Normalise, config: ProtocolConfig
) -> tuple[FeatureTable, Tensor]:
    """Return the features of images and their vectors (N, E) of length 1, on the CPU.

    Raises:
        ConfigError: for other tokens or layers than those that the model projects.
    """
    if config.tokens != "pooled" or config.layers:
        raise ConfigError("images meet texts by the vector that the model projects; leave out --tokens and --layers.")
    table = extract_for(encoder, source, normalise, config)
    place = pick_device(config.device, encoder)
    parts = []
    with resting(encoder, place), torch.no_grad():
        for start in range(0, len(table), 4096):
            rows = torch.from_numpy(np.array(table.features_ND[start : start + 4096]))
            parts.append(encoder.project(rows.to(place)).cpu())
    return table, torch.cat(parts)


def _encoded(encoder: DualEncoder, texts: Sequence[str], config: ProtocolConfig, path: Path | None) -> TextTable:
    place = pick_device(config.device, encoder)
    dtype = pick_precision(config.precision, place)
    shape = (len(texts), encoder.joint_dim)
    table = (
        np.empty(shape, np.float32)
        if path is None
        else np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    )
    cut = np.zeros(len(texts), dtype=np.int64)
    with resting(encoder, place), torch.no_grad(), torch.autocast(place.type, dtype, enabled=dtype != torch.float32):
        for first in range(0, len(texts), _WINDOW):
            window = list(texts[first : first + _WINDOW])
            # Texts of like length share a batch, so little of it is padding.
            order = np.argsort([len(text) for text in window], kind="stable")
            for start in range(0, len(window), config.batch_size):
                rows = order[start : start + config.batch_size]
                batch = encoder.text.tokenizer([window[int(i)] for i in rows]).to(place)
                cut[first + rows] = batch.cut_B.cpu().numpy()
                table[first + rows] = F.normalize(encoder.text(batch).float(), dim=-1).cpu().numpy()
    if isinstance(table, np.memmap):
        table.flush()
    if cut.any():
        _logger.warning(
            "%d of %d texts are longer than %d tokens and lost their end",
            cut.sum(),
            len(texts),
            encoder.text.tokenizer.context,
        )
    return TextTable(table, cut)


def _digest(texts: Sequence[str]) -> str:
    state = hashlib.blake2b(digest_size=20)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()
