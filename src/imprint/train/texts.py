"""The texts of a run: opened, parted from what is held out, and cut into tokens by the run's own tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from imprint.data.token_rows import TokenRows
from imprint.dist.collectives import barrier
from imprint.dist.world import World
from imprint.methods.catalog import method_class
from imprint.train.config import RunConfig

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


def open_words(words: Sequence[str], takes: str, text: TextConfig) -> Readable:
    """Open images with captions (`takes` "pairs") or documents.

    Raises:
        ConfigError: for several files of pairs.
        DataError: when they cannot be opened.
    """
    if takes == "text":
        return open_corpus(words, column=text.column, document=text.document)
    if len(words) != 1:
        raise ConfigError(f"one file of captions is needed, got {len(words)}: join them into one.")
    return open_pairs(words[0], caption_column=text.column)


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
            + ("a file of captions with its images (FILE or FILE:IMAGES)." if source.pixels else "files of text.")
        )
    settings = config.data.text or TextConfig()
    train, held = _parted(config, settings, source)
    if world.main and not (folder / TOKENIZER).is_file():
        made = _made(settings, train)
        folder.mkdir(parents=True, exist_ok=True)
        write_aside(folder / TOKENIZER, made.json.encode())
    barrier()
    tokenizer = read_tokenizer(folder / TOKENIZER)
    config = _with_vocabulary(config, tokenizer)

    def rows(part: Readable) -> Source:
        if isinstance(part, PairSource):
            return TokenizedPairs(part, tokenizer, texts)
        return TokenRows(part, tokenizer, texts, seed=config.seed)

    return config, Reading(tokenizer, train, held, rows(train), None if held is None else rows(held))


def stored_tokenizer(folder: Path) -> TextTokenizer | None:
    """Return the tokenizer of a run, or None for a run without text."""
    return read_tokenizer(folder / TOKENIZER) if (folder / TOKENIZER).is_file() else None


def sentences(part: Readable) -> Iterator[str]:
    """Yield every caption, or every document."""
    yield from part.captions if isinstance(part, PairSource) else part.documents()


def _parted(config: RunConfig, settings: TextConfig, source: Readable) -> tuple[Readable, Readable | None]:
    """Return what is trained on and what is held out: `data.val`, or a share of the documents (of the images)."""
    if config.data.val is not None:
        takes = "pairs" if isinstance(source, PairSource) else "text"
        return source, open_words((config.data.val,), takes, settings)
    if config.probe_every is None or settings.held_out == 0.0 or round(settings.held_out * len(source)) < 1:
        return source, None
    train, held = source.split(settings.held_out, seed_of(config.seed, "held-out"))
    return train, held


def _made(settings: TextConfig, train: Readable) -> TextTokenizer:
    if settings.tokenizer is not None:
        return read_tokenizer(settings.tokenizer)
    return train_tokenizer(
        sentences(train), settings.kind, vocabulary=settings.vocabulary, lowercase=settings.lowercase
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
