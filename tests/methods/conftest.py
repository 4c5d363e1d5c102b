"""What tests of several methods share: rows of tokens, tokenizers and networks for masked language models."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.backbones.text_tokenizer import TextTokenizer, train_tokenizer
from imprint.data.batch import Batch

VOCABULARY, LENGTH = 60, 32


def encoder(kind, vocabulary=VOCABULARY, context=LENGTH, **arch):
    """A network of two narrow layers without dropout."""
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "dropout": 0.0} | arch
    return build_encoder(f"text:{kind}", image_size=32, vocabulary=vocabulary, context=context, arch=sizes)


def batch_of(packing, rows=16, seed=1):
    """Rows in the shapes of a packing; ids as of a tokenizer that was learned here."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (rows, LENGTH), generator=generator)
    ids[:, 0] = 2
    tokens = {"text": ids}
    if packing in ("next", "order"):
        size = torch.randint(LENGTH // 2, LENGTH - 2, (rows, 1), generator=generator)
        place = torch.arange(LENGTH)
        ids[place == size // 2] = 3
        ids[place == size - 1] = 3
        ids[place >= size] = -1
        tokens["text:segment"] = (place > size // 2).long()
        tokens["text:label"] = torch.randint(0, 2, (rows,), generator=generator)
    return Batch(tokens=tokens, index_B=torch.arange(rows))


def tokenizer(words, kind="wordpiece") -> TextTokenizer:
    """A tokenizer of at most VOCABULARY tokens."""
    return train_tokenizer([" ".join(words)] * 4, kind, vocabulary=VOCABULARY)


@pytest.fixture(scope="session")
def mlm():
    """The functions above."""
    return SimpleNamespace(encoder=encoder, batch_of=batch_of, tokenizer=tokenizer)
