"""A diffusion U-Net that is told a vector: guided diffusion's architecture, made of diffusers' blocks.

Dhariwal, Nichol 2021, arXiv 2105.05233 (ADM).

Shape suffixes: B images, C channels, H x W pixels, D width of the vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint.backbones import torchvision_compat  # noqa: F401  (makes diffusers importable, as it does timm)
from imprint.core.errors import ConfigError, MissingExtra

Conditioning = Literal["norm", "time"]


class ConditionalUNet(nn.Module):
    """(x_BCHW, level_B, vector_BD) -> (B, outputs, H, W).

    The vector is mapped linearly to the width of the embedding of the noise level and added to it. With `norm` every
    residual block reads from the sum the scale and the shift of its normalisation (ADM's adaptive group norm, a
    conditional normalisation); with `time` only what is added to its activations, as in DDPM.

    Args:
        size: side of the images, pixels.
        channels: C.
        outputs: channels of the result.
        vector: D.
        width: of the first level.
        multipliers: width of each level relative to the first; each level halves the sides.
        blocks: residual blocks per level on the way down (one more on the way up).
        attention: sides in pixels of the maps with self-attention; the middle has it always.
        head_width: channels of an attention head.
        groups: of the group norms.
        dropout: in the residual blocks.
        residual_resampling: change the resolution in residual blocks, not in single convolutions.
        conditioning: see above.
        patch: squares of this side become channels before the first level and pixels after the last one (Luhman,
            Luhman 2022, arXiv 2207.04316): 2 costs a quarter.

    Raises:
        ConfigError: for sizes that do not fit together.
        MissingExtra: without diffusers.
    """

    def __init__(
        self,
        *,
        size: int,
        channels: int,
        outputs: int,
        vector: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        head_width: int,
        groups: int,
        dropout: float,
        residual_resampling: bool,
        conditioning: Conditioning,
        patch: int = 1,
    ) -> None:
        super().__init__()
        try:
            from diffusers import UNet2DModel
        except ImportError as error:
            raise MissingExtra("diffusers", "diffusion", "the U-Net of a diffusion model") from error
        if patch < 1 or size % patch:
            raise ConfigError(f"squares of {patch} pixels do not tile images of {size}; use a patch that divides them.")
        self.patch = patch
        size //= patch
        widths = [width * m for m in multipliers]
        attends = [size // 2**level in attention for level in range(len(widths))]
        _check(size, widths, attends, head_width, groups)
        resample = "resnet" if residual_resampling else "conv"
        self.unet: Any = UNet2DModel(
            sample_size=size,
            in_channels=channels * patch**2,
            out_channels=outputs * patch**2,
            block_out_channels=tuple(widths),
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            layers_per_block=blocks,
            downsample_type=resample,
            upsample_type=resample,
            dropout=dropout,
            attention_head_dim=head_width,
            norm_num_groups=groups,
            attn_norm_num_groups=groups,
            resnet_time_scale_shift="scale_shift" if conditioning == "norm" else "default",
            class_embed_type="identity",
        )
        self.embed = nn.Linear(vector, 4 * width)
        _start_at_identity(self.unet)

    def forward(self, x_BCHW: Tensor, level_B: Tensor, vector_BD: Tensor) -> Tensor:
        """Return the network's output."""
        x_BCHW = F.pixel_unshuffle(x_BCHW, self.patch) if self.patch > 1 else x_BCHW
        out: Tensor = self.unet(x_BCHW, level_B, class_labels=self.embed(vector_BD), return_dict=False)[0]
        return F.pixel_shuffle(out, self.patch) if self.patch > 1 else out


def _start_at_identity(unet: Any) -> None:
    """Start every residual branch and the output at zero, as guided diffusion does (zero_module)."""
    last = [unet.conv_out]
    for module in unet.modules():
        if type(module).__name__ == "ResnetBlock2D":
            last.append(module.conv2)
        elif type(module).__name__ == "Attention":
            last.append(module.to_out[0])
    with torch.no_grad():
        for layer in last:
            layer.weight.zero_()
            layer.bias.zero_()


def _check(size: int, widths: Sequence[int], attends: Sequence[bool], head_width: int, groups: int) -> None:
    if not widths or min(widths) < 1:
        raise ConfigError(f"a U-Net needs levels of positive widths, got {list(widths)}.")
    step = 2 ** (len(widths) - 1)
    if size % step:
        low = max(step, size // step * step)
        raise ConfigError(
            f"a U-Net of {len(widths)} levels halves the sides {len(widths) - 1} times, and maps of {size} are no "
            f"multiple of {step}; use {low} or {low + step}, or fewer levels."
        )
    if bad := [w for w in widths if w % groups]:
        raise ConfigError(f"{groups} groups do not divide a width of {bad[0]} channels; use groups that do.")
    heads = [w for w, a in zip(widths, attends, strict=True) if a] + [widths[-1]]
    if bad := [w for w in heads if w % head_width]:
        raise ConfigError(f"attention heads of {head_width} channels do not divide a width of {bad[0]}.")
