"""Texts to vectors: the contracts of a tokenizer and of a text tower, and a tokenizer read from a local folder.

Shapes: B texts, L tokens of the longest of them, E width of the space shared with images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from imprint.backbones.text_tokenizer import TextTokenizer
from imprint.core.errors import CheckpointError, ConfigError, DataError, MissingExtra


@dataclass(frozen=True)
class TextBatch:
    """Texts as a text tower takes them.

    Attributes:
        ids_BL: int64 token ids, padded at the end.
        mask_BL: bool, True where there is a token and not padding.
        cut_B: bool, True for texts that were longer than the tower's context and lost their end.
    """

    ids_BL: Tensor
    mask_BL: Tensor
    cut_B: Tensor

    def to(self, device: torch.device | str) -> TextBatch:
        """Return the same on another device."""
        return TextBatch(self.ids_BL.to(device), self.mask_BL.to(device), self.cut_B.to(device))

    def __len__(self) -> int:
        """Return B."""
        return len(self.ids_BL)


class Tokenizer(Protocol):
    """A callable from texts to ids; anything with these members serves."""

    @property
    def context(self) -> int:
        """Most tokens of a text, start and end included."""

    @property
    def vocabulary(self) -> int:
        """Number of ids; every id is below it."""

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides the ids, the key of what is cached about texts."""

    def __call__(self, texts: Sequence[str]) -> TextBatch:
        """Return the ids of texts; what exceeds the context is cut before the end token."""


class TextEncoder(nn.Module):
    """A text tower: tokens in, one vector per text in the space shared with images.

    Attributes:
        tokenizer: makes its tokens.
        joint_dim: E.
        recompute: compute blocks again in the backward pass instead of keeping their activations, where it can.
    """

    tokenizer: Tokenizer
    joint_dim: int
    recompute: bool = False

    def forward(self, batch: TextBatch) -> Tensor:
        """Return vectors (B, E), not normalised.

        Raises:
            TypeError: by a tower that does not say how.
        """
        raise TypeError(f"{type(self).__name__} does not say how to encode texts")

    @property
    def learned(self) -> TextTokenizer | None:
        """The tokenizer of the run it was trained in, or None for a tower that brings its own."""
        return None

    def tokenized_by(self, tokenizer: TextTokenizer) -> None:
        """Take the tokenizer of a run.

        Raises:
            ConfigError: by a tower that brings its own.
        """
        raise ConfigError(f"{type(self).__name__} brings its own tokenizer.")


def pad(rows: Sequence[Sequence[int]], cut: Sequence[bool], pad_id: int, length: int | None = None) -> TextBatch:
    """Return rows of ids of different lengths as one batch, padded at the end to the longest, or to `length`."""
    widest = max((len(row) for row in rows), default=0) if length is None else length
    sizes = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    mask = torch.arange(widest)[None, :] < sizes[:, None]
    ids = torch.full((len(rows), widest), pad_id, dtype=torch.int64)
    ids[mask] = torch.tensor([i for row in rows for i in row], dtype=torch.int64)
    return TextBatch(ids, mask, torch.tensor(list(cut), dtype=torch.bool))


def require_texts(texts: Sequence[str]) -> None:
    """Refuse texts that say nothing.

    Raises:
        DataError: naming the first text that is empty or only white space.
    """
    for i, text in enumerate(texts):
        if not text.strip():
            raise DataError(f"text {i + 1} of {len(texts)} is empty; an empty text describes no image. Leave it out.")


class StoredTokenizer:
    """The tokenizer in a local folder (`tokenizer.json` or what transformers reads beside it); nothing is downloaded.

    Args:
        folder: where its files lie.
        context: most tokens of a text.
        full: pad every batch to the context, for towers that were trained so and look at the padding (SigLIP).

    Raises:
        CheckpointError: when the folder has no readable tokenizer.
        MissingExtra: without transformers.
    """

    def __init__(self, folder: str | Path, context: int, *, full: bool = False) -> None:
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise MissingExtra("transformers", "text", "a text tower") from error
        self._context, self._full = context, full
        try:
            self._inner: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise CheckpointError(
                f"'{folder}' has no tokenizer that can be read ({str(error).splitlines()[0]}). It needs "
                "tokenizer.json, or the vocabulary files of its model, beside config.json."
            ) from error
        largest = max(self._inner.get_vocab().values(), default=-1)
        self._vocabulary = max(int(largest) + 1, len(self._inner))
        self.end_id: int | None = self._inner.eos_token_id
        fallback = self.end_id if self.end_id is not None else 0
        self._pad = int(self._inner.pad_token_id if self._inner.pad_token_id is not None else fallback)
        self._digest = _digest(self._inner, context, full)

    @property
    def context(self) -> int:
        """Most tokens of a text."""
        return self._context

    @property
    def vocabulary(self) -> int:
        """One more than the largest id."""
        return self._vocabulary

    @property
    def fingerprint(self) -> str:
        """Digest over the vocabulary, the rules, and the context."""
        return self._digest

    def __call__(self, texts: Sequence[str]) -> TextBatch:
        """Return the ids of texts.

        Raises:
            DataError: for an empty text.
        """
        require_texts(texts)
        rows: list[list[int]] = self._inner(list(texts), verbose=False)["input_ids"] if texts else []
        long = [i for i, row in enumerate(rows) if len(row) > self._context]
        if long:  # only these are done twice: the library does not say what it cut
            short = self._inner([texts[i] for i in long], truncation=True, max_length=self._context)["input_ids"]
            for i, row in zip(long, short, strict=True):
                rows[i] = row
        over = set(long)
        return pad(rows, [i in over for i in range(len(rows))], self._pad, self._context if self._full else None)

    def __deepcopy__(self, memo: dict[int, Any]) -> StoredTokenizer:
        """Return itself: a tokenizer holds no state that a copy of its model could change."""
        return self


def _digest(inner: Any, context: int, full: bool) -> str:
    """Return a hash of the rules: the whole fast tokenizer, or the vocabulary and the settings of a slow one."""
    backend = getattr(inner, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "to_str"):
        rules = backend.to_str()
    else:
        rules = json.dumps([sorted(inner.get_vocab().items()), type(inner).__name__, str(inner.init_kwargs)])
    return hashlib.blake2b(f"{context}|{full}|{rules}".encode(), digest_size=16).hexdigest()
