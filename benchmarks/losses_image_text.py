"""Losses of images and texts; merged into benchmarks/losses.py."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SIZES: dict[str, tuple[str, ...]] = {"clip": ("1024", "8192"), "siglip": ("1024", "8192")}
QUICK: dict[str, tuple[str, ...]] = {"clip": ("1024",), "siglip": ("1024",)}
RIVALS: dict[str, tuple[str, ...]] = {
    "clip": ("imprint", "open_clip"),
    "siglip": ("imprint", "open_clip"),
}
WIDTH = 512


def open_clip_losses() -> Any:
    """Import open_clip's file of losses by itself: the package as a whole wants tokenizers that no loss needs."""
    if "open_clip" not in sys.modules:
        found = importlib.util.find_spec("open_clip")
        if found is None or found.submodule_search_locations is None:
            raise ModuleNotFoundError("open_clip is not installed")
        package = types.ModuleType("open_clip")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["open_clip"] = package
    return importlib.import_module("open_clip.loss")


def pair_call(name: str, rival: str, size: str) -> Callable[[], object]:
    """Normalisation, loss and backward over `size` pairs of 512 dimensions, scale 1 / 0.07 (CLIP) or 10 (SigLIP)."""
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(int(size), WIDTH, generator=generator).requires_grad_() for _ in range(2))
    log_scale = torch.tensor(math.log(1 / 0.07 if name == "clip" else 10.0)).requires_grad_()
    bias = torch.tensor(-10.0).requires_grad_()
    loss: Callable[[], Tensor]
    if rival == "imprint":
        from imprint.losses.image_text import clip_loss, sigmoid_loss

        def loss() -> Tensor:
            if name == "clip":
                return clip_loss(image, text, log_scale)
            return sigmoid_loss(image, text, log_scale, bias)

    else:
        losses = open_clip_losses()
        theirs = losses.ClipLoss() if name == "clip" else losses.SigLipLoss()

        def loss() -> Tensor:
            more = {} if name == "clip" else {"logit_bias": bias}
            out: Tensor = theirs(F.normalize(image, dim=-1), F.normalize(text, dim=-1), log_scale.exp(), **more)
            return out

    def call() -> None:
        image.grad = text.grad = log_scale.grad = bias.grad = None
        loss().backward()

    return call


CALLS: dict[str, Callable[[str, str], Callable[[], object]]] = {
    "clip": lambda rival, size: pair_call("clip", rival, size),
    "siglip": lambda rival, size: pair_call("siglip", rival, size),
}
