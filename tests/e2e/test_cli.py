"""The commands on real images: what a person types, what lies in the run folder, what the exit code says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import imprint
from imprint.cli.main import main

Run = Callable[..., str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on the bundled photographs, by the command line."""
    out = tmp_path_factory.mktemp("runs") / "simclr"
    line = f"pretrain simclr/debug --data photos --val photos:test --out {out} --workers 1 --seed 3"
    assert main(line.split()) == 0
    return out


def same_weights(first: Path, second: Path) -> bool:
    """Whether two runs left the same encoder, bit for bit."""
    from safetensors.numpy import load_file

    one, two = (load_file(run / "encoder.safetensors") for run in (first, second))
    assert one.keys() == two.keys() and len(one) > 10
    return all(one[name].tobytes() == two[name].tobytes() for name in one)


def test_the_run_folder_holds_what_is_promised(finished: Path) -> None:
    for name in ("config.json", "metrics.jsonl", "encoder.safetensors", "encoder.json", "report.html"):
        assert (finished / name).stat().st_size > 0, name
    assert list((finished / "checkpoints").iterdir()) and list((finished / "tensorboard").iterdir())
    config = json.loads((finished / "config.json").read_text())
    assert (config["name"], config["recipe"], config["seed"]) == ("simclr", "debug", 3)
    assert config["data"]["train"] == ["photos"] and config["data"]["val"] == "photos:test"
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 8 and all(np.isfinite(losses))
    assert {"step", "epoch", "time", "lr", "images_per_s", "data_wait", "memory_mb"} <= set(
        next(line for line in lines if "loss" in line)
    )


