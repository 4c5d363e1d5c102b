"""What a method wants of text, as data; and how a run's texts are cut into tokens. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from imprint.core.errors import ConfigError

Packing = Literal["captions", "packed", "documents", "next", "order"]


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Rows of tokens that a method reads from `Batch.tokens[name]`, int64 (B, L), -1 where there is no token.

    Attributes:
        name: key in `Batch.tokens`.
        length: most tokens of a row, special ones included.
        packing: what a row holds.

            - `captions`: start token, one caption of the image, end token; cut to `length`, the end token stays.
            - `packed`: text of one document after another, an end token after each, cut every `length` tokens
              (RoBERTa's FULL-SENTENCES, arXiv 1907.11692, Sec. 4.2; GPT).
            - `documents`: the same without crossing from one document into the next (DOC-SENTENCES).
            - `next`: [CLS] a [SEP] b [SEP], b follows a or is of another document (BERT, arXiv 1810.04805, App. A.2).
            - `order`: the same, b follows a or the two are swapped (ALBERT, arXiv 1909.11942, Sec. 3.1).

            The last two add `<name>:segment` (B, L), 0 for a and 1 for b, and `<name>:label` (B,): 0 as in the text, 1
            not so.
        start: begin each row of `packed` and `documents` with the start token.
        short: share of the rows of `next` and `order` that are made shorter than they could be (BERT's public code:
            0.1).
        copies: times the documents are cut anew, by turns from epoch to epoch (`next` and `order`; BERT's public code
            makes 10 copies).
    """

    name: str = "text"
    length: int
    packing: Packing
    start: bool = False
    short: float = 0.1
    copies: int = 10

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.length < 8:
            raise ConfigError(f"rows of {self.length} tokens are too short to say anything; use at least 8.")
        if not 0.0 <= self.short <= 1.0 or self.copies < 1:
            raise ConfigError(f"short must lie in [0, 1] and copies be at least 1, got {self.short} and {self.copies}.")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How a run's texts become tokens.

    Attributes:
        tokenizer: local `tokenizer.json`, or a folder or run that holds one; None learns one on the training texts.
        kind: of a tokenizer that is learned: `bpe` (bytes, no unknown text), `wordpiece` or `unigram`.
        vocabulary: most tokens of a tokenizer that is learned.
        lowercase: whether a tokenizer that is learned folds case.
        held_out: share of the documents, or of the images of pairs, that is kept from training for the online probe
            when `data.val` is not given; 0 keeps none.
        column: field of JSON lines, or column of a table, with the text (or the captions); None finds it.
        document: what one document is in plain text files: `file`, `blank` (a blank line ends it), `heading` (a line
            such as ` = Title = `, as in WikiText, begins it), or `line`.
    """

    tokenizer: str | None = None
    kind: Literal["bpe", "wordpiece", "unigram"] = "bpe"
    vocabulary: int = 8192
    lowercase: bool = False
    held_out: float = 0.05
    column: str | None = None
    document: Literal["file", "blank", "heading", "line"] = "blank"

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0.0 <= self.held_out < 1.0:
            raise ConfigError(f"held_out {self.held_out} must lie in [0, 1).")
