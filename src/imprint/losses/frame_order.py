"""Frame-order verification: which three of five frames are shown, and in what order (Shuffle and Learn, 1603.08561).

Shape suffixes: B clips, 3 frames of a tuple, N values of a frame.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_A, _B, _C, _D, _E = range(5)


class Tuples(NamedTuple):
    """Which frames are shown, int64 (B, 3) into the five, and whether they are in order, int64 (B,)."""

    frames_B3: Tensor
    ordered_B: Tensor


def choose_tuples(uniforms_B3: Tensor, close_B2: Tensor, *, negatives: float, reverse: float) -> Tuples:
    """Choose for every clip of five frames a < b < c < d < e a tuple (arXiv 1603.08561).

    In order is (b, c, d), out of order (b, a, d) or (b, e, d); begin and end stay the same, so that the frame between
    tells. Each may be turned round. A frame that looks like c cannot be told from it: then the other one takes its
    place, or, where both look like c, the tuple in order.

    Args:
        uniforms_B3: in [0, 1): out of order?, a or e?, turned round?
        close_B2: bool, whether a and e look like c.
        negatives: share of tuples out of order.
        reverse: share of tuples that are turned round.
    """
    wants_e_B = uniforms_B3[:, 1] >= 0.5
    close_a_B, close_e_B = close_B2.unbind(1)
    takes_e_B = torch.where(wants_e_B, ~close_e_B, close_a_B & ~close_e_B)
    ordered_B = (uniforms_B3[:, 0] >= negatives) | (close_a_B & close_e_B)
    outside_B = torch.where(takes_e_B, _E, _A)
    middle_B = torch.where(ordered_B, _C, outside_B)
    turned_B = uniforms_B3[:, 2] < reverse
    first_B = torch.where(turned_B, _D, _B)
    last_B = torch.where(turned_B, _B, _D)
    return Tuples(torch.stack([first_B, middle_B, last_B], 1), ordered_B.long())


def order_loss(logits_B2: Tensor, ordered_B: Tensor) -> Tensor:
    """Cross entropy over (out of order, in order), a float32 scalar."""
    with torch.autocast(logits_B2.device.type, enabled=False):
        logits_B2 = logits_B2 if logits_B2.dtype == torch.float64 else logits_B2.float()
        return F.cross_entropy(logits_B2, ordered_B)


def balanced_accuracy(logits_B2: Tensor, ordered_B: Tensor) -> Tensor:
    """Return the mean over both kinds of the share of tuples told right, a 0-d float32: 0.5 is chance, 1 is perfect.

    A kind without tuples counts as told by chance.
    """
    right_B = logits_B2.argmax(1).eq(ordered_B).float()
    kinds_B2 = F.one_hot(ordered_B, 2).float()
    count_2 = kinds_B2.sum(0)
    share_2 = torch.where(count_2 > 0, (right_B[:, None] * kinds_B2).sum(0) / count_2.clamp(min=1), 0.5)
    return share_2.mean()
