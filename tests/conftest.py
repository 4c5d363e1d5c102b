"""What every test may rely on: few threads, no network, and a cache of its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before torch, OpenCV or numba start their pools: tests are small, and threads that wait for each other are slow.
for _name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parents[1]
_LOCAL = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep indexes and features out of the user's cache; processes started by tests inherit it."""
    before = os.environ.get("IMPRINT_CACHE")
    os.environ["IMPRINT_CACHE"] = str(tmp_path_factory.mktemp("imprint-cache"))
    yield
    if before is None:
        del os.environ["IMPRINT_CACHE"]
    else:
        os.environ["IMPRINT_CACHE"] = before


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Refuse every connection that would leave this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in _LOCAL:
            raise OSError(f"a test tried to reach {address[0]}")
        connect(self, address)

    socket.socket.connect = guarded  # type: ignore[method-assign]
    yield
    socket.socket.connect = connect  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def sample_data(root: Path) -> Path:
    """Real images for measuring, where they are at hand; tests that need them are skipped elsewhere."""
    folder = Path(os.environ.get("IMPRINT_SAMPLE_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no sample data here; set IMPRINT_SAMPLE_DATA")
    return folder
