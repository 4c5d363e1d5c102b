"""The report of run folders, whole and broken."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from imprint.core.errors import ConfigError
from imprint.viz.compare import build_compare, distinct_names
from imprint.viz.report import build_report
from imprint.viz.run_folder import Absent, RunFolder


def sections(document: str) -> list[str]:
    return re.findall(r'<section id="([^"]+)">', document)


def left_out(document: str) -> dict[str, str]:
    return dict(re.findall(r"<li><b>([^<]+)\.</b> ([^<]*)</li>", document))


def test_full_run_of_a_vit(make_run) -> None:
    run = make_run()
    (run / "evals").mkdir()
    report = {"protocol": "knn", "main": "top1", "metrics": {"top1": {"value": 51.5, "low": 50.1, "high": 53, "n": 99}}}
    (run / "evals" / "knn.json").write_text(json.dumps({**report, "data": {"test": {"spec": "here", "count": 99}}}))
    (run / "quarantine.jsonl").write_text(json.dumps({"name": "bad.jpg", "reason": "truncated", "detail": "x"}) + "\n")
    save_file({n: torch.rand(4, 3, 16, 16) for n in ("image", "visible")}, run / "samples" / "reconstruct.safetensors")
    path = build_report(run, device="cpu", workers=1)
    assert path == run / "report.html"
    document = path.read_text()
    assert sections(document) == [
        "curves", "evaluations", "views", "reconstructions", "neighbours", "map", "attention", "patches",
        "correspondence", "norms", "cost", "events", "quarantine", "config",
    ]  # fmt: skip
    for shown in (
        "51.50",
        "50.10 to 53.00",
        "bad.jpg",
        "10,000",
        "1 min 40 s",
        "50.0 %",
        "finished",
        "disc",
        "stripes",
    ):
        assert shown in document, shown
    data = json.loads(re.search(r'id="map-data">(.*?)</script>', document, re.S).group(1))
    assert len(data["names"]) == 36 == len(data["groups"]) and set(data["titles"].values()) == {
        "disc",
        "stripes",
        "noise",
    }
    assert not [p for p in run.iterdir() if p.name.startswith(".page")]


def test_cnn_without_labels(make_run, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    run = make_run(encoder="resnet10t", data=flat)
    flat.mkdir()
    shutil.rmtree(tmp_path / "images", ignore_errors=True)
    import cv2
    import numpy as np

    for i in range(9):
        cv2.imwrite(str(flat / f"{i}.png"), np.full((32, 32, 3), 25 * i, np.uint8))
    document = build_report(run, device="cpu").read_text()
    missing = left_out(document)
    assert "no patch tokens" in missing["Attention"] and "Reconstructions" in missing
    assert "cluster 1" in document and "neighbours" in sections(document)


def test_source_and_encoder_gone_are_said_so(make_run, tmp_path: Path) -> None:
    run = make_run()
    shutil.rmtree(tmp_path / "images")
    missing = left_out(build_report(run, device="cpu").read_text())
    assert "data source is gone" in missing["Nearest neighbours"] and "data source is gone" in missing["Attention"]
    (run / "encoder.safetensors").unlink()
    assert "no encoder.safetensors" in left_out(build_report(run).read_text())["Map"]


def test_young_or_damaged_run_still_gives_a_page(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(ConfigError, match=r"no config\.json"):
        build_report(run)
    (run / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="JSON"):
        build_report(run)
    (run / "config.json").write_text("{}")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n[1]\n{"step": "x"}\n{"step": 2, "lo')
    (run / "quarantine.jsonl").write_text("\x00\n{}\n")
    (run / "samples").mkdir()
    (run / "samples" / "views.safetensors").write_bytes(b"junk")
    (run / "evals").mkdir()
    (run / "evals" / "a.json").write_text("nope")
    document = build_report(run, out=tmp_path / "elsewhere" / "r.html").read_text()
    assert "curves" in sections(document) and "cannot be read" in left_out(document)["Views"]
    assert not (run / "report.html").exists()


def test_hostile_values_everywhere_stay_text(make_run) -> None:
    evil = "<script>document.title='owned'</script>"
    run = make_run(name_=evil, recipe=evil, provenance={"source": evil})
    lines = (run / "metrics.jsonl").read_text() + json.dumps({"step": 3, evil: 1.0, "probe/top" + evil: 2.0}) + "\n"
    (run / "metrics.jsonl").write_text(lines + json.dumps({"step": 3, "warning": evil}) + "\n")
    (run / "quarantine.jsonl").write_text(json.dumps({"name": evil, "reason": evil, "detail": evil}) + "\n")
    (run / "evals").mkdir()
    bad = {
        "protocol": evil,
        "main": evil,
        "metrics": {evil: {"value": evil}},
        "command": evil,
        "data": {evil: {"spec": evil}},
    }
    (run / "evals" / "x.json").write_text(json.dumps(bad))
    document = build_report(run, device="cpu").read_text()
    assert document.count("<script") == 3  # ours, and two blocks of data
    assert evil not in document


def test_validation_source_is_preferred_and_the_best_is_found(make_run, tmp_path: Path) -> None:
    run = RunFolder.open(make_run(encoder=None))
    assert run.best("probe/knn_top1") == ("probe/knn_top1", 50.0, 200) and run.best("nothing") is None
    assert not isinstance(run.source, Absent) and len(run.source) == 36
    config = json.loads((run.path / "config.json").read_text())
    config["data"]["val"] = str(tmp_path / "images" / "disc")
    (run.path / "config.json").write_text(json.dumps(config))
    other = RunFolder.open(run.path)
    assert not isinstance(other.source, Absent) and len(other.source) == 12


def test_compare_lays_curves_over_each_other(make_run, tmp_path: Path) -> None:
    runs = [make_run("a", encoder=None), make_run("b", encoder=None, seed=4)]
    document = build_compare(runs, tmp_path / "c.html").read_text()
    assert sections(document) == ["league", "curves", "differences", "left-out"]
    loss = re.search(r'aria-label="Loss" data-chart="([^"]*)"', document).group(1)
    assert loss.count("&quot;name&quot;") == 2
    assert re.search(r"<td>seed</td><td>3</td><td>4</td>", document)
    with pytest.raises(ConfigError, match="twice"):
        build_compare([runs[0], runs[0]], tmp_path / "d.html")
    with pytest.raises(ConfigError):
        build_compare([], tmp_path / "d.html")


def test_names_are_as_short_as_they_can_be() -> None:
    assert distinct_names([Path("/x/a"), Path("/x/b")]) == ["a", "b"]
    assert distinct_names([Path("/x/1/run"), Path("/x/2/run")]) == ["1/run", "2/run"]
