"""The page of RCDM samples: what it holds, what it measures, and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import torch
from torch import Tensor

from imprint.cli.main import main
from imprint.core.errors import ConfigError
from imprint.core.progress import Steps
from imprint.data.batch import Normalise
from imprint.recipes.book import recipe
from imprint.train.entry import pretrain_run
from imprint.train.tensorfile import read_tensors
from imprint.viz.rcdm_page import Painter, build_rcdm_page, faithfulness, open_painter


@pytest.fixture(scope="module")
def photos(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("photos") / "images", per_class=8)


@pytest.fixture(scope="module")
def runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An encoder's run, and RCDM told its backbone and its projector."""
    folder = tmp_path_factory.mktemp("rcdm")
    made: dict[str, Path] = {}
    for name in ("simclr", "backbone", "projector"):
        config = recipe("simclr/debug" if name == "simclr" else "rcdm/debug")
        data = dataclasses.replace(config.data, train=(str(photos),))
        config = dataclasses.replace(config, data=data, length=Steps(2), workers=1, device="cpu", precision="fp32")
        if name != "simclr":
            method = dataclasses.replace(config.method, condition=name)
            config = dataclasses.replace(config, start="../simclr", method=method)
        made[name] = pretrain_run(config, folder / name).path
    return made


def test_the_encoder_leaves_as_it_came(runs: dict[str, Path]) -> None:
    given, *later = [read_tensors(runs[n] / "encoder.safetensors") for n in ("simclr", "backbone", "projector")]
    for stored in later:
        assert stored.keys() == given.keys() and all(torch.equal(stored[k], v) for k, v in given.items())


def test_page_and_picture(
    runs: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [str(runs["backbone"]), str(runs["projector"])]
    words = ["--data", str(photos), "--images", "4", "--samples", "2", "--measured", "6", "--side", "40"]
    assert main(["paint", *both, *words, "--device", "cpu", "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    document = (tmp_path / "page.html").read_text()
    for part in ('id="samples"', 'id="between"', 'id="measures"', "own condition found", "backbone", "projector"):
        assert part in document
    assert document.count("data:image/png") == 2
    build_rcdm_page(both, str(photos), tmp_path / "one.png", images=4, samples=2, side=40, device="cpu")
    height, width = cv2.imread(str(tmp_path / "one.png")).shape[:2]
    assert height > 4 * 40 and width > 5 * 40  # four images; each with two samples of two runs
    first = (tmp_path / "one.png").read_bytes()
    build_rcdm_page(both, str(photos), tmp_path / "one.png", images=4, samples=2, side=40, device="cpu")
    assert (tmp_path / "one.png").read_bytes() == first


@dataclasses.dataclass(frozen=True)
class Copyist(Painter):
    """Paints given images, those of its condition or of the next."""

    originals: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0))
    shift: int = 0

    def paint(self, condition_SD: Tensor, noise_S: Tensor, steps: int | None = None) -> Tensor:
        own = torch.cdist(condition_SD, self.conditions(self.originals)).argmin(1)
        return self.originals[(own + self.shift) % len(self.originals)]


def test_measures_know_a_copy_from_another_image(runs: dict[str, Path]) -> None:
    painter = open_painter(runs["backbone"], "cpu")
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    kept = (painter.name, painter.method, Normalise(), painter.device)
    same = faithfulness(Copyist(*kept, originals=images), images)
    assert (same.top1, same.mrr, same.among) == (1.0, 1.0, 6) and same.variety == 0.0
    other = faithfulness(Copyist(*kept, originals=images, shift=1), images)
    assert other.top1 == 0.0 and other.mrr <= 0.5


def test_other_runs_are_refused(runs: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="simclr run; only rcdm"):
        build_rcdm_page([runs["simclr"]], str(photos), tmp_path / "page.html")
    with pytest.raises(ConfigError, match="at least one"):
        build_rcdm_page([], str(photos), tmp_path / "page.html")
