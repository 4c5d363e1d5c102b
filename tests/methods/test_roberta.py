"""RoBERTa's loss, its dynamic masks and its rows, against the paper."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.core.rng import seed_of
from imprint.data.corpus import Corpus
from imprint.data.token_rows import open_rows
from imprint.methods.roberta import RoBERTa, RoBERTaConfig
from imprint.recipes.book import stages_of

T = Progress(0, 100, 5)
CONFIG = RoBERTaConfig(vocabulary=60, length=32)


@pytest.fixture
def method(mlm):
    """Make the method with changed settings, always with the same weights."""

    def make(**changes):
        torch.manual_seed(0)
        return RoBERTa(dataclasses.replace(CONFIG, **changes), mlm.encoder("bert")).train()

    return make


def test_the_loss_is_that_of_the_whole_logits(method, mlm):
    net, batch = method(), mlm.batch_of("packed")
    t = T.at(7)
    masked = net.masker(batch.tokens["text"], batch.index_B, seed_of("roberta", "dynamic", 7))
    logits = net.head(net.backbone(masked.ids_BL)) @ net.backbone.token_embedding.T + net.head.bias
    places = torch.zeros_like(masked.ids_BL, dtype=torch.bool).scatter(1, masked.places_BP, masked.valid_BP)
    out = net(batch, t)
    assert torch.allclose(out.loss, F.cross_entropy(logits[places], batch.tokens["text"][places]), rtol=1e-5)
    right = (logits[places].argmax(1) == batch.tokens["text"][places]).float().mean()
    assert out.metrics["roberta/accuracy"].item() == pytest.approx(right.item(), abs=1e-6)


def test_dynamic_masks_differ_at_every_step_and_static_ones_come_back(method, mlm):
    batch = mlm.batch_of("packed")
    dynamic = [method()(batch, T.at(step)).loss.item() for step in range(6)]
    assert len(set(dynamic)) == 6
    static = [method(masks="static", copies=2)(batch, T.at(step)).loss.item() for step in range(20)]
    assert static[0] == static[4] == static[10] != static[5] == static[15] and len(set(static)) == 2


def test_a_row_of_padding_changes_nothing(method, mlm):
    net, batch = method().eval(), mlm.batch_of("packed")
    whole = net(batch, T).loss
    ids = batch.tokens["text"].clone()
    ids[3] = -1
    gone = dataclasses.replace(batch, tokens={"text": ids})
    kept = torch.arange(16) != 3
    rest = dataclasses.replace(batch, tokens={"text": batch.tokens["text"][kept]}, index_B=batch.index_B[kept])
    torch.testing.assert_close(net(gone, T).loss, net(rest, T).loss, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(whole) and not torch.equal(net(gone, T).loss, whole)
    nothing = dataclasses.replace(batch, tokens={"text": torch.full_like(ids, -1)})
    assert net(nothing, T).loss.item() == 0.0


def test_rows_are_begun_by_the_start_token_and_cross_documents_or_not(mlm):
    tok = mlm.tokenizer([f"w{i}" for i in range(20)])
    corpus = Corpus.of((" ".join(f"w{i % 20}" for i in range(n)) for n in (5, 40, 9)), "documents")
    for rows in ("packed", "documents"):
        texts = RoBERTa.texts(dataclasses.replace(CONFIG, rows=rows))
        source = open_rows(corpus, tok, texts, seed=0)
        ids = source.tokens(0, 0, np.arange(len(source)))["text"]
        assert (ids[:, 0] == tok.special.start).all()
        ends = (ids == tok.special.end) & (np.arange(32) < (ids >= 0).sum(1, keepdims=True) - 1)
        assert ends.any() == (rows == "packed")


def test_settings_and_networks_are_checked(method, mlm):
    with pytest.raises(ConfigError, match="copies"):
        method(copies=0)
    with pytest.raises(ConfigError, match="mask_share"):
        method(mask_share=1.0)
    with pytest.raises(ConfigError, match="text:bert"):
        RoBERTa(CONFIG, mlm.encoder("gpt2"))
    clip_like = mlm.tokenizer(("a", "b"))
    clip_like.special = dataclasses.replace(clip_like.special, mask=None)
    with pytest.raises(ConfigError, match="no mask token"):
        method().tokenized_by(clip_like)


def test_paper_settings():
    (base,), (large,) = stages_of("roberta/paper"), stages_of("roberta/paper_large")
    assert base.optim.betas == (0.9, 0.98) and base.optim.eps == 1e-6 and base.batch_size == 8192
    t = Progress(0, 500_000, 1000)
    assert base.optim.lr.schedule(8192)(t.at(24_000)) == pytest.approx(6e-4)
    assert large.optim.lr.schedule(8192)(t.at(30_000)) == pytest.approx(4e-4)
    assert base.optim.lr.schedule(8192)(t.at(500_000)) == 0.0
    assert base.data.text.kind == "bpe" and base.data.text.vocabulary == 50_000
