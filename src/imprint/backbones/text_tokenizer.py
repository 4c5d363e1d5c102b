"""The tokenizer of a run: learned on the user's own texts or read from a local file, kept beside the encoder.

Shapes: B texts, L tokens of the longest of them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
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
    ("[PAD]", "<pad>"),
    ("[UNK]", "<unk>"),
    ("[CLS]", "<s>", "<bos>", "<|startoftext|>", "<|begin_of_text|>"),
    ("[SEP]", "</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>"),
    ("[MASK]", "<mask>"),
)
_FILES = ("tokenizer.json", "encoder.tokenizer.json")
_SLOW_FILES = ("vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model")
"""What folders of older models hold instead; transformers makes a tokenizer of them."""


@dataclass(frozen=True)
class Special:
    """Ids of the tokens that stand for no text; `mask` is None where the tokenizer has none.

    A tokenizer with one such token only (GPT-2's `<|endoftext|>`) uses it for start, end, filling and the unknown.
    """

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
        self._inner.encode_special_tokens = True  # "[MASK]" in a text is text, not the mask token
        self.json = text
        known: dict[str, int] = self._inner.get_vocab()
        self.vocabulary = max(known.values(), default=-1) + 1
        found = [next((known[word] for word in words if word in known), None) for words in _OTHER_NAMES]
        padding, unknown, start, end, mask = found
        end = start if end is None else end
        start = end if start is None else start
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
    """Learn a tokenizer from texts; the ids of `SPECIAL` come first.

    `bpe`: byte-level byte-pair encoding (GPT-2, RoBERTa, CLIP), no unknown text, and decoding gives the text back;
    `wordpiece`: BERT's; `unigram`: that of SentencePiece (ALBERT). The same texts give the same tokenizer; with
    `unigram` up to the last digits of its scores, which the library sums in no fixed order.

    Args:
        texts: any number; they are held in memory.
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
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise DataError("there is no text to learn a tokenizer from.")
    # Bytes stand for themselves: only folding case asks for one form of each letter first.
    clean: list[Any] = (
        [] if kind == "bpe" and not lowercase else [normalizers.NFC() if kind == "bpe" else normalizers.NFKC()]
    )
    clean += [normalizers.Lowercase()] if lowercase else []
    special = list(SPECIAL)
    shared: dict[str, Any] = {"vocab_size": vocabulary, "show_progress": False}
    if kind == "bpe":
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        inner.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(**shared, special_tokens=special, initial_alphabet=sorted(alphabet))
    elif kind == "wordpiece":
        inner = Tokenizer(models.WordPiece(unk_token=SPECIAL[1]))
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        inner.decoder = decoders.WordPiece()
    else:
        inner = Tokenizer(models.Unigram())
        # A bracket stands alone: "[MASK]" in a text would match the piece of that name.
        brackets = pre_tokenizers.Split("[", "isolated")
        inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), brackets])
        inner.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(**shared, special_tokens=special, unk_token=SPECIAL[1])
    if clean:
        inner.normalizer = normalizers.Sequence(clean)
    if kind == "wordpiece":
        letters, inside = _letters(inner, texts, (vocabulary - len(special)) // 3)
        # The library numbers letters inside words as it meets words, in no fixed order: so they are told beforehand.
        trainer = trainers.WordPieceTrainer(
            **shared, special_tokens=special + inside, initial_alphabet=letters, limit_alphabet=len(letters)
        )
    try:
        inner.train_from_iterator(texts, trainer)
    except Exception as error:  # the library raises plain Exception, for unigram with more letters than tokens
        raise ConfigError(
            f"a {kind} tokenizer of {vocabulary} tokens cannot be learned from these texts ({error}). Make the "
            "vocabulary larger, or use bpe, which knows all letters."
        ) from error
    made = TextTokenizer(_canonical(json.loads(inner.to_str())), "the tokenizer that was learned")
    if made.vocabulary > vocabulary:
        raise ConfigError(
            f"the texts have so many different letters that {kind} needs {made.vocabulary} tokens, not {vocabulary}. "
            "Make the vocabulary larger, or use bpe, which knows all letters."
        )
    return made


def _letters(inner: Any, texts: Sequence[str], most: int) -> tuple[list[str], list[str]]:
    """Return the `most` most frequent letters, sorted, and those of them that stand inside words, with `##`."""
    words = Counter(word for text in texts for word in inner.normalizer.normalize_str(text).split())
    count: Counter[str] = Counter()
    inside: set[str] = set()
    for word, times in words.items():
        for piece, _ in inner.pre_tokenizer.pre_tokenize_str(word):
            for letter in piece:
                count[letter] += times
            inside.update(piece[1:])
    kept = sorted(sorted(count, key=lambda letter: (-count[letter], letter))[: max(1, most)])
    return kept, [f"##{letter}" for letter in kept if letter in inside]


def _canonical(told: dict[str, Any]) -> str:
    """Return a learned tokenizer's rules with nothing special but `SPECIAL`, and unigram's tokens sorted."""
    told["added_tokens"] = told["added_tokens"][: len(SPECIAL)]
    if told["model"]["type"] == "Unigram":
        found = told["model"]["vocab"]
        told["model"]["vocab"] = found[: len(SPECIAL)] + sorted(found[len(SPECIAL) :])
    return json.dumps(told, ensure_ascii=False, separators=(",", ":"))


def read_tokenizer(path: str | Path) -> TextTokenizer:
    """Read a tokenizer from `tokenizer.json`, or a folder (of transformers, too) or run that holds one.

    Raises:
        CheckpointError: when there is none, or it cannot be read.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        found = [place / name for name in _FILES if (place / name).is_file()]
        if not found and any((place / name).is_file() for name in _SLOW_FILES):
            return TextTokenizer(_converted(place), f"'{place}'")
        if not found:
            raise CheckpointError(f"the folder '{place}' holds no tokenizer.json.")
        place = found[0]
    try:
        text = place.read_text(encoding="utf-8")
        json.loads(text)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{place}' cannot be read as a tokenizer: {error}.") from error
    return TextTokenizer(text, f"'{place}'")


def _converted(folder: Path) -> str:
    """Return the rules of a folder with the files of an older tokenizer."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtra("transformers", "text", f"the tokenizer of '{folder}'") from error
    try:
        loaded: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        return str(loaded.backend_tokenizer.to_str())
    except Exception as error:  # the library raises many kinds
        raise CheckpointError(f"the tokenizer of '{folder}' cannot be read: {error}.") from error
