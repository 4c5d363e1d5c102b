"""The network of iGPT (Chen 2020, public code openai/image-gpt): pre-norm blocks over colours, and the palette.

Shapes: B images, T tokens, N positions, D width, h heads, K colours, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imprint.ops.attention import attend


class PixelBlock(nn.Module):
    """Pre-norm block of the public code: (B, T, D) -> (B, T, D), without biases."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.RMSNorm(width, eps=1e-5)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.norm2 = nn.RMSNorm(width, eps=1e-5)
        self.fc1 = nn.Linear(width, 4 * width, bias=False)
        self.fc2 = nn.Linear(4 * width, width, bias=False)
        # Attention starts with variance 1 / D, what leaves it with 1 / (D L); the MLP with 0.02 throughout.
        nn.init.normal_(self.qkv.weight, std=width**-0.5)
        nn.init.normal_(self.proj.weight, std=(width * depth) ** -0.5)
        nn.init.normal_(self.fc1.weight, std=0.02)
        nn.init.normal_(self.fc2.weight, std=0.02)

    def heads_of(self, x_BTD: Tensor) -> Tensor:
        """Return queries, keys and values (3, B, h, T, D / h) of the normed input."""
        out: Tensor = self.qkv(self.norm1(x_BTD)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return out

    def forward(self, x_BTD: Tensor, causal: bool) -> Tensor:
        """Return the block's output; `causal`: a position attends to itself and earlier ones only."""
        q, k, v = self.heads_of(x_BTD).unbind(0)
        mixed = attend(q, k, v, causal=causal)
        return self.after_attention(x_BTD, mixed)

    def after_attention(self, x_BTD: Tensor, mixed_BhTd: Tensor) -> Tensor:
        """Add the attention's result and the MLP's."""
        x_BTD = x_BTD + self.proj(mixed_BhTd.transpose(1, 2).flatten(2))
        hidden = self.fc1(self.norm2(x_BTD))
        out: Tensor = x_BTD + self.fc2(hidden * torch.sigmoid(1.702 * hidden))
        return out


class PixelGPT(nn.Module):
    """The weights: palette, embeddings, blocks, final norm and the output layer, which is not tied to the input's.

    `start` is None in a bidirectional model. Positions start at a standard deviation of 0.01, colours and start token
    at 0.02, the output layer at 0, as in the public code.
    """

    palette: Tensor
    fitted: Tensor

    def __init__(self, channels: int, positions: int, clusters: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.register_buffer("palette", plain_palette(clusters, channels))
        self.register_buffer("fitted", torch.tensor(False))
        self.embed = nn.Embedding(clusters, width)
        self.pos_embed = nn.Parameter(torch.empty(1, positions, width).normal_(std=0.01))
        self.start_token: nn.Parameter | None = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.blocks = nn.ModuleList(PixelBlock(width, heads, depth) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.head = nn.Linear(width, clusters, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.zeros_(self.head.weight)


def plain_palette(clusters: int, channels: int) -> Tensor:
    """Return colours (K, C) on a regular grid over [-2, 2] per channel: the palette before any is fitted."""
    side = next(n for n in range(1, clusters + 1) if n**channels >= clusters)
    values = torch.linspace(-2.0, 2.0, side) if side > 1 else torch.zeros(1)
    cells = torch.cartesian_prod(*[values] * channels).view(-1, channels)
    return cells[torch.linspace(0, len(cells) - 1, clusters).round().long()]
