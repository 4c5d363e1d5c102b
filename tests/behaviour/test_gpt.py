"""GPT-3's claim (arXiv 2005.14165, Fig. 1.1): a model learns a task from demonstrations in its prompt, without steps.

Every document here follows a rule of its own: one answer to all that stands in it. Which one is not to be known before
the first answer, and plain after it.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from imprint.backbones.arch import Arch
from imprint.core.progress import Steps
from imprint.core.schedules import constant
from imprint.data.corpus import Corpus
from imprint.evals.evaluate import evaluate
from imprint.recipes.book import recipe
from imprint.train.config import LR, OptimConfig
from imprint.train.entry import pretrain_run

THINGS = ("dog", "cat", "car", "sky", "tree", "box", "sea", "pen", "cup", "hat")
ANSWERS = ("red", "blue", "green", "black")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    rng = np.random.default_rng(0)
    documents = []
    for _ in range(1000):
        answer = rng.choice(ANSWERS)
        documents.append("\n".join(f"{thing} = {answer}" for thing in rng.choice(THINGS, 6, replace=False)))
    base = recipe("gpt/debug")
    plan = dataclasses.replace(
        base,
        method=dataclasses.replace(base.method, vocabulary=0, length=32, crossing=False),
        encoder=dataclasses.replace(
            base.encoder, name="text:gpt2", arch=Arch(embed_dim=64, depth=2, num_heads=2, dropout=0.0)
        ),
        data=dataclasses.replace(base.data, text=dataclasses.replace(base.data.text, vocabulary=320)),
        optim=OptimConfig(
            name="adamw", lr=LR(base=3e-3, rule="none", warmup=Steps(20)), weight_decay=constant(0.01), clip=1.0
        ),
        batch_size=32,
        length=Steps(90),
        checkpoint_every=Steps(90),
        workers=1,
        device="cpu",
        precision="fp32",
    )
    return pretrain_run(plan, tmp_path_factory.mktemp("gpt") / "run", source=Corpus.of(documents))


def test_one_demonstration_tells_what_none_leaves_open(run, tmp_path):
    right: dict[str, list[float]] = {}
    for answer in ANSWERS:
        path = tmp_path / f"{answer}.jsonl"
        lines = ({"prompt": f"{thing} =", "choices": ANSWERS, "answer": answer} for thing in THINGS)
        path.write_text("\n".join(map(json.dumps, lines)))
        report = evaluate("incontext", run.path, path, shots=(0, 1, 3), separator="\\n")
        for name, metric in report.metrics.items():
            right.setdefault(name, []).append(metric.value)
    mean = {name: float(np.mean(values)) for name, values in right.items()}
    assert 10 < mean["accuracy_sum@0"] < 40  # one of four answers whatever is asked
    assert mean["accuracy_sum@1"] > 90 and mean["accuracy_sum@3"] > 90
    assert mean["nats_per_token@1"] < 0.5 * mean["nats_per_token@0"]


def test_what_it_writes_after_a_demonstration_is_the_answer(run, tmp_path):
    path = tmp_path / "write.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{thing} =", "completion": "green"}) for thing in THINGS))
    report = evaluate("incontext", run.path, path, shots=(1,), separator="\\n")
    assert report.metrics["exact_match@1"].value > 90
    assert report.details["examples"][0]["said"].strip().startswith("green")
