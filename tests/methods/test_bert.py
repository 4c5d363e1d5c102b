"""BERT's two losses, its static masks and its two stages, against the paper."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from imprint.backbones.load import load_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress, Steps
from imprint.core.rng import seed_of
from imprint.data.corpus import Corpus
from imprint.methods.bert import BERT, BERTConfig
from imprint.methods.roberta import RoBERTa, RoBERTaConfig
from imprint.recipes.book import stages_of
from imprint.train.entry import pretrain_run

T = Progress(0, 100, 5)
CONFIG = BERTConfig(vocabulary=60, length=32)


@pytest.fixture
def method(mlm):
    """Make the method with changed settings, always with the same weights."""

    def make(**changes):
        torch.manual_seed(0)
        return BERT(dataclasses.replace(CONFIG, **changes), mlm.encoder("bert")).train()

    return make


def test_both_losses_are_those_of_the_whole_logits(method, mlm):
    net, batch = method(), mlm.batch_of("next")
    out = net(batch, T)
    masked = net.masker(batch.tokens["text"], batch.index_B, seed_of("bert", 0))
    hidden = net.backbone(masked.ids_BL, batch.tokens["text:segment"])
    logits = net.head(hidden) @ net.backbone.token_embedding.T + net.head.bias
    chosen = logits.gather(1, masked.places_BP[..., None].expand(-1, -1, 60))[masked.valid_BP]
    expected = F.cross_entropy(chosen, masked.targets_BP[masked.valid_BP])
    assert torch.allclose(out.metrics["bert/masked"], expected, rtol=1e-5)
    pair = F.cross_entropy(net.pair(hidden), batch.tokens["text:label"])
    assert torch.allclose(out.loss, expected + pair, rtol=1e-5)
    assert torch.allclose(method(next_sentence=False)(batch, T).loss, expected, rtol=1e-5)


def test_masks_are_those_of_the_copy(method, mlm):
    net, batch = method(copies=3), mlm.batch_of("next")
    seen = []
    for epoch in range(6):
        net(batch, T.at(epoch * 5))
        moments = [net(batch, T.at(epoch * 5 + k)).loss.item() for k in range(5)]
        assert len(set(moments)) == 1  # every step of an epoch asks the same of a row
        seen.append(moments[0])
    assert seen[:3] == seen[3:] and len(set(seen)) == 3


def test_padding_is_invisible(method, mlm):
    net, batch = method().eval(), mlm.batch_of("next")
    ids, segment = batch.tokens["text"], batch.tokens["text:segment"]
    short = ids[:1, : int((ids[0] >= 0).sum())]
    alone = net.backbone(short, segment[:1, : short.shape[1]])
    assert short.shape[1] < ids.shape[1]
    torch.testing.assert_close(net.backbone(ids, segment)[:1, : short.shape[1]], alone, rtol=1e-4, atol=1e-5)
    other = segment.masked_fill(ids < 0, 1)
    assert torch.equal(net.backbone(ids, segment)[ids >= 0], net.backbone(ids, other)[ids >= 0])


def test_the_decoder_is_the_embedding_and_learns_from_both_sides(method, mlm):
    net = method()
    shapes = [tuple(p.shape) for p in net.parameters()]
    assert shapes.count((60, 32)) == 1
    names = [n for n, p in net.named_parameters() if p is net.backbone.token_embedding]
    assert len(names) == 1
    net(mlm.batch_of("next"), T).loss.backward()
    # Tokens that no row shows get a gradient too, from the softmax.
    assert net.backbone.token_embedding.grad.abs().sum(1).gt(0).all()
    groups = {g.name: g for g in net.param_groups()}
    assert names[0] in groups["decay"].names and "head.bias" in groups["no_decay"].names


def test_judging_asks_the_same_at_every_step_and_leaves_the_special_tokens(method, mlm):
    net, batch = method().eval(), mlm.batch_of("next")
    nats, tokens = net.judge(batch, T)
    again, _ = net.judge(batch, T.at(17))
    places = net.judged_places(batch)
    assert torch.equal(nats, again) and torch.equal(batch.tokens["text"][places], tokens)
    assert tokens.min() >= 5 and nats.shape == tokens.shape and not nats.requires_grad
    part, _ = net.judge(batch.part(4, 8), T)
    rows = torch.arange(16)[:, None].expand_as(places)[places]
    torch.testing.assert_close(part, nats[(rows >= 4) & (rows < 8)], rtol=1e-4, atol=1e-5)


def test_long_rows_go_on_with_the_short_ones_weights(method, mlm):
    first = method()
    second = BERT(dataclasses.replace(CONFIG, length=48), mlm.encoder("bert", context=48))
    before = second.backbone.state_dict()["network.embeddings.position_embeddings.weight"].clone()
    second.inherit(first)
    ids = mlm.batch_of("next").tokens["text"]
    first.eval(), second.eval()
    assert torch.equal(first.backbone(ids), second.backbone(ids))
    assert torch.equal(first.pair.linear.weight, second.pair.linear.weight)
    assert torch.equal(first.head.bias, second.head.bias)
    after = second.backbone.state_dict()["network.embeddings.position_embeddings.weight"]
    assert torch.equal(after[32:], before[32:]) and not torch.equal(after[:32], before[:32])
    with pytest.raises(ConfigError, match="other shapes"):
        BERT(CONFIG, mlm.encoder("bert", embed_dim=16)).inherit(first)
    with pytest.raises(ConfigError, match="how to start from"):
        first.inherit(RoBERTa(RoBERTaConfig(vocabulary=60, length=32), mlm.encoder("bert")))


def test_another_tokenizer_is_refused_and_its_special_tokens_are_taken(method, mlm):
    first, second = method(), method()
    first.tokenized_by(mlm.tokenizer(("a", "dog", "barks")))
    second.tokenized_by(mlm.tokenizer(("the", "cat", "sleeps")))
    with pytest.raises(ConfigError, match="another tokenizer"):
        second.inherit(first)
    assert first.encoder.tokenizer is first.backbone.tokenizer is not None
    own = first.encoder.tokenizer
    assert first.masker.mask_id == own.special.mask
    assert first.masker.random_R.tolist() == own.ordinary.tolist()
    assert first.masker.ordinary_K.nonzero().flatten().tolist() == own.ordinary.tolist()


def test_networks_for_images_and_wrong_settings_are_refused(method, mlm):
    with pytest.raises(ConfigError, match="text:bert"):
        BERT(CONFIG, mlm.encoder("gpt"))
    for bad in ({"mask_share": 0.0}, {"replaced": 0.8, "kept": 0.3}, {"max_predictions": 0}):
        with pytest.raises(ConfigError):
            method(**bad)


def test_two_stages_are_one_run_with_one_tokenizer(tmp_path):
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(40)]
    corpus = Corpus.of(
        ("\n".join(" ".join(rng.choice(words, 6)) + "." for _ in range(9)) for _ in range(40)), "documents"
    )
    (short,) = stages_of("bert/debug")
    short = dataclasses.replace(short, stage="short rows", length=Steps(2), workers=1, device="cpu")
    long = dataclasses.replace(
        short, stage="long rows", start="../stage-1", method=dataclasses.replace(short.method, length=48)
    )
    run = pretrain_run((short, long), tmp_path / "run", source=corpus)
    assert run.finished
    stages = [tmp_path / "run" / f"stage-{n}" for n in (1, 2)]
    assert len({(stage / "tokenizer.json").read_bytes() for stage in stages}) == 1
    first, second = (load_encoder(str(stage)) for stage in stages)
    assert (first.context, second.context) == (32, 48) and second.tokenizer is not None
    # Two steps at 1e-3 move a weight by 2e-3 at most: the second stage began where the first one ended.
    assert (first.token_embedding - second.token_embedding).abs().max() < 2.5e-3


def test_paper_schedules_and_sizes(mlm):
    first, second = stages_of("bert/paper")
    assert (first.length.n, second.length.n) == (900_000, 100_000)
    assert (first.method.length, second.method.length) == (128, 512)
    rate = first.optim.lr.schedule(256)
    t = Progress(0, 900_000, 1000)
    assert rate(t.at(10_000)) == pytest.approx(1e-4)
    assert rate(t.at(899_999)) == pytest.approx(second.optim.lr.peak(256), rel=1e-3)
    assert second.start == "../stage-1" and second.encoder == first.encoder
    with torch.device("meta"):
        sizes = mlm.encoder("bert", vocabulary=30_522, context=512, embed_dim=768, depth=12, num_heads=12)
        base = BERT(BERTConfig(vocabulary=30_522, length=512), sizes)
    width, inner = 768, 3072
    network = (30_522 + 512 + 2) * width + 2 * width
    network += 12 * (4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width)
    assert sum(p.numel() for p in base.backbone.parameters()) == network == 108_891_648
    heads = (width * width + width + 2 * width + 30_522) + (width * width + width + 2 * width + 2)
    assert sum(p.numel() for p in base.parameters()) == network + heads  # 110 million
