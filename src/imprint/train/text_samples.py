"""How a causal network goes on with held-out text at the end of its run, kept for the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from imprint.backbones.generation import generate
from imprint.backbones.language_model import LanguageModel
from imprint.backbones.stored import write_aside
from imprint.data.sources import spread
from imprint.data.token_rows import TokenRows
from imprint.methods.base import Method
from imprint.train.texts import Reading

ROWS = 6
PROMPT, WRITTEN = 48, 64
TEMPERATURE, TOP_K = 0.8, 40


def write_continuations(folder: Path, method: Method, reading: Reading | None) -> None:
    """Write `samples/text.json` for a run of a causal network: beginnings of rows, drawn continuations, the real ones.

    The rows are held-out ones where there are some. A row gives at most half of its tokens, `PROMPT` at most.
    """
    encoder = method.encoder
    if reading is None or not isinstance(encoder, LanguageModel) or not encoder.causal:
        return
    source = reading.rows if reading.held_rows is None else reading.held_rows
    if not isinstance(source, TokenRows):
        return
    ids_BL = source.tokens(0, 0, np.asarray(spread(len(source), ROWS)))[source.texts.name]
    head = min(PROMPT, ids_BL.shape[1] // 2)
    ids_BL = ids_BL[(ids_BL[:, :head] >= 0).all(1)]
    if not len(ids_BL):
        return
    training = method.training
    method.eval()
    drawn_BL = generate(
        encoder, torch.from_numpy(ids_BL[:, :head].copy()), WRITTEN, temperature=TEMPERATURE, top_k=TOP_K
    )
    method.train(training)
    decode = reading.tokenizer.decode
    lines = [
        {
            "prompt": decode(ids[:head]),
            "continuation": decode(drawn[head:].tolist()),
            "text": decode([i for i in ids[head : head + WRITTEN] if i >= 0]),
        }
        for ids, drawn in zip(ids_BL, drawn_BL, strict=True)
    ]
    told = {
        "held_out": reading.held_rows is not None,
        "temperature": TEMPERATURE,
        "top_k": TOP_K,
        "rows": lines,
    }
    write_aside(folder / "samples" / "text.json", (json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode())
