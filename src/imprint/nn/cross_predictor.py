"""A predictor that looks at the context by cross-attention only, each masked place by itself.

Shape suffixes: B images, P places to predict, C context tokens, M of them patches, N patches of the grid, D width,
h heads, d width of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint.core.errors import ConfigError
from imprint.ops.attention import attend


class CrossPredictor(nn.Module):
    """CAPI's predictor: mask tokens attend to the encoder's output (arXiv 2502.08769, Sec. 3.3 and App.; public code).

    Blocks of cross-attention and MLP, RMSNorm before each, no biases, no attention between the places predicted, so any
    share of them can be asked for at the same result. Where a token lies is told by rotary positions on queries and
    keys, in coordinates from 0 to 1 along both axes. Frequencies 2 pi 7 (10^4)^(-j / (d/4 - 1)); the first half of
    a head turns by the row, the second by the column, and channel i is paired with i + d/2 of the other half: so the
    public code has it. Tokens without a place (class token, registers) lie at (0, 0).

    Args:
        context_width: D of the encoder.
        width: of the predictor.
        depth: blocks.
        heads: attention heads; width / heads is a multiple of 4, at least 8.
        grid: (rows, columns) of patches.
        drop_path: rate at which a block's results are dropped per image, the same in every block.
    """

    turn_cos_Nd: Tensor
    turn_sin_Nd: Tensor

    def __init__(
        self,
        context_width: int,
        width: int,
        depth: int,
        heads: int,
        grid: tuple[int, int],
        *,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if width % heads or (width // heads) % 4 or width // heads < 8:
            raise ConfigError(
                f"a cross-attention predictor of width {width} with {heads} heads has {width / heads:g} numbers per "
                "head; rotary positions need a multiple of 4, at least 8."
            )
        self.mask_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.blocks = nn.ModuleList(_Block(width, context_width, heads, drop_path) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-5, elementwise_affine=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        angle_Nd = _angles(width // heads, grid)
        self.register_buffer("turn_cos_Nd", angle_Nd.cos(), persistent=False)
        self.register_buffer("turn_sin_Nd", angle_Nd.sin(), persistent=False)

    def forward(self, context_BCD: Tensor, kept_BM: Tensor, places_BP: Tensor) -> Tensor:
        """Predict at some places.

        Args:
            context_BCD: the encoder's output, tokens without a place first.
            kept_BM: int64, where on the grid the last M tokens of the context lie.
            places_BP: int64, what to predict.

        Returns:
            (B, P, width), of unit root mean square.
        """
        free = context_BCD.shape[1] - kept_BM.shape[1]
        cos, sin = self.turn_cos_Nd, self.turn_sin_Nd
        # Tokens without a place do not turn.
        keys = (F.pad(cos[kept_BM], (0, 0, free, 0), value=1.0), F.pad(sin[kept_BM], (0, 0, free, 0)))
        queries = (cos[places_BP], sin[places_BP])
        x_BPD = self.mask_token.expand(*places_BP.shape, -1)
        for block in self.blocks:
            x_BPD = block(x_BPD, context_BCD, queries, keys)
        out: Tensor = self.norm(x_BPD)
        return out


class _Block(nn.Module):
    def __init__(self, width: int, context_width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.heads, self.drop_path = heads, drop_path
        self.norm1 = nn.RMSNorm(width, eps=1e-5)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(context_width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.norm2 = nn.RMSNorm(width, eps=1e-5)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
        )

    def forward(
        self, x_BPD: Tensor, context_BCD: Tensor, queries: tuple[Tensor, Tensor], keys: tuple[Tensor, Tensor]
    ) -> Tensor:
        q_BhPd = self.q(self.norm1(x_BPD)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k_BhCd, v_BhCd = self.kv(context_BCD).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attend(_turned(q_BhPd, queries), _turned(k_BhCd, keys), v_BhCd)
        x_BPD = x_BPD + self._dropped(self.proj(mixed.transpose(1, 2).flatten(2)))
        return x_BPD + self._dropped(self.mlp(self.norm2(x_BPD)))

    def _dropped(self, x_BPD: Tensor) -> Tensor:
        if self.drop_path == 0.0 or not self.training:
            return x_BPD
        keep = 1.0 - self.drop_path
        return x_BPD * x_BPD.new_empty(x_BPD.shape[0], 1, 1).bernoulli_(keep).div_(keep)


def _angles(width: int, grid: tuple[int, int]) -> Tensor:
    """Return the angles by which each place of the grid turns each channel of a head, (N, d)."""
    frequency = 2 * math.pi * 7.0 * 1e4 ** torch.linspace(0, -1, width // 4)
    frequency = torch.cat([frequency, frequency])
    rows, columns = (torch.linspace(0, 1, n) for n in grid)
    turns = torch.cartesian_prod(rows, columns)
    return torch.cat([turns[:, :1] * frequency, turns[:, 1:] * frequency], dim=1)


def _turned(x_BhTd: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = (t.to(x_BhTd.dtype).unsqueeze(1) for t in turn)
    first, second = x_BhTd.chunk(2, dim=-1)
    return x_BhTd * cos + torch.cat([-second, first], dim=-1) * sin
