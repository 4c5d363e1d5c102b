"""The report opened in a real browser: it loads from disk alone, answers the pointer, and runs no stranger's script."""

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
from safetensors.torch import save_file

from imprint.backbones.build import build_encoder
from imprint.backbones.stored import save_encoder
from imprint.viz.compare import build_compare
from imprint.viz.report import build_report

pytestmark = pytest.mark.browser

EVIL = "<img src=x onerror=window.owned=1><script>window.owned=1<script>"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small ViT on images whose folders and files have hostile names."""
    base = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    for c, name in enumerate(("plain", EVIL)):
        (base / "images" / name).mkdir(parents=True)
        for i in range(15):
            image = np.clip(rng.normal(60 + 120 * c, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(base / "images" / name / "x.png"), image)
            (base / "images" / name / "x.png").rename(base / "images" / name / f"{EVIL[:60]}{i:02d}.png")
    folder = base / "run"
    torch.manual_seed(0)
    save_encoder(build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, arch={"depth": 2}), folder)
    config = {
        "name": EVIL, "recipe": EVIL, "batch_size": 8, "seed": 0, "provenance": {"source": EVIL},
        "encoder": {"name": "vit_tiny_patch16_224", "image_size": 32},
        "data": {"train": [str(base / "images")], "mean": [0.5], "std": [0.25]},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    lines: list[dict[str, Any]] = [
        {"step": s, "epoch": s / 10, "time": s, "loss": 100.0 / s, "lr": 1e-3, "images_per_s": 9.0, "data_wait": 0.1}
        for s in range(10, 501, 10)
    ]
    lines += [{"step": s, "probe/knn_top1": s / 10, "probe/linear_top1": s / 9} for s in (100, 300, 500)]
    lines += [{"step": 20, "warning": EVIL}, {"step": 500, f"{EVIL}/metric": 1.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "quarantine.jsonl").write_text(json.dumps({"name": EVIL, "reason": "empty", "detail": EVIL}) + "\n")
    (folder / "samples").mkdir()
    save_file({"global": torch.zeros(2, 4, 3, 32, 32, dtype=torch.uint8)}, folder / "samples" / "views.safetensors")
    build_report(folder, device="cpu")
    return folder


@pytest.fixture
def opened(browser: Any, run: Path) -> Iterator[Opened]:
    yield from open_file(browser, run / "report.html")


def open_file(browser: Any, path: Path) -> Iterator[Opened]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    found = Opened(page)
    page.on("console", lambda message: found.complaints.append(message.text))
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("dialog", lambda dialog: (found.complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: found.requests.append(request.url))
    page.goto(path.as_uri())
    yield found
    page.close()


def test_loads_from_disk_alone_without_a_complaint(opened: Opened, run: Path) -> None:
    page = opened.page
    assert page.locator("section h2").all_inner_texts()[:1] == ["Curves"]
    for box in ("#views img", "#attention img", "#patches img", "#correspondence img", "#norms img"):
        assert page.locator(box).first.evaluate("i => i.complete && i.naturalWidth > 0"), box
    assert page.locator("svg.map circle").count() == 30
    outside = [url for url in opened.requests if not url.startswith("data:") and url != (run / "report.html").as_uri()]
    assert outside == [] and opened.complaints == []


def test_pointing_at_a_curve_names_step_and_value(opened: Opened) -> None:
    page = opened.page
    chart = page.locator('svg.chart[aria-label="Loss"]')
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    tip = page.locator("#tip")
    assert not tip.is_visible()
    page.mouse.move(box["x"] + box["width"] * 546 / 560, box["y"] + box["height"] / 2)
    assert tip.inner_text().split("\n") == ["step 500", "loss: 0.2"]
    page.mouse.move(box["x"] + box["width"] * 58 / 560, box["y"] + box["height"] / 2)
    assert tip.inner_text().split("\n") == ["step 10", "loss: 10"]
    page.mouse.move(2, 2)
    assert not tip.is_visible()


def test_filters_show_only_what_is_asked_for(opened: Opened) -> None:
    page = opened.page
    page.locator("#curves input").fill("LEARNING")
    assert page.locator(".curve:visible h3").all_inner_texts() == ["Learning rate"]
    assert page.locator("#curves .count").inner_text().startswith("1 of ")
    page.locator("#curves input").fill("")
    assert page.locator(".curve:visible").count() > 5
    rows = page.locator(".hood").count()
    page.locator("#neighbours input").fill("plain")
    assert 0 < page.locator(".hood:visible").count() < rows


def test_map_shows_images_switches_layout_and_hides_groups(opened: Opened) -> None:
    page = opened.page
    page.locator("#map").scroll_into_view_if_needed()
    dot = page.locator("svg.map circle").first
    before = dot.get_attribute("cx"), dot.get_attribute("cy")
    page.locator('[data-layout="PCA"]').click()
    assert (dot.get_attribute("cx"), dot.get_attribute("cy")) != before
    assert page.locator('[data-layout="PCA"]').get_attribute("aria-pressed") == "true"
    last = page.locator("svg.map circle").last  # drawn on top of the others
    last.hover(force=True)
    tip = page.locator("#tip")
    assert tip.is_visible() and ".png" in tip.inner_text()
    assert "url(" in tip.locator(".face").evaluate("f => getComputedStyle(f).backgroundImage")
    visible = page.locator("svg.map circle:visible").count()
    page.locator("[data-group]").first.click()
    assert page.locator("svg.map circle:visible").count() == visible - 15
    page.locator("[data-group]").first.click()
    assert page.locator("svg.map circle:visible").count() == visible


def test_a_file_named_like_a_script_is_only_a_name(browser: Any, run: Path, tmp_path: Path) -> None:
    """The page of `imprint look map`: a thumbnail and the name under the pointer, nothing runs, nothing is fetched."""
    from imprint.viz.look import save_map
    from imprint.viz.looks import MapLook

    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        cv2.imwrite(str(tmp_path / "x.png"), rng.integers(0, 255, (32, 32, 3)).astype(np.uint8))
        (tmp_path / "x.png").rename(folder / f"{'<img src=x onerror=alert(1)>'}{i:02d}.png")
    path = save_map(run, folder, tmp_path / "map.html", MapLook(layouts=("t-SNE", "PCA"), device="cpu"))
    context = browser.new_context(offline=True)
    page = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    seen = set()
    for row in range(12):
        page.locator("svg.map circle").nth(row).dispatch_event("pointermove", {"clientX": 200, "clientY": 200})
        tip = page.locator("#tip")
        assert tip.is_visible() and "<img src=x onerror=alert(1)>" in tip.inner_text()
        face = tip.locator(".face").evaluate("f => [getComputedStyle(f).backgroundImage, f.style.backgroundPosition]")
        assert face[0].startswith('url("data:image/jpeg')
        seen.add((face[1], tip.inner_text()))
    assert len(seen) == 12 and page.locator("#tip img").count() == 0
    page.locator('[data-layout="PCA"]').click()
    page.wait_for_timeout(200)
    assert complaints == [] and [url for url in requests if not url.startswith(("data:", path.as_uri()))] == []
    context.close()


def test_hostile_names_are_text(opened: Opened) -> None:
    page = opened.page
    page.locator("svg.map circle").last.hover(force=True)
    assert "<img" in page.locator("#tip").inner_text()
    assert page.locator("#tip img").count() == 0
    page.wait_for_timeout(200)
    assert page.evaluate("window.owned") is None and opened.complaints == []
    assert EVIL in page.locator("h1").inner_text()


def test_the_policy_stops_a_script_that_slips_in(browser: Any, run: Path, tmp_path: Path) -> None:
    document = (run / "report.html").read_text()
    slipped = document.replace(
        "</main>", "<script>window.owned = 1</script><img src=x onerror='window.owned = 2'></main>"
    )
    (tmp_path / "slipped.html").write_text(slipped)
    for opened in open_file(browser, tmp_path / "slipped.html"):
        opened.page.wait_for_timeout(200)
        assert opened.page.evaluate("window.owned") is None
        assert any("Content Security Policy" in text for text in opened.complaints)


@pytest.mark.parametrize("width", [390, 1600])
def test_page_never_scrolls_sideways(opened: Opened, width: int) -> None:
    opened.page.set_viewport_size({"width": width, "height": 800})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width


def test_comparison_loads_too(browser: Any, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(run / name, other / name)
    path = build_compare([run, other], tmp_path / "compare.html")
    for opened in open_file(browser, path):
        assert opened.page.locator("svg.chart").count() >= 3
        assert opened.complaints == [] and opened.page.evaluate("window.owned") is None
