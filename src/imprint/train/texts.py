"""The texts of a run: opened, parted from what is held out, and cut into tokens by the run's own tokenizer."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from imprint.backbones.stored import write_aside
from imprint.backbones.text_tokenizer import TextTokenizer, read_tokenizer, train_tokenizer
from imprint.core.errors import ConfigError
from imprint.core.rng import seed_of
from imprint.data.caption_tokens import TokenizedPairs
from imprint.data.corpus import Corpus, open_corpus
from imprint.data.pairs import PairSource, open_pairs
from imprint.data.sources import Source
from imprint.data.texts import TextConfig
from imprint.data.token_rows import open_rows
from imprint.data.token_stream import pieces_of
from imprint.dist.collectives import barrier
from imprint.dist.world import World
from imprint.methods.catalog import method_class
from imprint.train.config import RunConfig

log = logging.getLogger(__name__)

LEARN_FROM = 100 << 20
"""Bytes of text that a tokenizer is learned from at most."""
TOKENIZER = "tokenizer.json"
"""In the run folder: the tokenizer, written before the first step and read by whoever resumes."""

Readable = PairSource | Corpus


@dataclass(frozen=True)
class Reading:
    """What a run reads.

    Attributes:
        tokenizer: the run's.
        train: pairs or documents to learn from.
        held: those kept from training, or None.
        rows: `train` in tokens, as the method declared them.
        held_rows: `held` in tokens, or None.
    """

    tokenizer: TextTokenizer
    train: Readable
    held: Readable | None
    rows: Source
    held_rows: Source | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out of pairs, or cut, a sentence each, for the log and the report; () for documents."""
        if not isinstance(self.train, PairSource) or not isinstance(self.rows, TokenizedPairs):
            return ()
        out, told = self.train.counted, []
        if out.empty:
            told.append(f"{out.empty} empty captions are left out, and with them {out.bare} images that have no other")
        if out.missing:
            told.append(
                f"{out.missing} images are not there and are left out with their {out.missing_captions} captions"
            )
        if self.rows.cut:
            share = f"{self.rows.cut} of {len(self.train.captions)}"
            told.append(f"{share} captions are longer than {self.rows.texts.length} tokens and lose their end")
        return tuple(told)


def open_words(words: Sequence[str], takes: str, text: TextConfig, bad_limit: float = 0.05) -> Readable:
    """Open images with captions (`takes` "pairs") or documents.

    Args:
        words: SRC strings.
        takes: "pairs" or "text".
        text: how texts become tokens.
        bad_limit: share of the lines of text that may be broken, and of the images of pairs that may be missing; they
            are left out and named in a warning.

    Raises:
        ConfigError: for several files of pairs.
        DataError: when they cannot be opened, or too much is broken or missing.
    """
    if takes == "text":
        return open_corpus(words, column=text.column, document=text.document, bad_limit=bad_limit)
    if len(words) != 1:
        raise ConfigError(
            f"one file of captions is needed, or one pattern of shards, got {len(words)}: join them into one."
        )
    pairs = open_pairs(words[0], caption_column=text.column, drop_missing=True)
    out = pairs.counted
    if out.missing > bad_limit * (len(pairs) + out.missing):
        return open_pairs(words[0], caption_column=text.column)  # says which
    if out.missing or out.empty or out.bare:
        log.warning(
            "'%s': left out %d images that are not there, %d without a caption, and %d empty captions",
            words[0], out.missing, out.bare, out.empty,
        )  # fmt: skip
    return pairs


