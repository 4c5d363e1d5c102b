"""The first blocks of an encoder kept as they are while the rest is trained."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError

_NUMBERED = re.compile(r"(?:^|\.)(?:(blocks|layers|stages)\.(\d+)|(layer|s)(\d+))(?:\.|$)")
"""Blocks of ViTs, stages of Swin, ConvNeXt (counted from 0), ResNet and RegNet (from 1), as timm names them."""


def freeze_first(encoder: Encoder, count: int) -> None:
    """Freeze the first `count` blocks (ViT) or stages (hierarchical encoders) and everything before them, in place.

    Frozen parts take no gradient and stay in evaluation mode: `train()` no longer reaches them.

    Raises:
        ConfigError: when the encoder has fewer blocks, or none that can be told apart.
    """
    numbers = {name: _number(name) for name, _ in encoder.named_parameters()}
    blocks = sorted({number for number in numbers.values() if number is not None})
    if not blocks:
        raise ConfigError(f"the blocks of '{encoder.name}' cannot be told apart, so none can be frozen.")
    if count > len(blocks):
        raise ConfigError(f"'{encoder.name}' has {len(blocks)} blocks or stages; {count} of them cannot be frozen.")
    frozen = blocks[:count]
    before = True
    for name, parameter in encoder.named_parameters():
        number = numbers[name]
        before = before and number is None
        if before or number in frozen:
            parameter.requires_grad_(False)
    for module in encoder.modules():
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            _keep_resting(module)


def _number(name: str) -> int | None:
    found = _NUMBERED.search(name)
    if found is None:
        return None
    return int(found[2]) if found[1] else int(found[4]) - 1


def _keep_resting(module: Any) -> None:
    """Put a module in evaluation mode for good."""
    nn.Module.eval(module)
    module.train = lambda mode=True: module
