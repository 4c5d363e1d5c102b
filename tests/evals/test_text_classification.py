"""Text classification: networks of both kinds learn a class from a word and keep their own weights."""

import copy

import numpy as np
import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.backbones.text_tokenizer import train_tokenizer
from imprint.core.errors import ConfigError, DataError
from imprint.data.labelled_texts import LabelledTexts
from imprint.evals.evaluate import evaluate
from imprint.evals.text_classification import TextClassificationConfig, TextClassifier, _collated, encoded

WORDS = "the a small old bird river house runs sings stands near under often slowly today".split()
SETTINGS = {"epochs": 20, "lr": 4e-3, "minibatch": 16, "dropout": 0.0, "cache": False, "device": "cpu"}


def sample(n: int, seed: int) -> LabelledTexts:
    """Texts about a red or a blue thing, the word anywhere."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for i in range(n):
        words = list(rng.choice(WORDS, 8))
        words.insert(int(rng.integers(0, 8)), ("red", "blue")[i % 2])
        texts.append(" ".join(words))
        labels.append(("warm", "cold")[i % 2])
    return LabelledTexts.of(texts, labels)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join([*WORDS, "red", "blue"])] * 3, "wordpiece", vocabulary=200)


def network(kind: str, tokenizer):
    torch.manual_seed(0)
    arch = {"embed_dim": 32, "depth": 1, "num_heads": 2, "dropout": 0.0, "embedding": 16}
    arch = arch if kind == "albert" else {k: v for k, v in arch.items() if k != "embedding"}
    model = build_encoder(f"text:{kind}", image_size=32, vocabulary=tokenizer.vocabulary, context=24, arch=arch)
    model.tokenizer = tokenizer
    return model.eval()


@pytest.mark.parametrize("kind", ["bert", "albert", "gpt", "gpt2"])
def test_every_kind_learns_and_the_given_network_stays(kind, tokenizer):
    model = network(kind, tokenizer)
    before = copy.deepcopy(model.state_dict())
    report = evaluate("text_classification", model, sample(256, 0), sample(100, 1), **SETTINGS)
    assert report.metrics["accuracy"].value > 90 and report.metrics["most_frequent_class"].value == 50
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    curve = report.details["train_loss"]
    assert len(curve) == 20 and curve[-1] < curve[0]


def test_a_frozen_network_trains_the_classifier_alone(tokenizer):
    model = network("bert", tokenizer)
    probe = TextClassifier(model, 2, TextClassificationConfig(frozen=True)).train()
    assert not probe.backbone.training and probe.linear.training
    assert {name.split(".")[0] for name, p in probe.named_parameters() if p.requires_grad} == {"pooler", "linear"}


def test_the_auxiliary_loss_is_that_of_the_next_tokens(tokenizer):
    model = network("gpt2", tokenizer)
    source = sample(4, 2)
    rows, _ = encoded(source, tokenizer, 24)
    ids, segment = _collated(rows, np.arange(4), tokenizer.special.end, torch.device("cpu"))
    labels = torch.from_numpy(source.labels)
    both, alone = (
        TextClassifier(model, 2, TextClassificationConfig(lm_weight=w, dropout=0.0)).eval() for w in (0.5, 0.0)
    )
    alone.load_state_dict(both.state_dict())
    logits = model(ids) @ model.token_embedding.T
    seen = ids[:, 1:] >= 0
    nats = torch.nn.functional.cross_entropy(logits[:, :-1][seen], ids[:, 1:][seen])
    found = both.loss(ids, segment, labels) - alone.loss(ids, segment, labels)
    torch.testing.assert_close(found, 0.5 * nats, rtol=1e-5, atol=1e-6)


def test_pairs_are_cut_at_the_longer_text_and_segments_begin_behind_the_first(tokenizer):
    source = LabelledTexts.of(["red " * 20, "a"], ["x", "y"], ["blue bird", "the river"])
    rows, cut = encoded(source, tokenizer, 10)
    assert cut == 1 and [len(row) for row in rows] == [10, 6]
    end = tokenizer.special.end
    ids, segment = _collated(rows, np.arange(2), end, torch.device("cpu"))
    assert segment[0].tolist() == [0] * 7 + [1] * 3 and ids[0, 6] == end and ids[0, -1] == end
    assert ids[1].tolist()[6:] == [-1] * 4


def test_what_cannot_work_is_refused(tokenizer):
    one = LabelledTexts.of(["a", "b"], ["x", "x"])
    with pytest.raises(DataError, match="one class only"):
        evaluate("text_classification", network("bert", tokenizer), one, one, **SETTINGS)
    image = build_encoder("resnet18", image_size=32)
    with pytest.raises(ConfigError, match="needs a network for text"):
        evaluate("text_classification", image, sample(8, 0), sample(8, 1), **SETTINGS)
