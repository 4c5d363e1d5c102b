"""Images for the runs of these tests, and the tools that kill them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tools():
    """Return the module `faulty_run` (tests are no package, so it is loaded by path)."""
    spec = importlib.util.spec_from_file_location("faulty_run", Path(__file__).with_name("faulty_run.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def images(tools, tmp_path_factory):
    return tools.write_images(tmp_path_factory.mktemp("images") / "images.npz")


@pytest.fixture(scope="session")
def labelled_images(tools, tmp_path_factory):
    return tools.write_images(tmp_path_factory.mktemp("labelled") / "images.npz", classes=3)
