"""The convolutional encoder of DALL-E's discrete VAE, under timm's roof as `dvae_encoder`.

Registered with timm, so that it is built, sized (`Arch(layers=..., channels=...)`), stored and loaded like any other
backbone; timm alone does not know it.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from imprint.backbones import torchvision_compat  # noqa: F401  (makes timm importable)

# After the line above, without which timm may not import.
from timm.models import build_model_with_cfg, register_model  # isort: skip


class Bottleneck(nn.Module):
    """x + g f(x), f four ReLU-convolutions of a quarter of the width (3x3, 3x3, 3x3, 1x1), g = 1 / blocks^2."""

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        hidden = max(1, outputs // 4)
        self.gain = 1.0 / blocks**2
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.body = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(inputs, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out: Tensor = self.skip(x) + self.gain * self.body(x)
        return out


class ConvEncoder(nn.Module):
    """A 7x7 convolution, groups of bottleneck blocks with 2x2 max-pooling between them, a ReLU (arXiv 2102.12092, A.1).

    Total stride 2^(groups - 1): four groups give DALL-E's 8. What follows, a 1x1 convolution to the logits, belongs to
    the method. Weights start normal with variance 1 / fan-in, biases at zero (public code).

    Args:
        in_chans: C.
        num_classes: outputs of a linear classifier on the mean of the last map, 0 for none.
        layers: blocks in each group.
        channels: width of each group.
    """

    output_fmt = "NCHW"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 0,
        layers: Sequence[int] = (2, 2, 2, 2),
        channels: Sequence[int] = (256, 512, 1024, 2048),
    ) -> None:
        super().__init__()
        if len(layers) != len(channels) or not layers or min(layers) < 1 or min(channels) < 1:
            raise ValueError(f"layers {tuple(layers)} and channels {tuple(channels)} must be one per group, at least 1")
        self._recompute = False
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = channels[-1]
        self.stem = nn.Conv2d(in_chans, channels[0], 7, padding=3)
        stages: list[nn.Module] = []
        self.feature_info: list[dict[str, Any]] = []
        width = channels[0]
        for group, (count, outputs) in enumerate(zip(layers, channels, strict=True)):
            parts: list[nn.Module] = [nn.MaxPool2d(2)] if group else []
            for _ in range(count):
                parts.append(Bottleneck(width, outputs, sum(layers)))
                width = outputs
            stages.append(nn.Sequential(*parts))
            self.feature_info.append({"num_chs": outputs, "reduction": 2**group, "module": f"stages.{group}"})
        self.stages = nn.ModuleList(stages)
        self.act = nn.ReLU()
        self.head: nn.Module = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        start_convolutions(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map, after its ReLU."""
        x = self.stem(x)
        for stage in self.stages:
            x = self._run(stage, x)
        out: Tensor = self.act(x)
        return out

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep the inputs of the groups only and compute the rest again in the backward pass."""
        self._recompute = enable

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        recompute = self._recompute and torch.is_grad_enabled()
        out: Tensor = checkpoint(stage, x, use_reentrant=False) if recompute else stage(x)
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the mean of a map, classified unless `pre_logits`."""
        x = x.mean((2, 3))
        out: Tensor = x if pre_logits else self.head(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Return class logits, or the mean of the last map without a classifier."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        intermediates_only: bool = False,
        **_: Any,
    ) -> Any:
        """Return the maps after the groups asked for; with `norm` after a ReLU, as the last one is read."""
        count = len(self.stages)
        wanted = (
            range(count) if indices is None else range(count - indices, count) if isinstance(indices, int) else indices
        )
        maps: dict[int, Tensor] = {}
        x = self.stem(x)
        for index, stage in enumerate(self.stages):
            x = stage(x)
            maps[index] = self.act(x) if norm else x
        chosen = [maps[index] for index in wanted]
        return chosen if intermediates_only else (self.act(x), chosen)

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()


def start_convolutions(module: nn.Module) -> None:
    """Draw all convolutions from N(0, 1 / fan-in) with biases at zero (openai/DALL-E)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=part.weight[0].numel() ** -0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


default_cfgs = {"dvae_encoder": {"url": "", "num_classes": 0, "first_conv": "stem", "classifier": "head"}}
"""What timm wants to know of a model's published weights: there are none."""


@register_model
def dvae_encoder(pretrained: bool = False, **kwargs: Any) -> ConvEncoder:
    """DALL-E's encoder: four groups of two blocks, 256 to 2,048 wide, stride 8."""
    model: ConvEncoder = build_model_with_cfg(ConvEncoder, "dvae_encoder", pretrained, **kwargs)
    return model
