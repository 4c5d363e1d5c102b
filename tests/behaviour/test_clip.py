"""CLIP on drawn shapes: training pairs find each other, and classes named by texts are told apart on unseen images."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from imprint.backbones.dual_encoder import DualEncoder
from imprint.core.progress import Steps
from imprint.core.schedules import constant
from imprint.data.arrays import ArraySource
from imprint.data.compact import Names
from imprint.data.pairs import Captions, PairSource
from imprint.data.texts import TextConfig
from imprint.evals.evaluate import evaluate
from imprint.recipes import scale
from imprint.recipes.book import recipe
from imprint.train.config import LR, OptimConfig
from imprint.train.entry import pretrain_run

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 220), "yellow": (230, 220, 40)}
SHAPES = ("square", "disc", "cross")
GROUNDS = {"white": (240, 240, 240), "black": (15, 15, 15), "purple": (140, 30, 160), "orange": (240, 140, 20)}
Picture = npt.NDArray[np.uint8]


def drawn(colour: str, shape: str, ground: str, rng: np.random.Generator) -> Picture:
    """Draw one shape of about 16 pixels somewhere on its ground."""
    picture = np.array(GROUNDS[ground]) + rng.integers(-15, 16, (32, 32, 3))
    y, x = np.mgrid[:32, :32]
    at = rng.integers(10, 22, 2)
    dy, dx, half = abs(y - at[0]), abs(x - at[1]), int(rng.integers(7, 10))
    inside = {
        "square": np.maximum(dy, dx) <= half - 1,
        "disc": dy**2 + dx**2 <= half**2,
        "cross": (np.minimum(dy, dx) <= 1) & (np.maximum(dy, dx) <= half),
    }[shape]
    picture[inside] = np.array(COLOURS[colour]) + rng.integers(-20, 21, 3)
    return np.clip(picture, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PairSource]:
    """Train on 48 images, each combination once, with two ways to say it."""
    rng = np.random.default_rng(0)
    all_of = list(itertools.product(COLOURS, SHAPES, GROUNDS))
    images = ArraySource(np.stack([drawn(*one, rng) for one in all_of]))
    said = [(f"a {c} {s} on {g}", f"on {g} there is one {s}, a {c} one") for c, s, g in all_of]
    captions = Captions(Names.of(text.encode() for two in said for text in two))
    pairs = PairSource(images, captions, np.arange(0, 97, 2), "shapes")
    base = recipe("clip/debug")
    plan = dataclasses.replace(
        base,
        method=dataclasses.replace(
            base.method,
            vocabulary=0,
            text_width=64,
            text_layers=0,
            text_pool="mean",
            projection=32,
            flip=0.5,
            colour=0.0,
            crop_scale=(0.7, 1.0),
        ),
        encoder=scale.narrow_resnet(32),
        data=dataclasses.replace(base.data, text=TextConfig(kind="wordpiece", vocabulary=100, held_out=0.0)),
        optim=OptimConfig(name="adamw", lr=LR(base=3e-3, rule="none", warmup=Steps(10)), weight_decay=constant(0.05)),
        batch_size=48,
        length=Steps(200),
        checkpoint_every=Steps(200),
        log_every=10,
        workers=1,
        device="cpu",
        precision="fp32",
    )
    folder = tmp_path_factory.mktemp("clip") / "run"
    pretrain_run(plan, folder, source=pairs)
    return folder, pairs


def test_training_pairs_are_matched(run: tuple[Path, PairSource]) -> None:
    folder, pairs = run
    report = evaluate("retrieval", str(folder), pairs, image_size=32, cache=False)
    for way in ("text_to_image", "image_to_text"):
        assert report.metrics[f"{way}_r@1"].value >= 95.0
    assert report.details["chance"]["text_to_image_r@1"] < 3.0


def test_texts_name_what_unseen_images_show(run: tuple[Path, PairSource], tmp_path: Path) -> None:
    folder, _ = run
    rng = np.random.default_rng(1)
    concepts = list(itertools.product(COLOURS, SHAPES))
    shown = [(label, c, s, g) for label, (c, s) in enumerate(concepts) for g in GROUNDS for _ in range(2)]
    unseen = ArraySource(
        np.stack([drawn(c, s, g, rng) for _, c, s, g in shown]),
        np.array([label for label, *_ in shown]),
        classes=tuple(f"{c} {s}" for c, s in concepts),
    )
    templates = tmp_path / "templates.txt"
    templates.write_text("\n".join(f"a {{}} on {ground}" for ground in GROUNDS))
    report = evaluate("zeroshot", str(folder), unseen, image_size=32, cache=False, templates=str(templates))
    assert report.metrics["top1"].value >= 45.0 > 5 * report.details["chance"]["top1"]
    untrained = evaluate("zeroshot", f"random:{folder}", unseen, image_size=32, cache=False, templates=str(templates))
    assert untrained.metrics["top1"].value < 25.0


def test_the_run_is_a_model_of_both(run: tuple[Path, PairSource]) -> None:
    from imprint.train.run import Run

    encoder = Run.open(run[0]).encoder()
    assert isinstance(encoder, DualEncoder) and 1.0 <= encoder.logit_scale.item() <= 100.0
    with torch.no_grad():
        assert encoder.encode_text(["a red square"]).shape == (1, 32)
