"""The tokenizer of a run: learned on the user's own texts or read from a local file, kept beside the encoder.

Shapes: B texts, L tokens of the longest of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from imprint.core.errors import CheckpointError, ConfigError, DataError, MissingExtra

Kind = Literal["bpe", "wordpiece", "unigram"]
Ids = npt.NDArray[np.int32]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Special tokens of a tokenizer that is learned here, in the order of their ids 0 to 4."""
_OTHER_NAMES = (
    ("[PAD]", "<pad>", "<|endoftext|>", "</s>"),
    ("[UNK]", "<unk>", "<|endoftext|>"),
    ("[CLS]", "<s>", "<|startoftext|>", "<|endoftext|>"),
    ("[SEP]", "</s>", "<|endoftext|>"),
    ("[MASK]", "<mask>"),
)


@dataclass(frozen=True)
class Special:
    """Ids of the tokens that stand for no text; `mask` is None where the tokenizer has none."""

    padding: int
    unknown: int
    start: int
    end: int
    mask: int | None


class TextTokenizer:
    """A tokenizer of the `tokenizers` library with its special tokens found.

    Args:
        text: what `tokenizer.json` holds.
        origin: where it comes from, for messages.

    Attributes:
        vocabulary: one more than the largest id.
        special: see `Special`.
        fingerprint: digest of all its rules.

    Raises:
        CheckpointError: when the text is no tokenizer, or has no token that could start, end or fill a text.
        MissingExtra: without the package.
    """

    def __init__(self, text: str, origin: str = "the tokenizer") -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingExtra("tokenizers", "text", "a tokenizer") from error
        try:
            self._inner: Any = Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{origin} cannot be read as a tokenizer ({error}).") from error
        self._inner.no_padding()
        self._inner.no_truncation()
        self.json = text
        known: dict[str, int] = self._inner.get_vocab()
        self.vocabulary = max(known.values(), default=-1) + 1
        found = [next((known[word] for word in words if word in known), None) for words in _OTHER_NAMES]
        padding, unknown, start, end, mask = found
        if start is None or end is None:
            raise CheckpointError(f"{origin} has no token for the start and end of a text (such as [CLS] and [SEP]).")
        self.special = Special(
            end if padding is None else padding, end if unknown is None else unknown, start, end, mask
        )
        self.fingerprint = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def ids(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of texts, without special tokens."""
        if not texts:
            return []
        return [
            np.array(e.ids, dtype=np.int32)
            for e in self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; special tokens are left out."""
        return str(self._inner.decode([int(i) for i in ids], skip_special_tokens=True))

    def token(self, i: int) -> str:
        """Return the token with an id, as it is stored."""
        return str(self._inner.id_to_token(int(i)))

    @property
    def ordinary(self) -> npt.NDArray[np.int64]:
        """Ids of tokens that stand for text, ascending int64: what may stand in for a masked one."""
        s = self.special
        rest = np.setdiff1d(
            np.arange(self.vocabulary), [i for i in (s.padding, s.unknown, s.start, s.end, s.mask) if i is not None]
        )
        return rest.astype(np.int64)

    def __deepcopy__(self, memo: dict[int, Any]) -> TextTokenizer:
        """Return itself: nothing in it changes."""
        return self


def train_tokenizer(
    texts: Iterable[str], kind: Kind = "bpe", *, vocabulary: int = 8192, lowercase: bool = False
) -> TextTokenizer:
    """Learn a tokenizer from texts.

    `bpe`: byte-level byte-pair encoding (GPT-2, RoBERTa, CLIP), no unknown text; `wordpiece`: BERT's; `unigram`: that
    of SentencePiece (ALBERT). The ids of `SPECIAL` come first.

    Args:
        texts: any number, read once.
        kind: see above.
        vocabulary: most tokens, special ones included.
        lowercase: fold case first.

    Raises:
        ConfigError: for a vocabulary that is too small.
        DataError: for texts without a word.
        MissingExtra: without the package.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    except ImportError as error:
        raise MissingExtra("tokenizers", "text", "a tokenizer") from error
    least = len(SPECIAL) + (256 if kind == "bpe" else 1)
    if vocabulary < least:
        raise ConfigError(f"a {kind} tokenizer needs a vocabulary of at least {least} tokens, got {vocabulary}.")
    unknown = SPECIAL[1]
    clean: list[Any] = [normalizers.NFC() if kind == "bpe" else normalizers.NFKC()]
    if lowercase:
        clean.append(normalizers.Lowercase())
    shared: dict[str, Any] = {"vocab_size": vocabulary, "special_tokens": list(SPECIAL), "show_progress": False}
    if kind == "bpe":
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        inner.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(**shared, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    elif kind == "wordpiece":
        inner = Tokenizer(models.WordPiece(unk_token=unknown))
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        inner.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**shared)
    else:
        inner = Tokenizer(models.Unigram())
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
        inner.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(**shared, unk_token=unknown)
    inner.normalizer = normalizers.Sequence(clean)
    seen = 0

    def counted() -> Iterable[str]:
        nonlocal seen
        for text in texts:
            seen += bool(text.strip())
            yield text

    inner.train_from_iterator(counted(), trainer)
    if not seen:
        raise DataError("there is no text to learn a tokenizer from.")
    return TextTokenizer(inner.to_str(), "the tokenizer that was learned")


def read_tokenizer(path: str | Path) -> TextTokenizer:
    """Read a tokenizer from `tokenizer.json`, or a folder or run that holds one.

    Raises:
        CheckpointError: when there is none, or it cannot be read.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        found = [place / name for name in ("tokenizer.json", "encoder.tokenizer.json") if (place / name).is_file()]
        if not found:
            raise CheckpointError(f"the folder '{place}' holds no tokenizer.json.")
        place = found[0]
    try:
        text = place.read_text(encoding="utf-8")
        json.loads(text)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{place}' cannot be read as a tokenizer: {error}.") from error
    return TextTokenizer(text, f"'{place}'")
