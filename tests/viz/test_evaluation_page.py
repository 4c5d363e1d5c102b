"""An evaluation as a page: whatever its details look like, and with pictures."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imprint.core.errors import DataError
from imprint.evals.report import Figure, Metric, Report
from imprint.viz.evaluation_details import baselines, details_html, shown
from imprint.viz.evaluation_page import build_evaluation_page, evaluation_section, forest
from imprint.viz.run_folder import RunFolder

EVIL = "<img src=x onerror=alert(1)>"


def report(**changed: Any) -> Report:
    values: dict[str, Any] = {
        "protocol": "knn",
        "encoder": "timm:resnet18",
        "data": {"test": {"spec": "/birds", "count": 500, "fingerprint": "f"}},
        "metrics": {
            "top1": Metric(value=51.25, low=50.0, high=52.5, n=500),
            "top5": Metric(value=80.0, low=79.0, high=81.0, n=500),
            "loss": Metric(value=1.5),
        },
        "main": "top1",
        "details": {
            "chance": 10.0,
            "baselines": {"pixels": {"top1": 33.5}},
            "k": 20,
            "decay": [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, None, 1.0],
            "frames": {"bear": [1.0, 2.0], "camel": [3.0, 4.0]},
            "per_class": {f"class {i}": float(i) for i in range(20)},
            "grid": [{"lr": 0.1, "top1": 50.0}, {"lr": 0.2, "top1": None}],
            "matrix": [[1, 2], [3, 4]],
            "odd": [{"deep": {"deeper": [1, {"x": 2}]}}, 3],
        },
        "cost": {"features_s": 61.0, "search_s": 1.0, "images": 1000.0},
        "command": "imprint evaluate knn --encoder timm:resnet18 --train a --test /birds",
        "figures": (Figure(name="map", caption="What <b> it saw.", picture=np.full((6, 9, 3), 7, np.uint8)),),
    }
    return Report(**{**values, **changed})


def test_the_page_shows_numbers_details_pictures_and_cost(tmp_path: Path) -> None:
    report().save(tmp_path / "knn.json")
    path = build_evaluation_page(tmp_path / "knn.json")
    assert path == tmp_path / "knn.html"
    page = path.read_text(encoding="utf-8")
    sections = re.findall(r'<section id="([^"]+)">', page)
    assert sections == ["metrics", "figures", "details", "data", "cost", "command"]
    for words in ("top1 (main)", "50.00 to 52.50", "chance (to beat)", "pixels: top1 (to beat)", "33.50", "1 min 02 s"):
        assert words in page, words
    picture = (tmp_path / "knn_figures" / "map.png").read_bytes()
    assert base64.b64encode(picture).decode() in page and 'width="9" height="6"' in page
    assert "What &lt;b&gt; it saw." in page
    details = page[page.index('id="details"') : page.index('id="data"')]
    assert details.count("<svg") == 2 and details.count("<polyline") == 3  # decay (its gap leaves a dot) and two frames
    assert details.count('class="sortable"') == 2 and "class 19" in details and "deeper" in details
    assert "chance" not in details


def test_the_section_of_a_run_embeds_the_same(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    report().save(tmp_path / "evals" / "knn.json")
    report(figures=(), details={}).save(tmp_path / "evals" / "other.json")
    body = evaluation_section(RunFolder.open(tmp_path)).body
    assert body.count("data:image/png") == 1 and body.count("top1 (main)") == 2 and "test: /birds (500 images)" in body
    (tmp_path / "evals" / "knn_figures" / "map.png").write_bytes(b"no picture")
    assert "1 of the figures are missing" in evaluation_section(RunFolder.open(tmp_path)).body
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    assert "imprint evaluate PROTOCOL" in evaluation_section(RunFolder.open(bare)).reason


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    details = {
        EVIL: EVIL,
        "x": {EVIL: 1.0},
        "y": [{EVIL: EVIL}] * 2,
        "z": {EVIL: [1.0, 2.0]},
        f"chance{EVIL}": {EVIL: 1},
    }
    hostile = report(
        protocol=EVIL, encoder=EVIL, main=EVIL, command=EVIL, details=details, cost={EVIL: 1.0},
        metrics={EVIL: Metric(value=1.0, low=0.5, high=2.0), "b": Metric(value=1.0, low=0.5, high=2.0)},
        data={EVIL: {"spec": EVIL, EVIL: EVIL}},
    )  # fmt: skip
    plain = json.loads(hostile.to_json("f"))
    plain["figures"] = [{"name": EVIL, "caption": EVIL, "file": "f/a.png"}]
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a.png").write_bytes(base64.b64decode("iVBORw0KGgo=") + bytes(32))
    (tmp_path / "r.json").write_text(json.dumps(plain))
    page = build_evaluation_page(tmp_path / "r.json", tmp_path / "deep" / "p.html").read_text(encoding="utf-8")
    assert EVIL not in page and page.count("<script") == 1 and page.count("<img") == 1


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    for words, match in (("{", "no JSON"), ("[1]", "no report"), ('{"metrics": 3}', "no report")):
        (tmp_path / "x.json").write_text(words)
        with pytest.raises(DataError, match=match):
            build_evaluation_page(tmp_path / "x.json")
    with pytest.raises(DataError, match="cannot be read"):
        build_evaluation_page(tmp_path / "gone.json")


def test_odd_values_do_not_cost_the_page(tmp_path: Path) -> None:
    odd = {
        "metrics": {"a": {"value": None}, "b": 3, "c": {"value": "x", "low": 1, "high": None}},
        "details": [1],
        "cost": 5,
    }
    (tmp_path / "x.json").write_text(json.dumps(odd))
    page = build_evaluation_page(tmp_path / "x.json").read_text(encoding="utf-8")
    assert "<b>Details.</b>" in page and "<b>Cost.</b>" in page
    assert details_html({}) == "" and baselines({"chance": None}) == []
    assert [shown(v) for v in (True, 1234, 0.123456, None, [1, "a"], {"k": 1})] == [
        "yes", "1,234", "0.12346", "-", "1, a", "k: 1",
    ]  # fmt: skip


def test_intervals_are_drawn_where_they_share_a_scale() -> None:
    plain = json.loads(report().to_json())
    drawn = forest(plain)
    assert drawn.count("<circle") == 2  # the loss has no interval
    spans = [(float(a), float(b)) for a, b in re.findall(r'class="span" x1="([\d.]+)" x2="([\d.]+)"', drawn)]
    assert spans[0][0] < spans[0][1] < spans[1][0] < spans[1][1]
    assert forest({**plain, "protocol": "labelfree"}) == ""
