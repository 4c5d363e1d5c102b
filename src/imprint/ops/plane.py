"""Points of a plane as a picture.

Shape suffixes: N points, S side of the picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dots(points_N2: Tensor, limit: float | Tensor, side: int, *, size: int = 1, real_N: Tensor | None = None) -> Tensor:
    """Return where points fall in the square [-limit, limit]^2, as a bool picture (S, S); up is up.

    Points outside are put on its edge, so that none is lost.

    Args:
        points_N2: x and y.
        limit: half the side of the square.
        side: S.
        size: side of a dot in pixels, odd.
        real_N: bool, which points count; None: all.
    """
    unit = ((points_N2.float() / limit + 1) / 2).nan_to_num(0.5).clamp(0, 1)
    x_N, y_N = (unit * (side - 1)).round().long().unbind(1)
    place_N = (side - 1 - y_N) * side + x_N
    if real_N is not None:
        place_N = torch.where(real_N, place_N, side * side)  # a place outside the picture
    canvas = torch.zeros(side * side + 1, device=points_N2.device).index_fill_(0, place_N, 1.0)[:-1]
    picture = canvas.view(1, 1, side, side)
    return F.max_pool2d(picture, size, stride=1, padding=size // 2)[0, 0] > 0
