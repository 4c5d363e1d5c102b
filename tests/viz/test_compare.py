from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imprint.core.errors import ConfigError, DataError
from imprint.viz.compare import build_compare, distinct_names, flatten
from imprint.viz.compare_pictures import chosen_source, strips
from imprint.viz.correlation import kendall, pearson, spearman
from imprint.viz.league import Column, Value, better, columns, entries_of, mark, parameters
from imprint.viz.run_folder import Absent, RunFolder


def write_report(path: Path, encoder: str, value: float, **changed: Any) -> Path:
    """Write a small report of a kNN whose interval is 2 wide on both sides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "protocol": "knn",
        "encoder": encoder,
        "main": "top1",
        "metrics": {"top1": {"value": value, "low": value - 2, "high": value + 2, "n": 500}, "loss": {"value": 1.0}},
        "data": {"test": {"spec": "/data/birds", "count": 500, "fingerprint": "f1"}},
        "command": f"imprint evaluate knn --encoder {encoder} --train /data/a --test /data/birds",
        **changed,
    }
    path.write_text(json.dumps(report))
    return path


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
    differing = page[page.index('id="differences"') :]
    assert ">seed<" in differing and ">7<" in differing and ">8<" in differing
    assert "optim.lr.base" not in differing
    same = [write_run(tmp_path / name, seed=1, knn=[1.0]) for name in ("c", "d")]
    assert "the same configuration" in build_compare(same, tmp_path / "same.html").read_text(encoding="utf-8")


def test_every_curve_has_a_line_per_run_and_what_no_run_measured_is_left_out(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, seed=1, knn=[1.0, 2.0, 3.0]) for name in ("a", "b", "c")]
    page = build_compare(runs, tmp_path / "c.html").read_text(encoding="utf-8")
    drawn = page[page.index('id="curves"') : page.index('id="left-out"')]
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


def test_report_files_join_the_run_they_judged_or_get_a_row_of_their_encoder(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine", seed=1, knn=[10.0])
    files = [
        write_report(tmp_path / "a.json", str(run), 40.0),
        write_report(tmp_path / "b.json", "timm:resnet18", 60.0),
        write_report(tmp_path / "c.json", "timm:resnet18", 55.0, protocol="linear"),
    ]
    page = build_compare([run, *files], tmp_path / "c.html").read_text(encoding="utf-8")
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    assert body.count("<tr>") == 2
    rows = body.split("</tr>")
    assert "timm:resnet18" in rows[0] and ">60.00<" in rows[0] and ">55.00<" in rows[0]
    assert ">mine<" in rows[1] and ">40.00<" in rows[1]
    only = build_compare([files[1], write_report(tmp_path / "d.json", "timm:vit", 1.0)], tmp_path / "only.html")
    assert "Only report files are compared" in only.read_text(encoding="utf-8")
    with pytest.raises(DataError, match="no report"):
        (tmp_path / "junk.json").write_text("[]")
        build_compare([run, tmp_path / "junk.json"], tmp_path / "x.html")
    with pytest.raises(ConfigError, match="given twice"):
        build_compare([files[1], files[1]], tmp_path / "x.html")


def test_the_same_question_is_one_column_and_another_is_not(tmp_path: Path) -> None:
    runs = []
    for i, name in enumerate("ab"):
        run = write_run(tmp_path / name, seed=i, knn=[1.0])
        write_report(run / "evals" / f"x{name}.json", str(run), 30.0 + i)  # other file names, the same question
        command = f"imprint evaluate knn --encoder {run} --train /data/a --test /data/birds --ks 5 --workers {i}"
        write_report(run / "evals" / f"y{name}.json", str(run), 20.0 + i, command=command)
        runs.append((name, RunFolder.open(run)))
    found = [column for column in columns(entries_of(runs)) if column.title == "knn top1"]
    assert [[v.number for v in column.values] for column in found] == [[30.0, 31.0], [20.0, 21.0]]
    assert "--ks 5" in found[1].note and "workers" not in found[1].note


def test_the_best_is_marked_and_ties_by_interval(tmp_path: Path) -> None:
    def column(*values: tuple[float, float] | None, better: int = 1) -> list[str]:
        made = tuple(Value(None) if v is None else Value(v[0], "", (v[0] - v[1], v[0] + v[1])) for v in values)
        return mark(Column("x", "", made, better))

    assert column((10, 1), (14, 1), None, (13, 1), (11.9, 0.05)) == ["", "best", "", "tie", ""]
    assert column((10, 1), (14, 1), better=-1) == ["best", ""]
    assert column((10, 1), (14, 1), better=0) == ["", ""] and column((10, 1), None) == ["", ""]
    assert mark(Column("x", "", (Value(3.0), Value(3.0), Value(2.0)), 1)) == ["best", "best", ""]
    assert [better(name) for name in ("top1", "loss", "uniformity", "alpha_req", "J&F", "box/ap", "J_decay")] == [
        1, -1, -1, 0, 1, 1, -1,
    ]  # fmt: skip


def test_parameters_are_read_off_the_exported_file(make_run: Callable[..., Path]) -> None:
    run = RunFolder.open(make_run("a", encoder="resnet10t"))
    assert not isinstance(run.encoder, Absent)
    assert parameters(run) == sum(v.numel() for v in run.encoder.state_dict().values())
    (run.path / "encoder.safetensors").write_bytes(b"junk")
    assert parameters(run) is None


def test_the_same_images_by_runs_with_and_without_tokens(make_run: Callable[..., Path], tmp_path: Path) -> None:
    runs = [make_run("vit"), make_run("cnn", encoder="resnet10t"), make_run("none", encoder=None)]
    page = build_compare(runs, tmp_path / "c.html", device="cpu").read_text(encoding="utf-8")
    part = page[page.index('id="pictures"') : page.index('id="differences"')]
    assert part.count("<img") == 4  # images and one strip, twice
    assert "resnet10t has no patch tokens" in part and "no encoder.safetensors" in part
    assert "6 images of" in part


def test_bundled_photographs_stand_in_for_data_that_is_gone(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = RunFolder.open(make_run("vit", data=tmp_path / "gone"))
    source, told = chosen_source(run)
    assert len(source) == 6 and "photographs" in told
    found = strips(run, source, "cpu")
    assert not isinstance(found.attention, str) and found.attention.shape == found.components.shape  # type: ignore[union-attr]


def test_measures_without_labels_are_held_against_the_probe(tmp_path: Path) -> None:
    runs = []
    for i in range(5):
        run = write_run(tmp_path / f"r{i}", seed=i, knn=[1.0])
        write_report(run / "evals" / "knn.json", str(run), 30.0 + i)
        if i < 4:
            metrics = {"rankme": {"value": 5.0 + i * i}, "alignment": {"value": 3.0 - i}, "std": {"value": 1.0}}
            write_report(run / "evals" / "lf.json", str(run), 0.0, protocol="labelfree", metrics=metrics, main="rankme")
        runs.append(run)
    page = build_compare(runs, tmp_path / "c.html").read_text(encoding="utf-8")
    part = page[page.index('id="labelfree"') : page.index('id="differences"')]
    assert "+0.96 (" in part  # 0, 1, 4, 9 against 0, 1, 2, 3
    assert part.count("+1.00 (no interval)") == 2  # Spearman and Kendall of RankMe
    assert part.count("-1.00 (no interval)") == 3 and "constant" in part
    assert "kNN of 4 runs" in part and "Not measured: r4" in part and part.count("<svg") == 3
    bare = [write_run(tmp_path / name, seed=1, knn=[1.0]) for name in "xy"]
    assert "imprint evaluate labelfree" in build_compare(bare, tmp_path / "b.html").read_text(encoding="utf-8")


def test_correlations_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for count in (5, 9, 30):
        x, y = np.round(rng.normal(size=count), 1), np.round(rng.normal(size=count), 1)  # rounded: with ties
        y = y + x
        assert pearson(x, y).value == pytest.approx(stats.pearsonr(x, y)[0])
        assert spearman(x, y).value == pytest.approx(stats.spearmanr(x, y)[0])
        assert kendall(x, y).value == pytest.approx(stats.kendalltau(x, y)[0])
        ends = stats.pearsonr(x, y).confidence_interval()
        assert pearson(x, y).ends == pytest.approx((ends.low, ends.high))
    assert pearson(np.arange(3.0), np.array([0.0, 2.0, 1.0])).ends is None
    assert np.isnan(kendall(np.ones(4), np.arange(4.0)).value)
