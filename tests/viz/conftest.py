"""A run folder as the trainer leaves it, small enough to make in a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from imprint.backbones.build import build_encoder
from imprint.backbones.stored import save_encoder

SIDE = 32


def images_of(folder: Path, per_class: int = 12) -> Path:
    rng = np.random.default_rng(0)
    for c, name in enumerate(("disc", "stripes", "noise")):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            image = np.full((SIDE, SIDE, 3), 40 + 60 * c, np.uint8)
            if name == "disc":
                cv2.circle(image, (16, 16), 5 + i % 8, (220, 40, 40), -1)
            elif name == "stripes":
                image[:, :: 2 + i % 4] = (40, 200, 60)
            else:
                image = rng.integers(0, 255, image.shape).astype(np.uint8)
            cv2.imwrite(str(folder / name / f"{i:02d}.png"), image)
    return folder


def metrics_of(steps: int = 200) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(10, steps + 1, 10):
        line = {
            "step": step,
            "epoch": step / 50,
            "time": step * 0.5,
            "loss": 5.0 / step + 1,
            "lr": 1e-3,
            "grad_norm": 2.0,
        }
        line |= {"images_per_s": 100.0 + step, "data_wait": 0.05, "memory_mb": 500.0, "dino/teacher_entropy": 4.0}
        if step == 50:
            line["loss"] = None
        lines.append(line)
        if step % 100 == 0:
            lines.append(
                {"step": step, "epoch": step / 50, "time": step * 0.5, "probe/knn_top1": step / 4, "rank/rankme": 9.0}
            )
    lines.append({"step": steps, "time": steps * 0.5, "event": "finished"})
    return lines


@pytest.fixture(scope="session")
def make_images() -> Callable[..., Path]:
    """Return the function that fills a folder with small images of three classes."""
    return images_of


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a run folder; keyword arguments leave parts out or choose the encoder."""

    def make(name: str = "run", encoder: str | None = "vit_tiny_patch16_224", data: Any = None, **config: Any) -> Path:
        run = tmp_path / name
        run.mkdir()
        if data is None:
            data = tmp_path / "images"
            if not data.exists():
                images_of(data)
        if encoder is not None:
            torch.manual_seed(0)
            patch = {"patch_size": 8} if "vit" in encoder else {}
            save_encoder(build_encoder(encoder, image_size=SIDE, arch={"depth": 2} if patch else None, **patch), run)
        written = {
            "name": "dino",
            "recipe": "small",
            "encoder": {"name": encoder or "resnet18", "image_size": SIDE},
            "data": {"train": [str(data)], "val": None, "mean": [0.5], "std": [0.25]},
            "batch_size": 50,
            "seed": 3,
            **config,
        }
        (run / "config.json").write_text(json.dumps(written))
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics_of()))
        (run / "samples").mkdir()
        views = {
            "global": torch.randint(256, (2, 6, 3, 32, 32), dtype=torch.uint8),
            "local": torch.randint(256, (4, 6, 3, 16, 16), dtype=torch.uint8),
            "mask:global": torch.zeros(1, 6, 16, dtype=torch.bool),
        }
        save_file(views, run / "samples" / "views.safetensors")
        return run

    return make
