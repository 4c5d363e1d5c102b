"""Tasks for language models, read from JSON lines: a text or a question, and answers to choose from or one to write."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from imprint.core.errors import DataError
from imprint.data.sources import digest

FORMAT = (
    'Lines look like {"question": "...", "choices": ["...", "..."], "answer": 0} or {"prompt": "...", "completion": '
    '"..."}'
)


@dataclass(frozen=True)
class Item:
    """One line of a task.

    Attributes:
        text: what is asked, or what the answer goes on with.
        asked: whether `text` is a question, so that a template of questions and answers fits.
        answers: the choices, or the one right completion.
        right: which of them is right.
    """

    text: str
    asked: bool
    answers: tuple[str, ...]
    right: int

    @property
    def answer(self) -> str:
        """The right answer."""
        return self.answers[self.right]


@dataclass(frozen=True)
class LanguageTask:
    """A task: N items of one kind.

    Attributes:
        items: in the order of the file.
        spec: the file.
        choice: whether answers are chosen; otherwise they are written.
    """

    items: tuple[Item, ...]
    spec: str
    choice: bool
    labels = None
    classes = ()

    def __len__(self) -> int:
        """Return N."""
        return len(self.items)

    @cached_property
    def fingerprint(self) -> str:
        """Digest over all items."""
        return digest(*(json.dumps((i.text, i.asked, i.answers, i.right)) for i in self.items))


def open_task(spec: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | LanguageTask) -> LanguageTask:
    """Read a task from `.jsonl` files, an object a line.

    What stands before the answer: `prompt` or `context` (a text the answer goes on with), `question`, or `context` and
    `question`. With `choices` (a list of texts) `answer` is the number of the right one, from 0, or its text, or its
    letter (A, B ...); without them `completion` (or `answer`) is the text to write.

    Raises:
        DataError: for a file that cannot be read, a line that is no such object (naming it), or lines of both kinds.
    """
    if isinstance(spec, LanguageTask):
        return spec
    files = [spec] if isinstance(spec, (str, os.PathLike)) else list(spec)
    shown = ", ".join(os.fspath(file) for file in files)
    items: list[Item] = []
    kinds: dict[bool, str] = {}
    for file in files:
        for place, line in _lines(Path(file).expanduser()):
            item, choice = _item(line, place)
            kinds.setdefault(choice, place)
            items.append(item)
    if len(kinds) > 1:
        raise DataError(f"answers are chosen at {kinds[True]} and written at {kinds[False]}; a task is of one kind.")
    if not items:
        raise DataError(f"the task '{shown}' has no lines. {FORMAT}.")
    return LanguageTask(tuple(items), shown, next(iter(kinds)))


def _lines(file: Path) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the task '{file}' cannot be read as UTF-8 text: {error}.") from error
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{place} is no JSON ({error}). {FORMAT}.") from error
        if not isinstance(value, Mapping):
            raise DataError(f"{place} is no JSON object. {FORMAT}.")
        found.append((place, value))
    return found


def _item(line: Mapping[str, Any], place: str) -> tuple[Item, bool]:
    parts = [_text(line[name], name, place) for name in ("prompt", "context", "question") if name in line]
    if not parts:
        raise DataError(f"{place} has no prompt, context or question. {FORMAT}.")
    text, asked = "\n".join(parts), "question" in line
    if "choices" in line:
        listed = line["choices"]
        if not isinstance(listed, list) or len(listed) < 2:
            raise DataError(f"{place}: choices must be a list of at least two texts.")
        choices = tuple(_text(choice, "a choice", place) for choice in listed)
        if "answer" not in line:
            raise DataError(f"{place} has choices and no answer. {FORMAT}.")
        return Item(text, asked, choices, _right(line["answer"], choices, place)), True
    written = line.get("completion", line.get("answer"))
    if written is None:
        raise DataError(f"{place} has neither choices nor a completion. {FORMAT}.")
    return Item(text, asked, (_text(written, "the completion", place),), 0), False


def _text(value: Any, name: str, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: {name} must be a text, got {value!r}.")
    return value


def _right(answer: Any, choices: Sequence[str], place: str) -> int:
    """Return the number of the right choice, told by number, text or letter."""
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str):
        if answer in choices:
            return choices.index(answer)
        letter = answer.strip().upper()
        if len(letter) == 1 and 0 <= ord(letter) - ord("A") < len(choices):
            return ord(letter) - ord("A")
    raise DataError(
        f"{place}: the answer {answer!r} is none of the {len(choices)} choices; give its number from 0, its text, or "
        "its letter."
    )
