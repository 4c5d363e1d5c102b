"""Labels carried from frames to the next by the likeness of their patches.

Shapes: N frames of context, h x w patches (P = h w of them), D width, C label channels, K neighbours taken,
T patches of one tile, S patches around a tile.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Window = Literal["square", "disc"]
TILE = 12
"""Side of a tile in patches: small enough that few patches outside the neighbourhood are compared, large enough for
efficient matrix products."""


def propagate(
    target_hwD: Tensor,
    context_NhwD: Tensor,
    labels_NhwC: Tensor,
    *,
    topk: int,
    radius: int,
    temperature: float,
    window: Window = "square",
    first_anywhere: bool = False,
    tile: int = TILE,
) -> Tensor:
    """Return the labels of a frame as the mean of those of its nearest patches in other frames.

    With a(i, j) = f_i . f_j over all context patches j in the neighbourhood of i, and J the K largest of them,
    label_i = sum_{j in J} softmax_J(a(i, j) / temperature) label_j (Jabri et al., arXiv 2006.14613; the
    script of DINO, arXiv 2104.14294, Sec. 4.2.2, does the same). The neighbourhood restricts before the K are chosen.
    Tiles of targets are compared with the rectangle around them, never with whole frames.

    Args:
        target_hwD: L2-normalised features of the frame.
        context_NhwD: L2-normalised features of the frames whose labels are known.
        labels_NhwC: their labels, one-hot or soft.
        topk: K, over all context frames together.
        radius: of the neighbourhood in patches; 0 or less for no limit.
        temperature: of the softmax.
        window: `square`: |dy| <= radius and |dx| <= radius (DINO); `disc`: dy^2 + dx^2 < radius^2 (CRW).
        first_anywhere: the neighbourhood does not restrict the first context frame (CRW).
        tile: side of a tile in patches.

    Returns:
        Soft labels (h, w, C); they sum to 1 where those of the context do.
    """
    height, width, _ = target_hwD.shape
    channels = labels_NhwC.shape[-1]
    out_hwC = target_hwD.new_empty(height, width, channels)
    free = int(first_anywhere) if radius > 0 else len(context_NhwD)
    reach = radius if window == "square" else radius - 1
    anywhere_SD = context_NhwD[:free].flatten(0, 2)
    anywhere_SC = labels_NhwC[:free].flatten(0, 2)
    near_NhwD, near_NhwC = context_NhwD[free:], labels_NhwC[free:]
    for y0 in range(0, height, tile):
        for x0 in range(0, width, tile):
            y1, x1 = min(y0 + tile, height), min(x0 + tile, width)
            queries_TD = target_hwD[y0:y1, x0:x1].flatten(0, 1)
            affinity_TS = queries_TD @ anywhere_SD.T
            values_SC = anywhere_SC
            if len(near_NhwD):
                top, bottom = max(0, y0 - reach), min(height, y1 + reach)
                left, right = max(0, x0 - reach), min(width, x1 + reach)
                keys_SD = near_NhwD[:, top:bottom, left:right].flatten(0, 2)
                outside_TS = _outside((y0, y1, x0, x1), (top, bottom, left, right), radius, window, target_hwD.device)
                near_TS = queries_TD @ keys_SD.T
                near_TS.unflatten(1, (len(near_NhwD), -1)).masked_fill_(outside_TS[:, None], -torch.inf)
                affinity_TS = torch.cat([affinity_TS, near_TS], 1) if free else near_TS
                values_SC = torch.cat([values_SC, near_NhwC[:, top:bottom, left:right].flatten(0, 2)])
            best_TK, where_TK = affinity_TS.topk(min(topk, affinity_TS.shape[1]), dim=1)
            weights_TK = (best_TK / temperature).softmax(1)
            out_TC = (weights_TK[..., None] * values_SC[where_TK]).sum(1)
            out_hwC[y0:y1, x0:x1] = out_TC.unflatten(0, (y1 - y0, x1 - x0))
    return out_hwC


def _outside(
    inner: tuple[int, int, int, int],
    outer: tuple[int, int, int, int],
    radius: int,
    window: Window,
    device: torch.device,
) -> Tensor:
    """Return bool (T, S of one frame): which patches of the outer rectangle are no neighbours of those of the inner."""
    y_T = torch.arange(inner[0], inner[1], device=device)
    x_T = torch.arange(inner[2], inner[3], device=device)
    down_YV = (y_T[:, None] - torch.arange(outer[0], outer[1], device=device)).abs()
    across_XH = (x_T[:, None] - torch.arange(outer[2], outer[3], device=device)).abs()
    if window == "square":
        outside = (down_YV > radius)[:, None, :, None] | (across_XH > radius)[None, :, None, :]
    else:
        outside = (down_YV**2)[:, None, :, None] + (across_XH**2)[None, :, None, :] >= radius**2
    return outside.flatten(2).flatten(0, 1)


def stretched(labels_CHW: Tensor) -> Tensor:
    """Return every channel that holds anything stretched to [0, 1]: (x - min) / (max - min), as DINO's script does
    before it takes the largest; a channel of one value becomes 0 (empty ones stay).

    A weak object then is not drowned by a strong background.
    """
    flat = labels_CHW.flatten(1)
    low, high = flat.amin(1)[:, None, None], flat.amax(1)[:, None, None]
    span = (high - low).clamp_min(torch.finfo(labels_CHW.dtype).tiny)
    return torch.where(high > 0, (labels_CHW - low) / span, labels_CHW)
