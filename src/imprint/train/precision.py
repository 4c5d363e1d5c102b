"""Number formats of a run: which one autocast uses, whether gradients are scaled, and the memory format of images."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from imprint.core.errors import ConfigError
from imprint.data.batch import Batch


@dataclass
class Precision:
    """How forward and backward compute.

    Attributes:
        name: fp32, bf16 or fp16.
        device: where.
        scaler: scales the loss so that fp16 gradients do not vanish, or None.
        channels_last: images and convolution weights are stored channels last.
    """

    name: str
    device: torch.device
    scaler: torch.amp.GradScaler | None
    channels_last: bool

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        if self.name == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.name == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)

    def reset_scaler(self) -> None:
        """Start loss scaling afresh."""
        if self.scaler is not None:
            self.scaler = torch.amp.GradScaler(self.device.type)

    def laid_out(self, batch: Batch) -> Batch:
        """Return the batch with images (V, B, C, H, W) stored channels last when that is asked for.

        The move is made on the small integers of the host batch, a quarter of the bytes of its floats.
        """
        if not self.channels_last:
            return batch
        views = {
            name: view.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) for name, view in batch.views.items()
        }
        return replace(batch, views=views)


def choose_precision(name: str, device: torch.device, channels_last: bool | None, convolutional: bool) -> Precision:
    """Settle the formats of a run.

    `auto` is bf16 on devices that compute in it (CUDA from Ampere on, CPUs with AVX512-BF16 or AMX), else fp32.
    Channels last is the default for convolutional encoders on the CPU and on CUDA, where the fast kernels want it, and
    for nothing else.

    Raises:
        ConfigError: for a format that the device lacks.
    """
    fast_bf16 = computes_in_bf16(device)
    if name == "auto":
        name = "bf16" if fast_bf16 else "fp32"
    if name == "bf16" and device.type == "cuda" and not fast_bf16:
        raise ConfigError(
            "precision bf16: this GPU is older than Ampere and has no bf16; use --precision fp16 or fp32."
        )
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("precision fp16 is made for GPUs; on a CPU use --precision fp32 or bf16.")
    scaler = torch.amp.GradScaler(device.type) if name == "fp16" and device.type == "cuda" else None
    if channels_last is None:
        channels_last = convolutional and device.type in ("cpu", "cuda")
    return Precision(name, device, scaler, channels_last)


def computes_in_bf16(device: torch.device) -> bool:
    """Tell whether the device multiplies bf16 natively: CUDA from Ampere on, x86 with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        abilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # absent from older torch
        return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
    return False


def set_numerics(device: torch.device) -> None:
    """Ask torch for kernels that give the same bits in every run, and for TF32 in fp32 products on CUDA."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A debugging aid of deterministic mode that would cost a pass over memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.set_float32_matmul_precision("high")


def gains_from_channels_last(module: nn.Module) -> bool:
    """Tell whether the module is convolutional, and none of its layers meets oneDNN's defect 6035.

    The weight gradient of a strided 1x1 convolution with fewer than 16 input channels, channels last on a CPU, can
    crash or be wrong; such narrow networks stay channels first.
    """
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    narrow = any(c.kernel_size == (1, 1) and max(c.stride) > 1 and c.in_channels < 16 for c in convolutions)
    embeds = all(c.kernel_size == c.stride for c in convolutions)  # a ViT's patch embedding is its only convolution
    return bool(convolutions) and not narrow and not embeds


def to_channels_last(module: nn.Module) -> None:
    """Store the 4-d weights of a module channels last, in place."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class _SteadyConv2d(nn.Conv2d):
    """A strided convolution that leaves bf16 on a CPU where a side of its input is one pixel.

    oneDNN's bf16 weight gradient reads beyond such maps (infinite or NaN, at random); float32 is right there, and the
    maps are too small to cost anything.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and 1 in x.shape[-2:] and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.to(self.weight.dtype))
        return super().forward(x)


def steady_convolutions(module: nn.Module) -> None:
    """Guard the strided convolutions of a module against maps of one pixel, in place; weights and names stay."""
    for part in module.modules():
        if type(part) is nn.Conv2d and max(part.stride) > 1 and max(part.kernel_size) > 1:
            part.__class__ = _SteadyConv2d
