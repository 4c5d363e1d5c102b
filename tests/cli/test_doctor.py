from __future__ import annotations

import re
from pathlib import Path

import pytest

from imprint.cli import doctor
from imprint.cli import main as cli


def test_it_looks_at_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in ("python", "cores", "memory", "torch", "bf16", "threads", "torchvision", "jpeg", "cache", "disk"):
        assert re.search(rf"^(ok|warn) +{name} ", out, re.MULTILINE), name
    for extra in doctor.EXTRAS:
        assert f"[{extra}]" in out
    assert re.search(r"(\d+ warnings?\.|All well\.)$", out)


def test_a_warning_comes_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOW_DISK", 1 << 62)
    monkeypatch.setattr(doctor, "_memory_bytes", lambda: (8 << 30, 1 << 30))
    assert "--out" in doctor.disk().cure
    assert "--batch-size" in doctor.memory().cure
    monkeypatch.setattr(doctor, "_memory_bytes", lambda: (0, 0))
    assert doctor.memory() == doctor.Finding("memory", "unknown on this system")


def test_what_cannot_be_looked_at_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def cores() -> doctor.Finding:
        raise RuntimeError("no such file")

    monkeypatch.setattr(doctor, "cores", cores)
    found = {finding.name: finding for finding in doctor.findings()}
    assert "no such file" in found["cores"].value and found["cores"].cure
    assert "memory" in found


def test_a_missing_extra_says_what_it_is_for_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"moon": ("landing", ("no_such_module_at_all",))})
    (finding,) = doctor.extras()
    assert finding.value == "landing; not installed: pip install 'imprint[moon]'" and not finding.cure


def test_a_cache_that_cannot_be_written_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path / "a" / "b"))
    assert doctor.cache() == doctor.Finding("cache", str(tmp_path / "a" / "b"))
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert "IMPRINT_CACHE" in doctor.cache().cure
