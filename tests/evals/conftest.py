"""Small sources with a signal in them, and encoders that need no weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from imprint.backbones.encoder import Encoder, Features
from imprint.data.arrays import ArraySource

CLASSES = ("ant", "bee", "cat", "dog")


def blobs(count: int, seed: int, noise: float = 60.0, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, side, side, 3) around one mean per class, and labels."""
    means = np.random.default_rng(0).uniform(60, 195, (len(CLASSES), side, side, 3))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), count)
    images = np.clip(means[labels] + rng.normal(0, noise, (count, side, side, 3)), 0, 255).astype(np.uint8)
    return images, labels


class TinyEncoder(Encoder):
    """Two class-token-like outputs from random projections; counts its calls."""

    def __init__(self, width: int = 6, cls: bool = True) -> None:
        super().__init__()
        self.name, self.embed_dim, self.patch_size, self.depth = "tiny", width, 4, 3
        self.channels, self.image_size, self.has_cls = 3, 8, cls
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(48, width, generator=generator))
        self.dropout = torch.nn.Dropout(0.5)
        self.calls = 0

    def encode(self, images_BCHW: Tensor, mask_BN: Tensor | None = None, keep_BM: Tensor | None = None) -> Features:
        self.calls += 1
        patches = torch.nn.functional.unfold(images_BCHW, 4, stride=4).transpose(1, 2) @ self.weight
        patches = self.dropout(patches)
        side = images_BCHW.shape[-1] // 4
        return Features(patches.amax(1), patches[:, 0] if self.has_cls else None, None, patches, (side, side))

    def encode_layers(self, images_BCHW: Tensor, layers: list[int]) -> list[Features]:
        full = self.encode(images_BCHW)
        scale = [1.0 + (i % self.depth) for i in layers]
        return [
            Features(
                full.pooled_BD * s,
                None if full.cls_BD is None else full.cls_BD * s,
                None,
                full.patches_BND * s,
                full.grid,
            )
            for s in scale
        ]

    @property
    def config(self) -> dict[str, object]:
        return {"name": "tiny", "width": self.embed_dim}


@pytest.fixture
def tiny() -> TinyEncoder:
    return TinyEncoder()


@pytest.fixture
def train() -> ArraySource:
    images, labels = blobs(240, 1)
    return ArraySource(images, labels, classes=CLASSES, name="train")


@pytest.fixture
def test() -> ArraySource:
    images, labels = blobs(80, 2)
    return ArraySource(images, labels, classes=CLASSES, name="test")


@pytest.fixture
def unlabelled() -> ArraySource:
    return ArraySource(blobs(40, 3)[0], name="bare")


class PatchEncoder(TinyEncoder):
    """TinyEncoder whose maps keep the frame's aspect; `fail_at` makes the n-th call fail."""

    fail_at = 0

    def encode(self, images_BCHW: Tensor, mask_BN: Tensor | None = None, keep_BM: Tensor | None = None) -> Features:
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        patches = torch.nn.functional.unfold(images_BCHW, 4, stride=4).transpose(1, 2) @ self.weight
        grid = (images_BCHW.shape[-2] // 4, images_BCHW.shape[-1] // 4)
        return Features(patches.mean(1), None, None, patches, grid)


@pytest.fixture
def patches() -> PatchEncoder:
    return PatchEncoder(width=16)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder in DAVIS layout: two squares that move over noise in `near`, one in `far2` and `far10`."""
    root = tmp_path / "videos"
    for name, objects, frames in (("far10", 1, 6), ("far2", 1, 7), ("near", 2, 8)):
        rng = np.random.default_rng(len(name) + objects)
        ground = rng.integers(90, 130, (48, 72, 3)).astype(np.uint8)
        for kind in ("JPEGImages", "Annotations"):
            (root / kind / "48p" / name).mkdir(parents=True)
        for t in range(frames):
            image, ids = ground.copy(), np.zeros((48, 72), np.uint8)
            for k in range(1, objects + 1):
                y, x = 4 + 22 * (k - 1), 4 + 4 * t
                image[y : y + 16, x : x + 20] = ((250, 30, 30), (30, 60, 250))[k - 1]
                ids[y : y + 16, x : x + 20] = k
            Image.fromarray(image).save(root / "JPEGImages" / "48p" / name / f"{t}.png")
            mask = Image.fromarray(ids if objects > 1 else ids * 255)
            if objects > 1:
                mask.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
            mask.save(root / "Annotations" / "48p" / name / f"{t}.png")
    return root
