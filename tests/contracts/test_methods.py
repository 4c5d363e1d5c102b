"""What holds for every method of the catalogue, so that a new one is tested the day it exists."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from imprint.backbones.load import load_encoder
from imprint.core.progress import Steps
from imprint.data.arrays import ArraySource
from imprint.data.compact import Names
from imprint.data.corpus import Corpus
from imprint.data.pairs import Captions, PairSource
from imprint.methods.base import Method, MethodConfig
from imprint.methods.catalog import CATALOG, method_class
from imprint.recipes.book import stages_of
from imprint.train.entry import pretrain_run as train
from imprint.train.run import Run
from imprint.train.tensorfile import read_tensors

ROOT = Path(__file__).resolve().parents[2]
rows = pytest.mark.parametrize("row", CATALOG, ids=lambda r: r.name)


@pytest.fixture(scope="module")
def images() -> ArraySource:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (48, 6, 6, 3), dtype=np.uint8)
    return ArraySource(coarse.repeat(8, 1).repeat(8, 2), np.arange(48) % 3)


WORDS = ("a", "dog", "cat", "red", "car", "on", "the", "grass", "sky", "runs", "sits", "blue", "tree", "near")


@pytest.fixture(scope="module")
def pairs(images) -> PairSource:
    """The images without labels, with two captions each."""
    rng = np.random.default_rng(1)
    captions = Names.of(" ".join(rng.choice(WORDS, rng.integers(2, 9))).encode() for _ in range(2 * len(images)))
    return PairSource(images, Captions(captions), np.arange(0, 2 * len(images) + 1, 2), "pairs")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Documents of several sentences."""
    rng = np.random.default_rng(2)

    def sentence() -> str:
        return " ".join(rng.choice(WORDS, rng.integers(3, 9))) + "."

    return Corpus.of(("\n".join(sentence() for _ in range(12)) for _ in range(60)), "documents")


@pytest.fixture
def data(row, request):
    """What the method of the row learns from."""
    return request.getfixturevalue({"images": "images", "pairs": "pairs", "text": "corpus"}[row.takes])


def config_of(row, **changes):
    """The debug recipe: one configuration, or those of its stages."""
    stages = stages_of(f"{row.name}/debug")
    plan = tuple(dataclasses.replace(stage, device="cpu", workers=1, **changes) for stage in stages)
    return plan if len(plan) > 1 else plan[0]


def weights(run: Run) -> dict[str, torch.Tensor]:
    checkpoint = run.checkpoints.latest()
    assert checkpoint is not None
    return checkpoint.tensors("model")


@rows
def test_row_names_real_things(row):
    cls = method_class(row.name)
    assert issubclass(cls, Method) and cls.__mro__[1] is Method, "depth below Method is 1"
    assert issubclass(cls.Config, MethodConfig) and dataclasses.fields(cls.Config)
    assert importlib.util.find_spec(f"imprint.recipes.{row.name}") is not None
    assert (ROOT / "tests" / "methods" / f"test_{row.name}.py").exists()
    assert row.arxiv in (cls.__doc__ or "") + (importlib.import_module(cls.__module__).__doc__ or "")
    for case in row.parity:
        assert (ROOT / "tests" / "parity" / "vectors" / f"{case}.npz").exists()


@rows
def test_every_config_field_is_documented(row):
    cls = method_class(row.name).Config
    for field in dataclasses.fields(cls):
        assert f"{field.name}:" in (cls.__doc__ or ""), f"{cls.__name__}.{field.name} has no line in the docstring"


@rows
def test_every_trainable_parameter_is_in_exactly_one_group_and_learns(row, data, tmp_path):
    run = train(config_of(row, length=Steps(1)), tmp_path / "run", source=data)
    assert run.finished
    before_after = json.loads((run.path / "config.json").read_text())
    assert before_after["name"] == row.name
    (line,) = [m for m in run.metrics() if "loss" in m]
    assert np.isfinite(line["loss"]) and line["step"] == 1


@rows
def test_stopped_and_resumed_equals_unbroken(row, data, tmp_path):
    whole = train(config_of(row), tmp_path / "whole", source=data)
    stopped = train(config_of(row), tmp_path / "broken", source=data)
    # Take the finish away, as a kill between two checkpoints would: the newest checkpoint is that of step 4 again.
    steps = stopped.checkpoints.steps()
    assert steps[-1] == 8 and 4 in steps
    import shutil

    shutil.rmtree(stopped.checkpoints.path(8))
    (stopped.path / "encoder.safetensors").unlink()
    resumed = train(None, tmp_path / "broken", resume=True, source=data)
    a, b = weights(whole), weights(resumed)
    assert a.keys() == b.keys()
    assert [n for n in a if not torch.equal(a[n], b[n])] == []
    assert [m["step"] for m in resumed.metrics() if "loss" in m] == list(range(1, 9))


@rows
def test_exported_encoder_is_the_methods_encoder(row, data, tmp_path):
    run = train(config_of(row, length=Steps(2)), tmp_path / "run", source=data)
    encoder = load_encoder(str(run.path))
    stored = read_tensors(run.path / "encoder.safetensors")
    assert stored and encoder.embed_dim > 0
    if row.takes != "images":
        assert encoder.tokenizer is not None and encoder.tokenizer.vocabulary > 5
    if row.takes == "text":
        tokens = encoder(torch.tensor([[2, 7, 8, 3, -1]]))
        assert tokens.shape == (1, 5, encoder.embed_dim) and torch.isfinite(tokens[:, :4]).all()
        return
    features = encoder(torch.zeros(2, 3, 32, 32))
    assert features.pooled_BD.shape == (2, encoder.embed_dim) and torch.isfinite(features.pooled_BD).all()


@rows
def test_accumulation_splits_the_batch_and_runs(row, data, tmp_path):
    run = train(config_of(row, length=Steps(2), accumulate=2), tmp_path / "run", source=data)
    assert run.last_step == 2
