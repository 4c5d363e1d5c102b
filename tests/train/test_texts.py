"""The texts of a run: one tokenizer for all its processes and lives, and held-out text that is not trained on."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from imprint.backbones.load import load_encoder
from imprint.backbones.text_tokenizer import train_tokenizer
from imprint.core.errors import ConfigError, DataError
from imprint.core.progress import Steps
from imprint.data.arrays import ArraySource
from imprint.data.corpus import Corpus
from imprint.data.pairs import PairSource
from imprint.data.texts import TextConfig
from imprint.dist.launch import launch
from imprint.dist.world import World
from imprint.train import texts as run_texts
from imprint.train.loop import train
from imprint.train.run import Run
from imprint.train.texts import TOKENIZER, learning_texts, open_words, read_texts

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def work():
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)
    yield importlib.import_module("text_work")
    sys.path.remove(folder)


def with_text(plan, vocabulary: int | None = None, **changes):
    data = dataclasses.replace(plan.data, text=dataclasses.replace(plan.data.text, **changes))
    method = plan.method if vocabulary is None else dataclasses.replace(plan.method, vocabulary=vocabulary)
    return dataclasses.replace(plan, data=data, method=method)


def test_a_share_of_the_documents_is_held_out(work, tmp_path: Path) -> None:
    plan = with_text(work.config(), held_out=0.2)
    _, reading = read_texts(plan, work.corpus(), tmp_path, World())
    assert reading is not None and isinstance(reading.train, Corpus) and isinstance(reading.held, Corpus)
    train_texts, held_texts = set(reading.train.documents()), set(reading.held.documents())
    assert len(held_texts) == 12 and not train_texts & held_texts
    assert train_texts | held_texts == set(work.corpus().documents())
    # The tokenizer has seen no held-out text.
    alone = train_tokenizer(reading.train.documents(), "wordpiece", vocabulary=300)
    assert reading.tokenizer.fingerprint == alone.fingerprint
    for without in (with_text(plan, held_out=0.0), dataclasses.replace(plan, probe_every=None)):
        _, reading = read_texts(without, work.corpus(), tmp_path, World())
        assert reading is not None and reading.held is None and reading.held_rows is None
    _, reading = read_texts(with_text(plan, held_out=0.9), work.corpus(2), tmp_path, World())
    assert reading is not None and reading.held is None, "no side may be left empty"


def test_validation_text_of_its_own(work, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("a dog runs. the cat sits.\n\na red car. the blue sky.\n")
    plan = work.config()
    plan = dataclasses.replace(plan, data=dataclasses.replace(plan.data, val=str(tmp_path / "val.txt")))
    _, reading = read_texts(plan, work.corpus(), tmp_path / "run", World())
    assert reading is not None and reading.held is not None and len(reading.train) == 60 and len(reading.held) == 2


def test_vocabulary_is_the_tokenizers(work, tmp_path: Path) -> None:
    plan, reading = read_texts(with_text(work.config(), 0), work.corpus(), tmp_path, World())
    assert reading is not None and plan.method.vocabulary == reading.tokenizer.vocabulary
    plan, _ = read_texts(with_text(work.config(), 5000), work.corpus(), tmp_path, World())
    assert plan.method.vocabulary == 5000, "room for more is allowed"
    with pytest.raises(ConfigError, match="tokens and --method.vocabulary is 20: leave it out"):
        read_texts(with_text(work.config(), 20), work.corpus(), tmp_path, World())


def test_a_tokenizer_of_ones_own(work, tmp_path: Path) -> None:
    own = train_tokenizer(["a dog", "the sky"], "wordpiece", vocabulary=40)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "tokenizer.json").write_text(own.json)
    plan = with_text(work.config(), 0, tokenizer=str(tmp_path / "own"))
    _, reading = read_texts(plan, work.corpus(), tmp_path / "run", World())
    assert reading is not None and reading.tokenizer.fingerprint == own.fingerprint
    assert (tmp_path / "run" / TOKENIZER).read_text() == own.json


def test_what_is_no_text_is_refused(work, tmp_path: Path) -> None:
    images = ArraySource(np.zeros((4, 8, 8, 3), dtype=np.uint8))
    with pytest.raises(ConfigError, match="bert learns from text, and .* has none. Give files of text"):
        read_texts(work.config(), images, tmp_path, World())
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"x")
    plan = work.config()
    plan = dataclasses.replace(plan, data=dataclasses.replace(plan.data, train=(str(tmp_path / "images"),)))
    with pytest.raises(DataError, match="but images such as 'a.jpg'; this method learns from text"):
        train(plan, tmp_path / "run")


def test_missing_images_of_pairs_count_against_the_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import cv2

    (tmp_path / "images").mkdir()
    for i in range(9):
        (tmp_path / "images" / f"{i}.png").write_bytes(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    lines = "".join(f"{i}.png,image {i}\n" for i in range(10))
    (tmp_path / "captions.csv").write_text("image,caption\n" + lines + "3.png,\n")
    words = (str(tmp_path / "captions.csv"),)
    pairs = open_words(words, "pairs", TextConfig(), bad_limit=0.1)
    assert isinstance(pairs, PairSource) and len(pairs) == 9
    assert "left out 1 images that are not there, 0 without a caption, and 1 empty captions" in caplog.text
    with pytest.raises(DataError, match=r"1 of 10 images .* '9.png'.*data.bad-limit"):
        open_words(words, "pairs", TextConfig(), bad_limit=0.05)
    with pytest.raises(ConfigError, match="one file of captions is needed, or one pattern of shards, got 2"):
        open_words((*words, *words), "pairs", TextConfig())


def test_a_tokenizer_is_learned_from_a_part_of_a_huge_corpus() -> None:
    corpus = Corpus.of(f"document number {i:04}" for i in range(1000))
    size = corpus.packed.blob.nbytes
    assert list(learning_texts(corpus, limit=size)) == list(corpus.documents())
    some = list(learning_texts(corpus, limit=size // 4))
    assert some == list(corpus.documents())[::4], "spread over all of it"
    long = Corpus.of(["word " * 1_000_000])
    pieces = list(learning_texts(long, limit=long.packed.blob.nbytes // 3))
    assert 1_000_000 < sum(map(len, pieces)) <= 2_200_000


def test_resumed_runs_keep_their_tokenizer(work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(work.config(), tmp_path / "run", source=work.corpus())
    kept = (run.path / TOKENIZER).read_text()
    lines = [m for m in run.metrics() if "probe/nats" in m]
    assert lines and all(np.isclose(m["probe/perplexity"], np.exp(m["probe/nats"]), rtol=1e-4) for m in lines)
    assert load_encoder(str(run.path)).tokenizer.json == kept
    shutil.rmtree(run.checkpoints.path(run.checkpoints.steps()[-1]))
    (run.path / "encoder.safetensors").unlink()

    def never(*args: object, **more: object) -> None:
        raise AssertionError("a tokenizer was learned again")

    monkeypatch.setattr(run_texts, "train_tokenizer", never)
    again = train(None, run.path, resume=True, source=work.corpus())
    assert again.finished and (run.path / TOKENIZER).read_text() == kept


def test_two_processes_read_and_learn_as_one(work, tmp_path: Path) -> None:
    launch(work.in_two, (str(tmp_path),), 2)
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=False) for rank in range(2))
    alone = work.told(work.config(), str(tmp_path / "alone"), World())
    for found in (second, alone):
        assert found["tokenizer"] == first["tokenizer"] and found["fingerprints"] == first["fingerprints"]
        assert found["vocabulary"] == first["vocabulary"]
        assert all(torch.equal(found["rows"][name], first["rows"][name]) for name in first["rows"])
    one = train(work.config(length=Steps(4)), tmp_path / "one", source=work.corpus())
    losses = [[m["loss"] for m in run.metrics() if "loss" in m] for run in (one, Run.open(tmp_path / "two"))]
    assert len(losses[0]) == 4 and np.allclose(*losses, rtol=1e-4)
