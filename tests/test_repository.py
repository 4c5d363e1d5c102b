"""What a clone must hold, and what it must not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = {".git", ".venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", "site", "runs", "build"}
TEXT = {".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".json", ".css", ".js", ".html", ".cfg", ""}
LARGEST = 2 << 20


def tracked() -> list[Path]:
    """Files that belong to the repository: git's view where there is one, else the tree without what is ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0 and listed.stdout:
        found = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if not SKIPPED & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in found if path.is_file())


FILES = tracked()
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def texts() -> list[tuple[str, str]]:
    own = Path(__file__).resolve()
    return [
        (str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
        for path in FILES
        if path.suffix in TEXT and path.resolve() != own and path.name != "LICENSE"
    ]


def hits(pattern: str, allowed: tuple[str, ...] = ()) -> list[str]:
    regex = re.compile(pattern)
    return [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in texts()
        if name not in allowed
        for number, line in enumerate(text.splitlines(), 1)
        if regex.search(line)
    ]


@pytest.mark.parametrize(
    "name",
    [
        "pyproject.toml", "Makefile", ".ci/run", ".gitignore", "README.md", "CHANGELOG.md", "CONTRIBUTING.md",
        "LICENSE", "constraints.txt", "mkdocs.yml", "docs/index.md", "docs/architecture.md", "docs/cli.md",
        "src/imprint/py.typed",
    ],
)  # fmt: skip
def test_the_clone_is_complete(name: str) -> None:
    assert (ROOT / name).is_file()


def test_the_files_were_found() -> None:
    assert len(FILES) > 100


def test_no_path_of_any_machine() -> None:
    assert hits(r"(?<![\w.])/(work|root|Users|home/\w+|opt|mnt)/\w") == []


def test_only_the_readme_names_a_package_index() -> None:
    assert hits(r"pypi\.org|pythonhosted|download\.pytorch\.org|--extra-index-url|find-links", ("README.md",)) == []


def test_nothing_is_left_undone() -> None:
    assert hits(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError") == []


def test_no_merge_marks_and_no_stray_output() -> None:
    assert hits(r"^(<{7}|>{7}|={7}$)") == []
    strays = [path for path in FILES if path.suffix in {".pyc", ".log", ".tmp", ".orig", ".ipynb", ".pt", ".pth"}]
    assert strays == []


def test_no_large_file() -> None:
    assert [str(path) for path in FILES if path.stat().st_size > LARGEST] == []


def test_ci_is_lint_and_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make lint && make test" in script.read_text(encoding="utf-8")


def test_ci_fails_when_a_part_fails_and_prints_pytests_last_line(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "run"
    script.write_bytes((ROOT / ".ci" / "run").read_bytes())
    for lint, test, passes in (("true", "true", True), ("false", "true", False), ("true", "false", False)):
        makefile = (
            f'browser:\n\t@true\nlint:\n\t@{lint}\ntest:\n\t@echo "==== 3 passed, 1 skipped in 2.50s ===="; {test}\n'
        )
        (tmp_path / "Makefile").write_text(makefile, encoding="utf-8")
        done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
        assert (done.returncode == 0) is passes, (lint, test)
        if lint == "true":
            assert done.stdout.rstrip().splitlines()[-1] == "==== 3 passed, 1 skipped in 2.50s ===="


@pytest.mark.parametrize("target", ["demo", "test", "lint", "docs", "bench", "fidelity", "browser"])
def test_make_knows_the_target(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_all_extras_are_offered_and_doctor_knows_each() -> None:
    from imprint.cli.doctor import EXTRAS

    wanted = {"detection", "video", "text", "diffusion", "hub", "webdataset", "export", "slurm", "bench", "dev"}
    offered = set(PROJECT["project"]["optional-dependencies"])
    assert wanted <= offered
    assert set(EXTRAS) == offered


def test_every_dependency_is_pinned_where_the_makefile_installs_it() -> None:
    pins = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    extras = PROJECT["project"]["optional-dependencies"]
    installed = ("dev", "bench", "export", "hub", "maps", "text")  # dev brings the last four
    needed = [*PROJECT["project"]["dependencies"], *(need for extra in installed for need in extras[extra])]
    names = {re.split(r"[<>=~!\[; ]", need)[0].lower().replace("_", "-") for need in needed}
    assert names - {"imprint"} <= pins, names - pins


def test_what_the_package_imports_is_what_it_asks_for() -> None:
    """Every library that `src` imports is a dependency or belongs to an extra."""
    import ast
    import sys

    modules = {
        "cv2": "opencv-python-headless", "PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn",
        "llvmlite": "numba", "umap": "umap-learn",
    }  # fmt: skip
    extras = PROJECT["project"]["optional-dependencies"]
    needed = [*PROJECT["project"]["dependencies"], *(need for extra in extras.values() for need in extra)]
    names = {re.split(r"[<>=~!\[; ]", need)[0].lower().replace("_", "-") for need in needed}
    used: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                used.add(node.module.split(".")[0])
    third = used - set(sys.stdlib_module_names) - {"imprint"}
    unknown = {name for name in third if modules.get(name, name).lower().replace("_", "-") not in names}
    assert not unknown, f"imported but neither a dependency nor in an extra: {sorted(unknown)}"


def test_the_version_is_in_the_changelog() -> None:
    version = PROJECT["project"]["version"]
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_licence_is_apache() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    generated = {"api.md", "methods", "options.md", "protocols.md"}
    for path in FILES:
        if path.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
            if "://" in target or target.startswith("mailto:") or target.split("/")[0] in generated:
                continue
            if not (path.parent / target).exists():
                broken.append(f"{path.relative_to(ROOT)} -> {target}")
    assert not broken, broken


def test_the_readme_lists_every_method_with_its_status() -> None:
    from imprint.methods.catalog import CATALOG

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for row in CATALOG:
        assert re.search(rf"^\| *`{row.name}` *\|", readme, re.MULTILINE), f"{row.name} is missing in README's table"


def test_stored_tables_beside_the_methods_are_json_objects() -> None:
    for path in (ROOT / "src" / "imprint" / "methods").glob("*.json"):
        assert isinstance(json.loads(path.read_text(encoding="utf-8")), dict), path
