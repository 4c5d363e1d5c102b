"""What a run of text read: a few rows of its first batch, back in words, for the report."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from imprint.backbones.text_tokenizer import TextTokenizer, read_tokenizer
from imprint.core.errors import ImprintError
from imprint.viz.page import Section, table, text
from imprint.viz.run_folder import Absent, RunFolder

ROWS = 8
_LONGEST = 600
PREFIX = "tokens:"
"""Of the names of token rows in samples/views.safetensors."""


def text_sections(run: RunFolder) -> list[Section]:
    """Return the rows as text, with how the tokenizer cuts the first of them; nothing for runs without text."""
    found = run.samples("views")
    if isinstance(found, Absent):
        return []
    rows = {k.removeprefix(PREFIX): v.numpy() for k, v in found.items() if k.startswith(PREFIX) and v.ndim == 2}
    rows = {name: ids for name, ids in rows.items() if ":" not in name}
    if not rows:
        return []
    try:
        tokenizer = read_tokenizer(run.path / "tokenizer.json")
    except ImprintError as error:
        return [Section("text", "Text", reason=str(error))]
    about = (
        f"Rows of the first batch, made of tokens and back; the tokenizer knows {tokenizer.vocabulary:,}. Special "
        "tokens stand in brackets."
    )
    parts = [f'<p class="about">{text(about)}</p>']
    for name, ids_BL in rows.items():
        lines = [(int((ids >= 0).sum()), readable(ids, tokenizer)) for ids in ids_BL[:ROWS]]
        parts.append(table(("Tokens", name), lines, numeric=(0,)))
        pieces = " · ".join(tokenizer.token(int(i)) for i in ids_BL[0][:40] if i >= 0)
        parts.append(f'<p class="about">The first row in tokens: {text(pieces)}</p>')
    return [Section("text", "Text", "".join(parts))]


def readable(ids_L: npt.NDArray[np.int64], tokenizer: TextTokenizer) -> str:
    """Return a row of tokens as text; special tokens stay, padding goes, a long row loses its end."""
    special = {i for i in vars(tokenizer.special).values() if i is not None}
    words: list[str] = []
    run: list[int] = []
    for i in [*(int(i) for i in ids_L if i >= 0), -1]:
        if i >= 0 and i not in special:
            run.append(i)
            continue
        if run:
            words.append(tokenizer.decode(run).strip())
            run = []
        if i >= 0:
            words.append(tokenizer.token(i))
    line = " ".join(words)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."
