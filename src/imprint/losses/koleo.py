"""KoLeo: spreads the embeddings of a batch by pushing each away from its nearest neighbours.

Shape suffixes: B embeddings of this process, A of all processes, D width, K neighbours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.ops.neighbours import nearest

_EPS = 1e-8


def koleo(x_BD: Tensor, *, top_k: int = 1, x_all: Tensor | None = None, offset: int = 0) -> Tensor:
    r"""Return the Kozachenko-Leonenko regulariser (arXiv 1806.03198, Eq. 3; DINOv2, arXiv 2304.07193, Sec. 4).

    L = -1/(B K) sum_i sum_{k <= K} log( || u_i - u_nn(i,k) + eps || + eps ), u = x / ||x||, eps = 1e-8,

    where nn(i, k) is the k-th largest inner product with u_i among the others. The choice of neighbours takes no
    gradient, their vectors do. eps is added to every coordinate of the difference (torch's PairwiseDistance), as in the
    public codes of DINOv2 (K = 1) and DINOv3 (`KoLeoLossDistributed`, K > 1). DINOv2 applies it per global crop with
    weight 0.1 and finds neighbours among one process's own rows.

    The search looks at blocks of similarities in bounded memory (`ops.neighbours.nearest`); no B x B matrix is kept.
    With several processes pass the rows of all: the mean of the losses over processes is that of the full batch.

    Args:
        x_BD: embeddings, any scale.
        top_k: K, neighbours that repel; fewer than the rows searched.
        x_all: rows of all processes (A, D) to search, of which offset .. offset + B are `x_BD`; None searches `x_BD`.
        offset: row of `x_all` that holds this process's first row.

    Returns:
        0-d loss, float32 (float64 for float64 inputs).

    Raises:
        ConfigError: for shapes that do not fit, or fewer than `top_k` other rows.
    """
    rows = x_BD if x_all is None else x_all
    if x_BD.ndim != 2 or rows.ndim != 2 or rows.shape[1] != x_BD.shape[1] or x_BD.shape[0] == 0:
        raise ConfigError(f"koleo: rows must be (B, D) and (A, D), got {tuple(x_BD.shape)} and {tuple(rows.shape)}.")
    if not 0 <= offset <= rows.shape[0] - x_BD.shape[0]:
        raise ConfigError(f"koleo: {x_BD.shape[0]} own rows at offset {offset} do not lie in {rows.shape[0]} rows.")
    if not 1 <= top_k < rows.shape[0]:
        raise ConfigError(
            f"koleo: {rows.shape[0]} rows leave {rows.shape[0] - 1} neighbours, top_k is {top_k}; use a larger batch."
        )
    with torch.autocast(x_BD.device.type, enabled=False):
        u_BD = _unit(x_BD)
        u_AD = u_BD if x_all is None else _unit(x_all)
        itself_B = torch.arange(offset, offset + u_BD.shape[0], device=u_BD.device)
        _, index_BK = nearest(u_BD.detach(), u_AD.detach(), top_k, leave_out_Q=itself_B)
        difference_BKD = u_BD[:, None] - u_AD[index_BK.flatten()].unflatten(0, index_BK.shape) + _EPS
        return -torch.log(torch.linalg.vector_norm(difference_BKD, dim=-1) + _EPS).mean()


def _unit(x_BD: Tensor) -> Tensor:
    return F.normalize(x_BD if x_BD.dtype == torch.float64 else x_BD.float(), dim=-1, eps=_EPS)
