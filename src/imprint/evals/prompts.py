"""Prompts for in-context learning: an instruction, demonstrations, a query; and which demonstrations a query gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from imprint.core.errors import DataError
from imprint.core.rng import key, permuted
from imprint.evals.language_tasks import Item, LanguageTask

QUESTION, ANSWER = "Q: ", "\nA:"
"""Around the questions of a task that has them (arXiv 2005.14165, App. G); texts to go on with stand bare."""

_JOINED = tuple(" \t\n.,;:!?)]}'\u2019\u201d\u2026")


@dataclass(frozen=True)
class Template:
    r"""How an item becomes text: `input_prefix` text `answer_prefix` answer.

    Attributes:
        instruction: before everything else, "" for none.
        input_prefix: before the text of an item; None is `Q: ` for questions and nothing for other texts.
        answer_prefix: between text and answer; None is a new line with `A:` for questions and nothing for other texts.
        separator: between demonstrations, and after the instruction.
    """

    instruction: str = ""
    input_prefix: str | None = None
    answer_prefix: str | None = None
    separator: str = "\n\n"

    def query(self, item: Item) -> str:
        """Return an item up to its answer."""
        before = (QUESTION if item.asked else "") if self.input_prefix is None else self.input_prefix
        return before + item.text + self.lead(item)

    def lead(self, item: Item) -> str:
        """Return what stands between the text of an item and its answer."""
        return (ANSWER if item.asked else "") if self.answer_prefix is None else self.answer_prefix

    def prompt(self, item: Item, shots: Sequence[Item]) -> str:
        """Return the instruction, the demonstrations with their answers and the item up to its answer."""
        parts = [self.instruction] if self.instruction else []
        parts += [joined(self.query(shot), shot.answer) for shot in shots]
        return self.separator.join([*parts, self.query(item)])


def joined(text: str, answer: str) -> str:
    """Return an answer behind a text, with a space between them unless either brings what stands for one."""
    if not text or text[-1].isspace() or answer.startswith(_JOINED):
        return text + answer
    return f"{text} {answer}"


def by_text(items: Sequence[Item]) -> dict[str, list[int]]:
    """Return where each text stands among items."""
    places: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        places.setdefault(item.text, []).append(i)
    return places


def demonstrations(
    pool: LanguageTask, query: Item, shots: int, seed: int, same: Mapping[str, Sequence[int]]
) -> list[Item]:
    """Return `shots` different items of the pool, the first drawn last: fewer shots are those nearest to the query.

    The draw is keyed by the seed and the query's text, so it depends on no other query; an item with the query's own
    text is never drawn (the pool may be the task itself).

    Args:
        pool: to draw from.
        query: what they are for.
        shots: how many.
        seed: of the draw.
        same: `by_text(pool.items)`.

    Raises:
        DataError: for a pool that is too small.
    """
    own = set(same.get(query.text, ()))
    if len(pool) - len(own) < shots:
        raise DataError(
            f"'{pool.spec}' has {len(pool) - len(own)} demonstrations for a query that is not to see itself, fewer "
            f"than --shots {shots}; give a larger file (--train), or fewer shots."
        )
    drawn = permuted(np.arange(min(len(pool), shots + len(own))), len(pool), key(seed, "shots", query.text))
    kept = [int(i) for i in drawn if int(i) not in own][:shots]
    return [pool.items[i] for i in reversed(kept)]
