"""Kernels are kept on disk, wherever that is possible, and work where it is not."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from imprint.data import compiled, kernels

PROGRAM = """
import numpy as np
from imprint.data import kernels
from imprint.data.augment import ViewEngine
from imprint.data.view_recipes import evaluation_views
engine = ViewEngine(evaluation_views(16, resize=16))
out = {"eval": np.zeros((1, 1, 3, 16, 16), np.uint8)}
engine.render(np.zeros((20, 20, 3), np.uint8), engine.draw(0, 0, [0]), 0, out)
stats = kernels.render.stats
print(len(stats.cache_hits), len(stats.cache_misses))
"""


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    seen = [
        subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert [run.stdout.split() for run in seen] == [["0", "1"], ["1", "0"]]


def test_a_module_in_a_read_only_folder_is_cached_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "installed"
    folder.mkdir()
    (folder / "readonly_module.py").write_text(
        "from imprint.data.compiled import kernel\n@kernel\ndef double(x):\n    return 2 * x\n"
    )
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    home = tmp_path / "home"
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    environment |= {"PYTHONPATH": str(folder), "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    try:
        subprocess.run(
            [sys.executable, "-c", "from readonly_module import double; assert double(3) == 6"],
            env=environment,
            check=True,
        )
        if os.geteuid() != 0:  # root writes where nobody may
            assert list(home.rglob("*.nbi"))
    finally:
        folder.chmod(stat.S_IRWXU)


def test_where_nothing_can_be_written_kernels_still_work(monkeypatch: pytest.MonkeyPatch) -> None:
    real = numba.njit

    def refusing(*args: object, cache: bool = False, **options: object) -> object:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(*args, **options)

    monkeypatch.setattr(numba, "njit", refusing)
    triple = compiled.kernel(lambda x: 3 * x)
    assert triple(4) == 12


def test_kernels_release_the_gil() -> None:
    assert kernels.render.targetoptions["nogil"]  # type: ignore[attr-defined]
