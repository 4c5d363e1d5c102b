"""What masked language models learn where it is known what there is to learn."""

import math

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.methods.albert import ALBERT, ALBERTConfig
from imprint.methods.bert import BERT, BERTConfig
from imprint.methods.roberta import RoBERTa, RoBERTaConfig

LENGTH, WORDS, STRIDES = 24, 20, 4


def progressions(rows: int, first: int) -> Batch:
    """Rows w, w + s, w + 2s ...: a token follows from two others, and has STRIDES successors."""
    generator = torch.Generator().manual_seed(first)
    start = torch.randint(0, WORDS, (rows, 1), generator=generator)
    stride = torch.randint(1, STRIDES + 1, (rows, 1), generator=generator)
    ids = 5 + (start + stride * torch.arange(LENGTH)) % WORDS
    return Batch(tokens={"text": ids}, index_B=torch.arange(first, first + rows))


def pairs(rows: int, first: int, kind: str) -> Batch:
    """[CLS] a [SEP] b [SEP]: the label is whether b is of another topic (`next`), or of the earlier one (`order`)."""
    generator = torch.Generator().manual_seed(first)
    label = torch.randint(0, 2, (rows, 1), generator=generator)
    topic = torch.randint(0, 2, (rows, 1), generator=generator) if kind == "next" else label
    word = torch.randint(0, WORDS // 2, (rows, LENGTH), generator=generator)
    behind = torch.arange(LENGTH) > LENGTH // 2
    ids = 5 + word + WORDS // 2 * torch.where(behind, topic ^ label if kind == "next" else 1 - topic, topic)
    ids[:, 0], ids[:, LENGTH // 2], ids[:, -1] = 2, 3, 3
    tokens = {"text": ids, "text:segment": behind.long().expand(rows, -1), "text:label": label[:, 0]}
    return Batch(tokens=tokens, index_B=torch.arange(first, first + rows))


def learned(method, batches, steps: int, rate: float = 2e-3):
    """Train on a new batch at each step; return the metrics of the last ten, averaged."""
    optimizer = torch.optim.AdamW(method.parameters(), rate, fused=True)
    late = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20)
        out = method(batches(step), Progress(step, steps, 10))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        late.append({name: float(value) for name, value in out.metrics.items()})
    return {name: sum(m[name] for m in late[-10:]) / 10 for name in late[0]}


def network(kind: str, vocabulary: int = 5 + WORDS):
    torch.manual_seed(0)
    arch = {"embed_dim": 48, "depth": 2, "num_heads": 4, "dropout": 0.0} | (
        {"embedding": 24} if kind == "albert" else {}
    )
    return build_encoder(f"text:{kind}", image_size=32, vocabulary=vocabulary, context=LENGTH, arch=arch)


def test_a_hidden_token_is_found_from_both_sides_where_its_neighbour_does_not_tell():
    method = RoBERTa(RoBERTaConfig(vocabulary=5 + WORDS, length=LENGTH), network("bert"))
    learned(method, lambda step: progressions(48, 48 * step), 250)
    nats, tokens = method.eval().judge(progressions(256, 10**6), Progress(0, 1, 1))
    assert tokens.unique().numel() == WORDS
    # Seen from one side alone, one of STRIDES tokens stands there, all as likely.
    assert nats.mean() < 0.7 * math.log(STRIDES)


@pytest.mark.parametrize("kind", ["next", "order"])
def test_what_belongs_together_is_told(kind):
    config = {"vocabulary": 5 + WORDS, "length": LENGTH}
    if kind == "next":
        method, name = BERT(BERTConfig(**config), network("bert")), "bert/next_accuracy"
    else:
        method, name = ALBERT(ALBERTConfig(**config), network("albert")), "albert/order_accuracy"
    before = float(method(pairs(256, 10**6, kind), Progress(0, 1, 1)).metrics[name])
    late = learned(method, lambda step: pairs(48, 48 * step, kind), 120 if kind == "next" else 240, 3e-3)
    assert before < 0.7 and late[name] > 0.95
