"""Documents cut into sentences: at the ends of lines, and inside a line after closing punctuation."""

from __future__ import annotations

import re

_ENDS = re.compile(r"\n+|(?<=[.!?…])\s+|(?<=[.!?…][\"'”’»)\]])\s+|(?<=[。！？])(?![」』”’])|(?<=[。！？][」』”’])")  # noqa: RUF001


def sentences_of(text: str) -> list[str]:
    """Return the sentences of a document, in order, without empty ones.

    A sentence ends with its line, or inside a line after `.`, `!`, `?` or an ellipsis (a closing quote or bracket may
    follow) and white space, or after a Chinese or Japanese full stop. "Mr. Smith" is cut as well: what BERT and ALBERT
    need are pieces of text that follow each other, not grammar.
    """
    return [part for piece in _ENDS.split(text) if (part := piece.strip())]
