import dataclasses
import math

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.methods.gpt import GPT, GPTConfig
from imprint.recipes.book import recipe

T = Progress(0, 10, 5)


def make(kind="gpt", **changes):
    torch.manual_seed(0)
    cfg = GPTConfig(vocabulary=60, length=12, **changes)
    arch = {"embed_dim": 32, "depth": 2, "num_heads": 2, "dropout": 0.0}
    return GPT(cfg, build_encoder(f"text:{kind}", image_size=32, arch=arch, vocabulary=60, context=12))


def batch_of(rows=4, short=0):
    ids = torch.randint(5, 60, (rows, 12), generator=torch.Generator().manual_seed(2))
    if short:
        ids[-1, short:] = -1
    return Batch(tokens={"text": ids}, index_B=torch.arange(rows))


def test_defaults_are_the_papers():
    texts = GPT.texts(GPTConfig())
    assert texts.length == 512 and texts.packing == "packed" and not texts.start
    assert GPT.texts(GPTConfig(crossing=False)).packing == "documents"
    paper = recipe("gpt/paper")
    assert paper.batch_size == 64 and paper.length.n == 100 and paper.encoder.name == "text:gpt"
    assert paper.optim.lr.peak(64) == 2.5e-4 and paper.optim.lr.warmup.n == 2000
    third = recipe("gpt/gpt3_small")
    rate = third.optim.lr.schedule(third.batch_size)
    at = [rate(Progress(step, 572_000, 1)) for step in (0, 715, 400_000, 500_000, 571_999)]
    assert at[0] == 0 and at[1] == pytest.approx(6e-4) and 6e-5 < at[2] < 6e-4
    assert at[3] == pytest.approx(6e-5) and at[4] == pytest.approx(6e-5)  # 260 of 300 billion tokens in, it stays


@pytest.mark.parametrize("kind", ["gpt", "gpt2"])
@pytest.mark.parametrize("short", [0, 5, 1])
def test_loss_is_that_of_the_tokens_one_by_one(kind, short):
    method, batch = make(kind).eval(), batch_of(short=short)
    nats, right = [], []
    for row in batch.tokens["text"]:
        for place in range(1, int((row >= 0).sum())):
            logits = method.encoder(row[None, :place])[0, -1] @ method.encoder.token_embedding.T
            nats.append(float(-logits.detach().log_softmax(-1)[row[place]]))
            right.append(int(logits.argmax() == row[place]))
    out = method(batch, T)
    assert float(out.loss.detach()) == pytest.approx(sum(nats) / len(nats), rel=1e-4)
    assert float(out.metrics["gpt/accuracy"]) == pytest.approx(sum(right) / len(right), abs=1e-6)
    found, tokens = method.judge(batch, T)
    assert found.tolist() == pytest.approx(nats, rel=1e-3)
    assert tokens.tolist() == [int(x) for row in batch.tokens["text"] for x in row[1:] if x >= 0]


def test_nothing_to_predict_costs_nothing():
    method, batch = make(), batch_of()
    batch.tokens["text"][:, 1:] = -1
    out = method(batch, T)
    out.loss.backward()
    assert float(out.loss.detach()) == 0.0 and method.encoder.token_embedding.grad.abs().sum() == 0


def test_an_undecided_network_is_at_log_k_and_learns():
    method = make("gpt2")
    torch.nn.init.zeros_(method.encoder.token_embedding)
    assert float(method(batch_of(), T).loss.detach()) == pytest.approx(math.log(60))
    method, optimizer = make("gpt2"), None
    optimizer = torch.optim.AdamW(method.parameters(), 3e-3)
    losses = []
    for _ in range(150):
        loss = method(batch_of(), T).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 3.9 and losses[-1] < 0.3  # four rows are soon known by heart


def test_two_processes_with_rows_of_different_lengths_are_one(monkeypatch):
    method, batch = make(), batch_of(8, short=3)
    whole = method(batch, T)
    halves = [batch.part(0, 4), batch.part(4, 8)]
    counts = [int((half.tokens["text"][:, 1:] >= 0).sum()) for half in halves]
    assert counts == [44, 35]
    monkeypatch.setattr("imprint.methods.gpt.all_reduce_mean", lambda own: own * 0 + sum(counts) / 2)
    outs = [method(half, T) for half in halves]
    torch.testing.assert_close(sum(out.loss for out in outs) / 2, whole.loss)
    accuracy = sum(out.metrics["gpt/accuracy"] for out in outs) / 2
    torch.testing.assert_close(accuracy, whole.metrics["gpt/accuracy"])


def test_gains_and_biases_are_not_decayed_and_embeddings_are():
    groups = {group.name: group for group in make().param_groups()}
    assert not groups["no_decay"].decay and all(p.ndim == 1 for p in groups["no_decay"].params)
    assert sum("embed" in name for name in groups["decay"].names) == 2


def test_the_tokenizer_is_kept_with_the_encoder():
    from imprint.backbones.text_tokenizer import train_tokenizer

    method, tokenizer = make(), train_tokenizer(["a b c"], vocabulary=270)
    method.tokenized_by(tokenizer)
    assert method.encoder.tokenizer is tokenizer


@pytest.mark.parametrize("name", ["resnet18", "text:bert"])
def test_encoders_that_see_what_comes_are_refused(name):
    more = {"vocabulary": 60, "context": 12} if name.startswith("text") else {}
    with pytest.raises(ConfigError, match="text:gpt or text:gpt2"):
        GPT(GPTConfig(), build_encoder(name, image_size=32, **more))


@pytest.mark.parametrize("name", ["paper", "gpt3_small", "small", "debug"])
def test_recipes_fit_together(name):
    made = recipe(f"gpt/{name}")
    assert made.data.text is not None and made.encoder.name.startswith("text:gpt")
    assert dataclasses.replace(made, seed=1).name == "gpt"