def test_its_config_repeats_it_to_the_bit(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--config", str(finished / "config.json"), "--out", str(tmp_path / "again")]) == 0
    assert str(tmp_path / "again") in capsys.readouterr().out
    assert same_weights(finished, tmp_path / "again")


def test_another_seed_gives_another_encoder(finished: Path, tmp_path: Path) -> None:
    assert main(["pretrain", "--config", str(finished), "--out", str(tmp_path / "b"), "--seed", "4"]) == 0
    assert not same_weights(finished, tmp_path / "b")


def test_evaluate_prints_and_writes_the_report(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "knn.json"
    line = f"evaluate knn --encoder {finished} --train photos --test photos:test --ks 5 1 --out {out}"
    assert main(line.split()) == 0
    shown = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["protocol"] == "knn" and 0 < report["metrics"]["top1"]["value"] <= 100
    assert f"{report['metrics']['top1']['value']:.3f}" in shown
    assert "--ks 5 1" in report["command"]
    again = report["command"].split()[1:]
    assert main([*again[:-1], str(tmp_path / "again.json")]) == 0
    assert json.loads((tmp_path / "again.json").read_text())["metrics"] == report["metrics"]


def test_labelfree_needs_no_labels_and_no_test(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["evaluate", "labelfree", "--encoder", str(finished), "--train", "photos:test"]
    assert main(line) == 0
    assert "rankme" in capsys.readouterr().out.lower()
    (written,) = (finished / "evals").glob("labelfree-*.json")  # a run keeps its evaluations
    assert main([*line, "--workers", "1"]) == 0
    assert list((finished / "evals").glob("labelfree-*.json")) == [written]
    assert main(["report", str(written)]) == 0 and "rankme" in written.with_suffix(".html").read_text()
    assert main(["report", str(finished.parent / "gone.json")]) == 2


@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_embed_writes_one_row_per_image(finished: Path, tmp_path: Path, ending: str) -> None:
    from imprint.data.sources import open_source

    out = tmp_path / f"e.{ending}"
    assert main(["embed", "--encoder", str(finished), "--data", "photos:test", "--out", str(out)]) == 0
    width = imprint.load_encoder(finished).embed_dim
    if ending == "npy":
        assert np.load(out).shape == (len(open_source("photos:test")), width)
    else:
        import pyarrow.parquet as pq

        table = pq.read_table(out)
        assert table.num_rows == len(open_source("photos:test")) and len(table["embedding"][0]) == width


def test_report_compare_and_export(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (finished / "report.html").unlink()
    assert main(["report", str(finished)]) == 0
    assert "<html" in (finished / "report.html").read_text()
    other = tmp_path / "other"
    assert main(["pretrain", "--config", str(finished), "--out", str(other), "--seed", "5"]) == 0
    assert main(["compare", str(finished), str(other), "--out", str(tmp_path / "c.html")]) == 0
    page = (tmp_path / "c.html").read_text()
    assert "simclr" in page and "other" in page and "seed" in page
    capsys.readouterr()
    target = tmp_path / "exported" / "encoder.safetensors"
    assert main(["export", str(finished), "--format", "safetensors", "--out", str(target)]) == 0
    shown = capsys.readouterr().out
    assert str(target) in shown and "largest difference" in shown and "import" in shown
    import torch

    images = torch.rand(2, 3, 32, 32)
    ours, theirs = imprint.load_encoder(finished), imprint.load_encoder(target)
    with torch.no_grad():
        assert torch.equal(ours(images).pooled_BD, theirs(images).pooled_BD)


def test_a_finished_run_is_trained_further_only_when_asked(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "long"
    assert main(["pretrain", "--config", str(finished), "--out", str(out), "--steps", "4"]) == 0
    assert main(["pretrain", "--resume", str(out), "--extend-epochs", "0.1"]) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) > 4


def test_sigterm_checkpoints_and_exits_143_and_resume_finishes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = f"pretrain simclr/debug --data photos --out {out} --steps 100000 --workers 1"
    child = subprocess.Popen(
        [sys.executable, "-m", "imprint.cli.main", *line.split()], stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (out / "metrics.jsonl").exists() or "loss" not in (out / "metrics.jsonl").read_text():
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=120)
    finally:
        child.kill()
    assert child.returncode == 143
    assert f"--resume {out}" in said.splitlines()[-1]
    assert list((out / "checkpoints").iterdir())
    config = json.loads((out / "config.json").read_text())
    done = max(json.loads(line).get("step", 0) for line in (out / "metrics.jsonl").read_text().splitlines())
    config["length"] = f"{done + 2}st"
    (out / "config.json").write_text(json.dumps(config))
    assert main(["pretrain", "--resume", str(out)]) == 0
    assert (out / "encoder.safetensors").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pretrain simclr/debug --data {tmp}/no-such-folder --out {tmp}/r", "no-such-folder"),
        ("pretrain simclr/debug --data {tmp}/empty --out {tmp}/r", "no images"),
        ("pretrain mae/debug --data photos --out {tmp}/r --encoder resnet18", ""),
        ("pretrain simclr/debug --data photos --out {tmp}/r --encoder resnet81", "resnet18"),
        ("evaluate knn --encoder {tmp}/nothing --train photos --test photos:test", "nothing"),
        ("evaluate knn --encoder pixels --train photos", "--test"),
        ("embed --encoder pixels --data photos --out {tmp}/e.csv", ".parquet"),
        ("report {tmp}/empty", "config.json"),
        ("compare {tmp}/empty --out {tmp}/c.html", "config.json"),
        ("export {tmp}/empty --format onnx --out {tmp}/x", "empty"),
        ("pretrain --resume {tmp}/empty", "config.json"),
    ],
)
def test_what_cannot_work_is_refused_in_one_paragraph(
    line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(line.format(tmp=tmp_path).split()) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and said in error
    assert "unexpected" not in error


def test_python_does_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = imprint.pretrain("photos", "simclr", "debug", steps=2, workers=1, optim={"lr": {"base": 0.1}})
    assert isinstance(run, imprint.Run)
    assert run.path.resolve() == tmp_path / "runs" / "simclr" and run.config.optim.lr.base == 0.1
    assert (run.path / "report.html").exists()
    report = imprint.evaluate("knn", run.encoder(), "photos", "photos:test", ks=[1])
    assert report.metrics["top1"].value > 0
    written = imprint.embed(run.path, "photos:test", tmp_path / "e.npy")
    assert np.load(written).ndim == 2
    again = imprint.pretrain("photos", run.config, steps=1, report=False)
    assert again.path.name == "simclr-2" and not (again.path / "report.html").exists()


def test_python_takes_images_in_memory(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, 40, 40, 3), dtype=np.uint8)
    run = imprint.pretrain(images, "simclr/debug", out=tmp_path / "r", steps=2, report=False)
    assert run.encoder().embed_dim > 0


def test_doctor_leaves_no_trace(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "imprint.cli.main", "doctor"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "IMPRINT_CACHE": str(tmp_path / "cache")},
        check=False,
    )
    assert done.returncode == 0 and "torch" in done.stdout
    assert list(tmp_path.iterdir()) == []
