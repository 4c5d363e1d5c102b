"""The comparison and an evaluation in a real browser: from disk, sorted, filtered, and no script of strangers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.backbones.stored import save_encoder
from imprint.evals.report import Figure, Metric, Report
from imprint.viz.compare import build_compare
from imprint.viz.evaluation_page import build_evaluation_page
from imprint.viz.report import build_report

pytestmark = pytest.mark.browser

EVIL = "<img src=x onerror=window.owned=1><script>window.owned=1<script>"
SHORT = "<img src=x onerror=window.owned=1>"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SCORES = {"one": (40.0, 12.0), "two": (55.5, 3.0), SHORT: (9.25, 30.0), "four": (41.0, 8.0)}


@dataclass
class Opened:
    """A page and everything it complained about or asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium on this machine (make browser installs it, CHROMIUM names one)")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (it is in the dev extra)")
    with api.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
        started = driver.chromium.launch(executable_path=program, args=options)
        yield started
        started.close()


def knn(encoder: str, value: float, **changed: Any) -> Report:
    values: dict[str, Any] = {
        "protocol": "knn",
        "encoder": encoder,
        "data": {"test": {"spec": f"/data/{EVIL}", "count": 100, "fingerprint": "f"}},
        "metrics": {
            "top1": Metric(value=value, low=value - 3, high=value + 3, n=100),
            "top5": Metric(value=value + 20, low=value + 18, high=value + 22, n=100),
        },
        "main": "top1",
        "details": {"decay": [9.0, 7.0, 6.0, 5.5, 5.2, 5.1, 5.0, 4.9, 4.8], EVIL: {f"c{i}": i for i in range(9)}},
        "cost": {"search_s": 2.0},
        "command": f"imprint evaluate knn --encoder X --test '{EVIL}'",
        "figures": (Figure(name="view", caption=EVIL, picture=np.full((20, 30, 3), 120, np.uint8)),),
    }
    return Report(**{**values, **changed})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four runs, one of them of a hostile name and the first two with ViTs, each with evaluations."""
    base = tmp_path_factory.mktemp("compare")
    (base / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        cv2.imwrite(str(base / "images" / f"{i}.png"), rng.integers(0, 255, (32, 32, 3)).astype(np.uint8))
    torch.manual_seed(0)
    folders = []
    for i, (name, (score, rank)) in enumerate(SCORES.items()):
        folder = base / name
        folder.mkdir()
        if i < 2:
            save_encoder(build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, arch={"depth": 1}), folder)
        config = {
            "name": EVIL, "batch_size": 8, "seed": i, "encoder": {"name": "vit_tiny_patch16_224", "image_size": 32},
            "data": {"train": [str(base / "images")], "mean": [0.5], "std": [0.25]},
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        lines = [{"step": s, "time": s * (i + 1), "loss": 9 / s, "memory_mb": 100 + i} for s in range(1, 30)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        knn(str(folder), score).save(folder / "evals" / "knn-1.json")
        free = {"rankme": Metric(value=rank), "lidar": Metric(value=rank + i)}
        knn(str(folder), 0, protocol="labelfree", metrics=free, main="rankme").save(folder / "evals" / "lf.json")
        folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def comparison(runs: list[Path]) -> Path:
    file = runs[0].parent / "public.json"
    knn(f"timm:{EVIL}", 50.0, figures=()).save(file)
    return build_compare([*runs, file], runs[0].parent / "compare.html", device="cpu")


def opened(browser: Any, path: Path) -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page = context.new_page()
    found = Opened(page)
    page.on("console", lambda message: found.complaints.append(message.text))
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("request", lambda request: found.requests.append(request.url))
    page.goto(path.as_uri())
    yield found
    outside = [url for url in found.requests if not url.startswith("data:") and url != path.as_uri()]
    assert outside == [] and found.complaints == []
    assert page.evaluate("window.owned") is None
    context.close()


def first_column(page: Any) -> list[str]:
    names: list[str] = page.locator("#league tbody tr:visible td:first-child").all_inner_texts()
    return names


def test_a_click_on_a_heading_sorts_and_a_second_one_turns_it_round(browser: Any, comparison: Path) -> None:
    for found in opened(browser, comparison):
        page = found.page
        public = f"timm:{EVIL}"
        assert first_column(page) == ["two", public, "four", "one", SHORT]  # by the shared evaluation
        heading = page.locator("#league th", has_text="memory MB")
        heading.locator("button").click()
        assert first_column(page) == ["four", SHORT, "two", "one", public]  # what is not known goes last
        assert heading.get_attribute("aria-sort") == "descending"
        heading.locator("button").click()
        assert first_column(page) == ["one", "two", SHORT, "four", public]
        page.locator("#league th", has_text="knn top1").locator("button").click()
        assert first_column(page) == ["two", public, "four", "one", SHORT]
        assert heading.get_attribute("aria-sort") == "none"
        page.locator("#league th").first.locator("button").click()
        assert first_column(page) == sorted([*SCORES, public], key=str.lower)


def test_rows_are_filtered_and_more_columns_shown_on_request(browser: Any, comparison: Path) -> None:
    for found in opened(browser, comparison):
        page = found.page
        page.locator("#league input").fill("FOUR")
        assert first_column(page) == ["four"] and page.locator("#league .count").inner_text() == "1 of 5"
        page.locator("#league input").fill("")
        assert len(first_column(page)) == 5
        assert not page.locator("#league th", has_text="knn top5").is_visible()
        page.locator("[data-wide]").click()
        assert page.locator("#league th", has_text="knn top5").is_visible()
        page.locator("[data-wide]").click()
        assert not page.locator("#league th", has_text="knn top5").is_visible()


def test_best_values_and_ties_are_marked(browser: Any, comparison: Path) -> None:
    for found in opened(browser, comparison):
        rows = found.page.locator("#league tbody tr")
        assert rows.nth(0).locator("td.best").first.inner_text().split() == ["55.50", "52.50", "to", "58.50"]
        tied = [rows.nth(i).locator("td.tie").count() for i in range(5)]
        assert tied[:2] == [0, 1] and tied[4] == 0  # 50 +- 3 overlaps 55.5 +- 3; 9 +- 3 does not


def test_pictures_stand_side_by_side_and_points_name_their_run(browser: Any, comparison: Path) -> None:
    for found in opened(browser, comparison):
        page = found.page
        assert page.locator("#pictures img").count() == 6  # the images and two ViTs, twice
        assert page.locator("#pictures img").evaluate_all("all => all.every(i => i.complete && i.naturalWidth > 0)")
        names = page.locator("#pictures .name").all_inner_texts()
        assert SHORT in names and names.count("two") == 2
        chart = page.locator('#labelfree svg.chart[aria-label="RankMe"]')
        chart.scroll_into_view_if_needed()
        dot = chart.locator("circle").first.bounding_box()
        page.mouse.move(dot["x"] + 3, dot["y"] + 3)
        assert page.locator("#tip").inner_text().split("\n") == ["two", "RankMe 3", "kNN % 55.5"]


def test_the_page_of_an_evaluation(browser: Any, runs: list[Path]) -> None:
    for found in opened(browser, build_evaluation_page(runs[2] / "evals" / "knn-1.json")):
        page = found.page
        assert page.locator("#figures img").evaluate("i => [i.naturalWidth, i.naturalHeight]") == [30, 20]
        assert page.locator("#figures figcaption").inner_text() == EVIL and SHORT in page.locator("h1").inner_text()
        assert page.locator("#details svg.chart").count() == 1
        table = page.locator("#details table.sortable")
        assert table.locator("tbody td").first.inner_text() == "c0"
        table.locator("th button").nth(1).click()
        assert table.locator("tbody td").first.inner_text() == "c8"
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_the_report_of_the_run_shows_its_evaluations(browser: Any, runs: list[Path]) -> None:
    for found in opened(browser, build_report(runs[2], device="cpu")):
        page = found.page
        assert page.locator("#evaluations .evaluation").count() == 2
        assert page.locator("#evaluations img").first.evaluate("i => i.naturalWidth") == 30
        assert "9.25" in page.locator("#evaluations").inner_text()


@pytest.mark.parametrize("width", [390, 1600])
def test_the_comparison_never_scrolls_sideways(browser: Any, comparison: Path, width: int) -> None:
    for found in opened(browser, comparison):
        found.page.set_viewport_size({"width": width, "height": 800})
        assert found.page.evaluate("document.documentElement.scrollWidth") <= width
