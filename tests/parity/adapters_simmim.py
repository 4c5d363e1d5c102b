"""Parity of SimMIM."""

from __future__ import annotations

from collections.abc import Callable

import torch
from case import Case, Out, arrays, tensor

from imprint.losses.simmim import masked_pixel_loss
from imprint.nn.pixel_head import PixelHead


def simmim_case(case: Case) -> Out:
    """The head's picture and the loss on masked pixels; the mask may be finer than the encoder's grid."""
    x, z = tensor(case["x"]), tensor(case["z"], True)
    weight, bias = tensor(case["decoder_weight"]), tensor(case["decoder_bias"])
    stride = int(case["encoder_stride"])
    head = PixelHead(z.shape[1], stride, x.shape[1]).to(weight.dtype)
    with torch.no_grad():
        head.layers[-1].weight.copy_(weight.flatten(1))
        head.layers[-1].bias.copy_(bias)
    pred = head(z.flatten(2).transpose(1, 2).to(weight.dtype), (z.shape[2], z.shape[3]))
    mask = tensor(case["mask"])
    assert mask.shape[1] * int(case["patch_size"]) == x.shape[2]
    loss = masked_pixel_loss(pred, x, mask)
    loss.backward()
    return arrays({"out_loss": loss, "out_x_rec": pred, "grad_z": z.grad})


CASES: dict[str, Callable[[Case], Out]] = {"simmim": simmim_case}

LOSSES: dict[str, tuple[str, ...]] = {"simmim": ("z",)}
