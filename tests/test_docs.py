"""The documentation builds from the source, without a network, and says what the source says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from imprint.cli.main import COMMANDS
from imprint.evals import catalog as protocols
from imprint.methods import catalog

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out


def test_every_method_has_a_page_with_its_options_and_recipes(site: Path) -> None:
    for row in catalog.CATALOG:
        page = (site / "methods" / f"{row.name}.html").read_text(encoding="utf-8")
        for shown in (row.arxiv, f"{row.name}/paper", f"{row.name}/small", "--method.", "forward"):
            assert shown in page, (row.name, shown)


def test_every_protocol_command_and_public_name_is_explained(site: Path) -> None:
    listed = (site / "protocols.html").read_text(encoding="utf-8")
    assert all(f'id="{row.name}"' in listed for row in protocols.CATALOG)
    options = (site / "options.html").read_text(encoding="utf-8")
    assert all(f"imprint {name}" in options for name in COMMANDS)
    assert "--optim.lr.base" in options
    api = (site / "api.html").read_text(encoding="utf-8")
    assert all(f"imprint.{name}" in api for name in ("pretrain", "evaluate", "embed", "load_encoder", "methods", "Run"))


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]+src="(https?:)?//[^"]*"', text)
        loaded += re.findall(r'<link[^>]+rel="stylesheet"[^>]+href="(?:https?:)?//[^"]*"', text)
        assert loaded == [], page
