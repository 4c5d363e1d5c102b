from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imprint.core.errors import ConfigError
from imprint.viz.compare import build_compare, distinct_names, flatten


def write_run(path: Path, *, seed: int, knn: list[float], evals: dict[str, float] | None = None, **config: Any) -> Path:
    path.mkdir(parents=True)
    settings = {
        "name": "simclr",
        "seed": seed,
        "encoder": {"name": "resnet18"},
        "optim": {"lr": {"base": 0.1}},
        **config,
    }
    (path / "config.json").write_text(json.dumps(settings))
    lines: list[dict[str, Any]] = []
    for step, score in enumerate(knn, 1):
        clock = {"step": step * 10, "epoch": step, "time": 30.0 * step}
        lines.append({**clock, "loss": 5.0 / step, "images_per_s": 100.0 * step, "memory_mb": 512.0})
        lines.append({**clock, "probe/knn_top1": score, "rank/rankme": 12.5})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, value in (evals or {}).items():
        (path / "evals").mkdir(exist_ok=True)
        report = {"protocol": "knn", "main": "top1", "metrics": {"top1": {"value": value}}}
        (path / "evals" / f"{name}.json").write_text(json.dumps(report))
    return path


def test_the_league_is_ordered_by_the_best_probe(tmp_path: Path) -> None:
    low = write_run(tmp_path / "low", seed=1, knn=[30.0, 41.5], evals={"camvid": 61.25})
    high = write_run(tmp_path / "high", seed=2, knn=[55.5, 52.0])
    page = build_compare([low, high], tmp_path / "sub" / "c.html").read_text(encoding="utf-8")
    assert page.index(">high<") < page.index(">low<")
    for shown in ("55.5", "41.5", "61.25", "20", "1 min 00 s", "512", "camvid"):
        assert f">{shown}<" in page, shown


def test_only_what_differs_is_listed(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, seed=seed, knn=[1.0]) for name, seed in (("a", 7), ("b", 8))]
    page = build_compare(runs, tmp_path / "c.html").read_text(encoding="utf-8")
    differing = page[page.index('id="differences"') : page.index('id="curves"')]
    assert ">seed<" in differing and ">7<" in differing and ">8<" in differing
    assert "optim.lr.base" not in differing
    same = [write_run(tmp_path / name, seed=1, knn=[1.0]) for name in ("c", "d")]
    assert "the same configuration" in build_compare(same, tmp_path / "same.html").read_text(encoding="utf-8")


def test_every_curve_has_a_line_per_run_and_what_no_run_measured_is_left_out(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, seed=1, knn=[1.0, 2.0, 3.0]) for name in ("a", "b", "c")]
    page = build_compare(runs, tmp_path / "c.html").read_text(encoding="utf-8")
    drawn = page[page.index('id="curves"') :]
    charts = [chart.split("</svg>")[0] for chart in drawn.split("<svg")[1:]]
    assert [chart.count("<polyline") for chart in charts] == [3, 3, 3, 3]  # loss, kNN, RankMe, images/s
    assert "Online linear probe" not in drawn


def test_a_run_without_metrics_still_has_its_row(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text('{"name": "dino"}')
    page = build_compare([bare, write_run(tmp_path / "b", seed=1, knn=[2.0])], tmp_path / "c.html").read_text("utf-8")
    assert page.index(">b<") < page.index(">bare<")


def test_names_from_users_cannot_become_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    runs = [write_run(tmp_path / "a", seed=1, knn=[1.0], name=evil), write_run(tmp_path / "b", seed=1, knn=[1.0])]
    page = build_compare(runs, tmp_path / "c.html").read_text(encoding="utf-8")
    assert evil not in page and "&lt;script&gt;" in page


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", seed=1, knn=[1.0])
    with pytest.raises(ConfigError, match="two or more"):
        build_compare([], tmp_path / "c.html")
    with pytest.raises(ConfigError, match="given twice"):
        build_compare([run, tmp_path / "a" / ".." / "a"], tmp_path / "c.html")
    with pytest.raises(ConfigError, match=r"config\.json"):
        build_compare([run, tmp_path], tmp_path / "c.html")
    assert not (tmp_path / "c.html").exists()


def test_names_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    paths = [tmp_path / "x" / "run", tmp_path / "y" / "run"]
    assert distinct_names(paths) == ["x/run", "y/run"]
    assert distinct_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": [3]}) == {"a.b": 1, "a.c.d": 2, "e": [3]}
