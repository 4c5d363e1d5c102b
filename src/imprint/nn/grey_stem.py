"""A first layer that weighs the colour channels alike, for encoders that learn from grey images."""

from __future__ import annotations

import torch
from torch import nn

from imprint.backbones.encoder import Encoder


@torch.no_grad()
def even_channels_(encoder: Encoder) -> bool:
    """Give the first convolution over the image the mean of its weights over the input channels; tell if there is one.

    Nothing changes for images of equal channels, and as their gradients are equal for all channels, training on them
    keeps the weights even. A colour image is then the grey image of the mean of its channels to the encoder, instead of
    meeting random differences between channels that training never saw.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == encoder.channels and module.groups == 1:
            module.weight.copy_(module.weight.mean(1, keepdim=True).expand_as(module.weight))
            return True
    return False
