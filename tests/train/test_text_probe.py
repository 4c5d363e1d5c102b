"""The online probe of text: nats of held-out tokens beside n-gram models at the same places."""

import dataclasses

import numpy as np
import pytest

from imprint.core.progress import Steps
from imprint.data.corpus import Corpus
from imprint.evals.ngrams import NGrams
from imprint.recipes.book import stages_of
from imprint.train.entry import pretrain_run

WORDS = ("river", "house", "bird", "tree", "stone", "field", "cloud", "road")


def corpus() -> Corpus:
    """Documents of sentences in which every word has a follower of its own four times of five."""
    rng = np.random.default_rng(0)

    def sentence() -> str:
        at, words = int(rng.integers(8)), []
        for _ in range(8):
            words.append(WORDS[at])
            at = (at + 3) % 8 if rng.random() < 0.8 else int(rng.integers(8))
        return " ".join(words) + "."

    return Corpus.of("\n".join(sentence() for _ in range(12)) for _ in range(80))


@pytest.mark.parametrize("method", ["bert", "roberta", "albert", "gpt"])
def test_every_language_model_is_judged_beside_ngrams(method, tmp_path):
    (config,) = stages_of(f"{method}/debug")
    plan = dataclasses.replace(config, length=Steps(2), probe_every=Steps(2), device="cpu", workers=1)
    run = pretrain_run(plan, tmp_path / "run", source=corpus())
    first, last = (line for line in run.metrics() if "probe/nats" in line)
    for name in ("probe/unigram", "probe/bigram"):
        assert first[name] == last[name] > 0  # the same tokens are asked each time
    assert last["probe/bigram"] < last["probe/unigram"] < first["probe/nats"]
    assert last["probe/gain"] == pytest.approx(last["probe/unigram"] - last["probe/nats"], abs=1e-6)


def test_places_are_those_of_the_judged_tokens(tmp_path):
    """What stands left of every judged token is found in the row: a text whose every pair is certain shows it."""
    text = Corpus.of(" ".join(WORDS * 12) for _ in range(40))
    (config,) = stages_of("gpt/debug")
    plan = dataclasses.replace(config, length=Steps(1), probe_every=Steps(1), device="cpu", workers=1)
    run = pretrain_run(plan, tmp_path / "run", source=text)
    line = next(line for line in run.metrics() if "probe/bigram" in line)
    assert line["probe/bigram"] < 0.25 * line["probe/unigram"]
    assert NGrams(np.arange(3), 3).bigram_nats(np.array([0]), np.array([1]))[0] < 1.2
