"""One encoder, one batch: where and how it is evaluated, and which of its outputs stands for an image.

Shapes: B images, D width of the representation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imprint.core.errors import ConfigError, unknown
from imprint.data.views import CenterCrop, View
from imprint.evals.protocol import Precision, Tokens

if TYPE_CHECKING:
    from imprint.backbones.encoder import Encoder, Features

TOKENS: tuple[Tokens, ...] = ("pooled", "cls", "patch_mean", "cls+patch_mean")
SMALL_SIDE = 64


def evaluation_view(image_size: int) -> View:
    """Return the plain view: shorter side at 256/224 of the crop, centre cut; no margin up to 64 pixels."""
    resize = image_size if image_size <= SMALL_SIDE else round(image_size * 256 / 224)
    return View(name="eval", crop=CenterCrop(size=image_size, resize=resize))


def pick_device(device: str, encoder: torch.nn.Module) -> torch.device:
    """Return the device to encode on; `auto` is where the encoder lies, or an accelerator when it lies on the CPU.

    Raises:
        ConfigError: for a device that this machine does not have.
    """
    if device == "auto":
        here = next((p.device for p in encoder.parameters()), torch.device("cpu"))
        if here.type != "cpu":
            return here
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise unknown("device", device, ("auto", "cpu", "cuda", "mps"))
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for and this machine has no usable CUDA device; use --device cpu.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device 'mps' was asked for and this machine has none; use --device cpu.")
    return torch.device(device)


def pick_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the autocast type: `auto` is bf16 on CUDA devices that have it, else float32."""
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in kinds:
        raise unknown("precision", precision, ("auto", *kinds))
    return kinds[precision]


@contextmanager
def resting(encoder: Encoder, device: torch.device) -> Iterator[None]:
    """Put an encoder on `device` in evaluation mode, and give it back as it was."""
    modes = {module: module.training for module in encoder.modules()}
    home = next((p.device for p in encoder.parameters()), device)
    encoder.to(device).eval()
    try:
        yield
    finally:
        encoder.to(home)
        for module, mode in modes.items():
            module.training = mode


def represent(encoder: Encoder, images_BCHW: Tensor, tokens: Tokens = "pooled", layers: Sequence[int] = ()) -> Tensor:
    """Return the representation (B, D) of normalised images.

    `pooled` is the encoder's own vector, `cls` the class token, `patch_mean` the mean of the patches,
    `cls+patch_mean` the class token of every layer and the patch mean of the last, concatenated (DINO's probe).
    Several `layers` are concatenated.

    Raises:
        ConfigError: for class tokens that the encoder does not have.
    """
    if tokens not in TOKENS:
        raise unknown("choice of tokens", tokens, TOKENS)
    outputs = encoder.encode_layers(images_BCHW, layers) if layers else [encoder.encode(images_BCHW)]

    def cls_of(features: Features) -> Tensor:
        if features.cls_BD is None:
            raise ConfigError(f"encoder '{encoder.name}' has no class token; use --tokens pooled or patch_mean.")
        return features.cls_BD

    if tokens == "pooled":
        parts = [f.pooled_BD for f in outputs]
    elif tokens == "cls":
        parts = [cls_of(f) for f in outputs]
    elif tokens == "patch_mean":
        parts = [f.patches_BND.mean(1) for f in outputs]
    else:
        parts = [*(cls_of(f) for f in outputs), outputs[-1].patches_BND.mean(1)]
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]
