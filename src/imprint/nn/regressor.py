"""The two parts of CAE behind its encoder: latent contextual regressor and decoder (arXiv 2202.03026, Sec. 3.1).

Shape suffixes: B images, V visible patches, M masked patches, T = V + M, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imprint.ops.attention import attend


class DropBranch(nn.Module):
    """Stochastic depth: drop a residual branch for a drawn share of the samples, scale the others by 1 / (1 - p)."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the branch with whole samples zeroed while training."""
        if not self.training or self.drop_prob == 0.0:
            return x_BTD
        keep = 1.0 - self.drop_prob
        return x_BTD * x_BTD.new_empty(len(x_BTD), 1, 1).bernoulli_(keep).div_(keep)


class CrossBlock(nn.Module):
    """Queries look at visible latents and at themselves: (B, M, D), (B, V, D) -> (B, M, D) (public code).

    Positions are added to queries and keys, not to values; queries, keys and values have a norm each; the residual of
    the MLP starts from the normed tokens. Both branches are scaled per channel (LayerScale).
    """

    def __init__(self, width: int, heads: int, layer_scale: float, drop_path: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.q, self.v = nn.Linear(width, width), nn.Linear(width, width)
        self.k = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.scale1, self.scale2 = _scale(width, layer_scale), _scale(width, layer_scale)
        self.drop = DropBranch(drop_path)

    def forward(self, x_BMD: Tensor, visible_BVD: Tensor, where_BMD: Tensor, where_BTD: Tensor) -> Tensor:
        """Return the queries' new states; `where` are the positions of the queries, and of [visible, queries]."""
        context_BTD = torch.cat([visible_BVD, x_BMD], dim=1)
        q = self._split(self.q(self.norm_q(x_BMD + where_BMD)))
        k = self._split(self.k(self.norm_k(context_BTD + where_BTD)))
        v = self._split(self.v(self.norm_v(context_BTD)))
        mixed_BMD = attend(q, k, v).transpose(1, 2).flatten(2)
        x_BMD = self.norm(x_BMD + self.drop(self.scale1 * self.proj(mixed_BMD)))
        out: Tensor = x_BMD + self.drop(self.scale2 * self.mlp(x_BMD))
        return out

    def _split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class SelfBlock(nn.Module):
    """Pre-norm block of self-attention with LayerScale and stochastic depth: (B, M, D) -> (B, M, D)."""

    def __init__(self, width: int, heads: int, layer_scale: float, drop_path: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.scale1, self.scale2 = _scale(width, layer_scale), _scale(width, layer_scale)
        self.drop = DropBranch(drop_path)

    def forward(self, x_BMD: Tensor) -> Tensor:
        """Return the block's output."""
        q, k, v = self.qkv(self.norm1(x_BMD)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BMD = attend(q, k, v).transpose(1, 2).flatten(2)
        x_BMD = x_BMD + self.drop(self.scale1 * self.proj(mixed_BMD))
        out: Tensor = x_BMD + self.drop(self.scale2 * self.mlp(self.norm2(x_BMD)))
        return out


class LatentRegressor(nn.Module):
    """Predict the latents of masked patches from those of visible ones, by cross-attention.

    The queries start as one learned mask token each. Linears are Xavier-uniform, biases zero, the token N(0, 0.02) cut
    at one standard deviation (public code).

    Args:
        width: D of the encoder's latents, and of the predictions.
        depth: number of blocks.
        heads: attention heads.
        layer_scale: first value of LayerScale; 0 switches it off.
        drop_path: stochastic depth of the last block, growing linearly from 0 at the first.
    """

    def __init__(self, width: int, depth: int = 4, heads: int = 12, layer_scale: float = 0.1, drop_path: float = 0.0):
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        rates = _rates(depth, drop_path)
        self.blocks = nn.ModuleList(CrossBlock(width, heads, layer_scale, rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        _xavier_(self)

    def forward(self, visible_BVD: Tensor, where_visible_BVD: Tensor, where_masked_BMD: Tensor) -> Tensor:
        """Return the predicted latents (B, M, D), normed, from visible latents and all positions."""
        x_BMD = self.mask_token.to(visible_BVD.dtype).expand(*where_masked_BMD.shape[:2], -1)
        where_BTD = torch.cat([where_visible_BVD, where_masked_BMD], dim=1)
        for block in self.blocks:
            x_BMD = block(x_BMD, visible_BVD, where_masked_BMD, where_BTD)
        out: Tensor = self.norm(x_BMD)
        return out


class LatentDecoder(nn.Module):
    """Self-attention among predicted latents with their positions, and a norm: (B, M, D) -> (B, M, D).

    It is never given visible latents: all it knows of the image has gone through the regressor. See `LatentRegressor`
    for the arguments.
    """

    def __init__(self, width: int, depth: int = 4, heads: int = 12, layer_scale: float = 0.1, drop_path: float = 0.0):
        super().__init__()
        rates = _rates(depth, drop_path)
        self.blocks = nn.ModuleList(SelfBlock(width, heads, layer_scale, rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        _xavier_(self)

    def forward(self, latents_BMD: Tensor, where_BMD: Tensor) -> Tensor:
        """Return what the output layer reads."""
        x_BMD = latents_BMD + where_BMD
        for block in self.blocks:
            x_BMD = block(x_BMD)
        out: Tensor = self.norm(x_BMD)
        return out


def _scale(width: int, first: float) -> nn.Parameter:
    return nn.Parameter(torch.full((width,), first or 1.0), requires_grad=first > 0)


def _rates(depth: int, last: float) -> list[float]:
    return [last * i / max(1, depth - 1) for i in range(depth)]


def _xavier_(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