def read_texts(config: RunConfig, source: Source, folder: Path, world: World) -> tuple[RunConfig, Reading | None]:
    """Return the configuration with the vocabulary filled in, and the run's texts; None for methods without text.

    Every process must call it: the main one makes the tokenizer, the others read it.

    Raises:
        ConfigError: for a source without text, or a vocabulary smaller than the tokenizer's.
    """
    texts = method_class(config.name).texts(config.method)
    if texts is None:
        return config, None
    if not isinstance(source, (PairSource, Corpus)):
        raise ConfigError(
            f"{config.name} learns from text, and '{source.spec}' has none. Give "
            + (
                "a file of captions with its images (FILE or FILE:IMAGES)."
                if texts.packing == "captions"
                else "files of text."
            )
        )
    settings = config.data.text or TextConfig()
    train, held = _parted(config, settings, source)
    if world.main and not (folder / TOKENIZER).is_file():
        made = _made(settings, train, _earlier(config, folder))
        folder.mkdir(parents=True, exist_ok=True)
        write_aside(folder / TOKENIZER, made.json.encode())
    barrier()
    tokenizer = read_tokenizer(folder / TOKENIZER)
    config = _with_vocabulary(config, tokenizer)

    def rows(part: Readable) -> Source:
        if isinstance(part, PairSource):
            return TokenizedPairs(part, tokenizer, texts)
        return open_rows(part, tokenizer, texts, seed=config.seed)

    # The main process first, so that the others find the tokens of a large corpus in the cache.
    first = rows(train) if world.main else None
    barrier()
    return config, Reading(tokenizer, train, held, first or rows(train), None if held is None else rows(held))


def stored_tokenizer(folder: Path) -> TextTokenizer | None:
    """Return the tokenizer of a run, or None for a run without text."""
    return read_tokenizer(folder / TOKENIZER) if (folder / TOKENIZER).is_file() else None


def learning_texts(part: Readable, limit: int = LEARN_FROM) -> Iterator[str]:
    """Yield what a tokenizer is learned from: all captions or documents or, beyond `limit` bytes, a part of them.

    The part is spread evenly: every second, third, ... caption, document, or piece of a long document.
    """
    packed, texts = (
        (part.captions.packed, iter(part.captions)) if isinstance(part, PairSource) else (part.packed, part.documents())
    )
    pieces = (piece for text in texts for piece in pieces_of(text))
    yield from islice(pieces, 0, None, max(1, -(-packed.blob.nbytes // limit)))


def _parted(config: RunConfig, settings: TextConfig, source: Readable) -> tuple[Readable, Readable | None]:
    """Return what is trained on and what is held out: `data.val`, or a share of the documents (of the images)."""
    if config.data.val is not None:
        takes = "pairs" if isinstance(source, PairSource) else "text"
        return source, open_words((config.data.val,), takes, settings, config.data.bad_limit)
    if config.probe_every is None or not 0 < round(settings.held_out * len(source)) < len(source):
        return source, None
    train, held = source.split(settings.held_out, seed_of(config.seed, "held-out"))
    return train, held


def _earlier(config: RunConfig, folder: Path) -> TextTokenizer | None:
    """Return the tokenizer of the run that this one starts from: its weights know these tokens and no others."""
    if config.start is None:
        return None
    place = folder / Path(config.start).expanduser()
    has = any((place / name).is_file() for name in (TOKENIZER, "encoder.tokenizer.json"))
    return read_tokenizer(place) if has else None


def _made(settings: TextConfig, train: Readable, earlier: TextTokenizer | None) -> TextTokenizer:
    if settings.tokenizer is not None:
        return read_tokenizer(settings.tokenizer)
    if earlier is not None:
        return earlier
    return train_tokenizer(
        learning_texts(train), settings.kind, vocabulary=settings.vocabulary, lowercase=settings.lowercase
    )


def _with_vocabulary(config: RunConfig, tokenizer: TextTokenizer) -> RunConfig:
    asked = int(getattr(config.method, "vocabulary", 0))
    if asked == 0:
        changes: dict[str, int] = {"vocabulary": tokenizer.vocabulary}
        return dataclasses.replace(config, method=dataclasses.replace(config.method, **changes))
    if asked < tokenizer.vocabulary:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocabulary} tokens and --method.vocabulary is {asked}: leave it out (0 "
            "takes the tokenizer's), or learn a smaller tokenizer (--data.text.vocabulary)."
        )
    return config
