"""`imprint demo` from end to end; the network and the budget are cut, all else is what a person runs."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from imprint.backbones.arch import Arch
from imprint.cli import demo
from imprint.cli.main import main
from imprint.core.progress import Steps


def test_the_demo_trains_measures_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = demo.config()
    narrow = dataclasses.replace(whole.encoder, arch=Arch(layers=(1, 1, 1, 1), channels=(8, 8, 16, 16)))
    short = dataclasses.replace(whole, encoder=narrow, budget=None, length=Steps(4), batch_size=16)
    assert whole.budget == demo.SECONDS
    monkeypatch.setattr(demo, "config", lambda: short)
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    figures = {name: float(value) for name, value in re.findall(r"^  ([a-z ]+?) +([\d.]+) %", shown, re.MULTILINE)}
    assert set(figures) == {"raw pixels", "untrained encoder", "trained encoder"}
    assert all(0 < value <= 100 for value in figures.values())
    assert f"report   {out / 'report.html'}" in shown and (out / "report.html").stat().st_size > 10_000
    for name in ("raw-pixels", "untrained-encoder", "trained-encoder"):
        report = json.loads((out / "evals" / f"knn-{name}.json").read_text())
        assert report["metrics"][report["main"]]["value"] == pytest.approx(figures[name.replace("-", " ")], abs=0.05)
    assert main(["demo", "--out", str(out)]) == 2  # never over an old run


def test_the_untrained_encoder_is_the_one_that_training_starts_from(tmp_path: Path) -> None:
    from imprint.train.entry import pretrain_run

    config = dataclasses.replace(demo.config(), budget=None, length=Steps(1))
    still = dataclasses.replace(
        config, optim=dataclasses.replace(config.optim, lr=dataclasses.replace(config.optim.lr, base=0.0))
    )
    trained = pretrain_run(still, tmp_path / "r").encoder()
    fresh = demo.untrained(config)
    for (name, ours), (_, theirs) in zip(fresh.named_parameters(), trained.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
