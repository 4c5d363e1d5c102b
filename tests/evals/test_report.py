"""Reports written and read back, and what tells two of them apart."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from imprint.core.errors import DataError
from imprint.evals.report import Figure, Metric, Report, figure_files, options, question, run_report_path

PICTURE = np.random.default_rng(0).integers(0, 255, (5, 7, 3)).astype(np.uint8)


def made(**changed: object) -> Report:
    plain = Report(
        protocol="knn",
        encoder="RUN",
        data={"train": {"spec": "a", "fingerprint": "1"}, "test": {"spec": "b", "fingerprint": "2"}},
        metrics={"top1": Metric(value=50.0, low=49.0, high=51.0, n=3), "loss": Metric(value=1.5)},
        main="top1",
        details={"k": 20},
        cost={"features_s": 1.5},
        command="imprint evaluate knn --encoder RUN --train a --test b --ks 5 1 --workers 2",
        figures=(Figure(name="view", caption="A view.", picture=PICTURE),),
    )
    return dataclasses.replace(plain, **changed)  # type: ignore[arg-type]


def test_a_report_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    made().save(tmp_path / "knn.json")
    again = Report.load(tmp_path / "knn.json")
    assert again == made()
    assert np.array_equal(again.figures[0].picture, PICTURE)
    (tmp_path / "knn_figures" / "view.png").write_bytes(b"damaged")
    assert Report.load(tmp_path / "knn.json").figures == ()
    for words in ("{", "3", "{}"):
        (tmp_path / "x.json").write_text(words)
        with pytest.raises(DataError):
            Report.load(tmp_path / "x.json")


def test_figures_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "own.png").write_bytes(b"x")
    names = ["../secret.png", str(tmp_path / "secret.png"), "own.png", "gone.png"]
    plain = {"figures": [{"name": n, "caption": "", "file": n} for n in names] + ["x", {}]}
    assert [name for name, _, _ in figure_files(plain, tmp_path / "in")] == ["own.png"]


def test_the_question_is_protocol_data_and_options_not_the_encoder_or_the_machine() -> None:
    def ask(**changed: object) -> tuple[str, ...]:
        return question(json.loads(made(**changed).to_json()))

    base = "imprint evaluate knn --encoder {} --train {} --test b --ks 5 1{}"
    assert options({"command": made().command}) == ("--ks 5 1",)
    assert ask() == ask(command=base.format("OTHER", "elsewhere/a", " --device cpu --no-cache --out x.json"))
    assert ask() != ask(command=base.format("RUN", "a", " --weighting softmax"))
    assert ask() != ask(protocol="linear")
    assert ask() != ask(data={"train": {"fingerprint": "1"}, "test": {"fingerprint": "3"}})
    assert options({"command": "imprint 'unbalanced"}) == ()


def test_a_run_keeps_its_reports(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert run_report_path(str(run), made()) is None and run_report_path("timm:resnet18", made()) is None
    for name in ("config.json", "encoder.safetensors"):
        (run / name).write_text("{}")
    path = run_report_path(str(run), made())
    assert path is not None and path.parent == run / "evals"
    assert path.stem.startswith("knn-") and len(path.stem) == 12
    assert run_report_path(str(run), made(encoder="x", metrics={})) == path
    assert run_report_path(str(run), made(command="imprint evaluate knn --encoder RUN --ks 7")) != path
    stages = tmp_path / "stages"
    (stages / "stage-1").mkdir(parents=True)
    (stages / "stages.json").write_text('{"stages": [{}]}')
    for name in ("config.json", "encoder.safetensors"):
        (stages / "stage-1" / name).write_text("{}")
    staged = run_report_path(str(stages), made())
    assert staged is not None and staged.parent == stages / "stage-1" / "evals"


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    import os

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    made(figures=()).save(pipe)
    assert json.loads(os.read(reader, 65536))["protocol"] == "knn"
    os.close(reader)
    assert pipe.is_fifo()
