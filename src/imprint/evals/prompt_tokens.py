"""Prompts as tokens: what a model is to score for each answer, and what is left out where the context is too short.

Shapes: N items, A answers of all items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imprint.backbones.causal import Request
from imprint.backbones.text_tokenizer import TextTokenizer
from imprint.core.errors import DataError
from imprint.evals.language_tasks import Item
from imprint.evals.prompts import Template, joined


@dataclass
class Prompted:
    """The prompts of all items with one number of demonstrations.

    Attributes:
        requests_A: one for each answer, item by item.
        prompts_N: the prompt of each item.
        used_N: demonstrations that fit.
        cut: items whose own text lost its beginning.
    """

    requests_A: list[Request]
    prompts_N: list[str]
    used_N: npt.NDArray[np.int64]
    cut: int = 0


def build_prompts(
    tokenizer: TextTokenizer, template: Template, items: Sequence[Item], shots: Sequence[Sequence[Item]], context: int
) -> Prompted:
    """Return the requests for every answer of every item after its demonstrations.

    A prompt begins with the token that ends a document. Where the longest answer of an item does not fit behind it,
    the demonstrations farthest from the query are left out; where none is left, the beginning of the text is.

    Raises:
        DataError: for an answer that is longer than the context.
    """
    low, high = np.zeros(len(items), dtype=np.int64), np.array([len(own) for own in shots], dtype=np.int64)
    requests: list[list[Request]] = [[] for _ in items]
    prompts = [""] * len(items)
    asked, tried = list(range(len(items))), high.copy()
    while asked:  # as many demonstrations as fit, found by halving; most items fit at once
        made = [template.prompt(items[i], shots[i][len(shots[i]) - int(tried[i]) :]) for i in asked]
        for i, prompt, own in zip(asked, made, tokenized(tokenizer, made, [items[i] for i in asked]), strict=True):
            fits = max(len(request.ids) for request in own) <= context
            if fits or tried[i] == 0:
                low[i], requests[i], prompts[i] = tried[i], own, prompt
            if not fits:
                high[i] = max(0, tried[i] - 1)
        asked = [i for i in asked if low[i] < high[i] or not requests[i]]
        tried = (low + high + 1) // 2
    cut = 0
    for i, own in enumerate(requests):
        longest = max(own, key=lambda request: len(request.ids))
        if len(longest.ids) <= context:
            continue
        if max(request.scored for request in own) >= context:
            raise DataError(
                f"an answer to '{items[i].text[:60]}' has {max(request.scored for request in own)} tokens, and the "
                f"model takes {context} with the prompt; leave the item out."
            )
        cut += 1
        requests[i] = [Request(request.ids[-context:], request.scored) for request in own]
    return Prompted([request for own in requests for request in own], prompts, low, cut)


def tokenized(tokenizer: TextTokenizer, prompts: Sequence[str], items: Sequence[Item]) -> list[list[Request]]:
    """Return requests for the answers of items behind their prompts.

    A space at the end of a prompt belongs to the answer, as tokenizers see it. Scored is what follows the tokens that
    the prompt alone begins with.
    """
    end = tokenizer.special.end
    heads = tokenizer.ids([prompt.rstrip(" ") for prompt in prompts])
    wholes = tokenizer.ids(
        [joined(p, answer) for p, item in zip(prompts, items, strict=True) for answer in item.answers]
    )
    found, at = [], 0
    for head, item in zip(heads, items, strict=True):
        own = []
        for whole in wholes[at : at + len(item.answers)]:
            both = min(len(head), len(whole) - 1)
            differ = np.flatnonzero(head[:both] != whole[:both])
            shared = int(differ[0]) if len(differ) else both
            own.append(Request([end, *whole.tolist()], len(whole) - shared))
        found.append(own)
        at += len(item.answers)
    return found
