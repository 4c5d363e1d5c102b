"""A plain transformer over sequences that shows what its feed-forward layers put out (data2vec's targets).

Shape suffixes: B sequences, T places, D width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from imprint.core.errors import ConfigError
from imprint.ops.attention import attend


class SequenceBlock(nn.Module):
    """Attention and a feed-forward layer with GELU, normalised after each sum (Vaswani et al. 2017), as BERT has it.

    Args:
        width: D.
        heads: attention heads.
        mlp_ratio: hidden width of the feed-forward layer as a multiple of D.
        dropout: on both contributions.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, dropout: float = 0.1) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"a transformer of width {width} cannot have {heads} heads; use a divisor of the width.")
        hidden = int(width * mlp_ratio)
        self.heads, self.dropout = heads, dropout
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)
        for layer in (self.qkv, self.proj, self.fc1, self.fc2):  # BERT's
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x_BTD: Tensor, padding_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the tokens, and what the feed-forward layer adds to them.

        Args:
            x_BTD: tokens.
            padding_BT: bool, True where nobody may look; each row has a False.
        """
        q, k, v = self.qkv(x_BTD).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = None if padding_BT is None else ~padding_BT[:, None, None, :]
        mixed = attend(q, k, v, mask_TS=seen).transpose(1, 2).flatten(2)
        x_BTD = self.norm1(x_BTD + self.drop(self.proj(mixed)))
        added_BTD = self.fc2(F.gelu(self.fc1(x_BTD)))
        return self.norm2(x_BTD + self.drop(added_BTD)), added_BTD


class SequenceTransformer(nn.Module):
    """A stack of `SequenceBlock`s.

    Args:
        width: D.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: see `SequenceBlock`.
        dropout: see `SequenceBlock`.
    """

    def __init__(self, width: int, depth: int, heads: int, mlp_ratio: float = 4.0, dropout: float = 0.1) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SequenceBlock(width, heads, mlp_ratio, dropout) for _ in range(depth))

    def forward(self, x_BTD: Tensor, padding_BT: Tensor | None = None) -> Tensor:
        """Return the last tokens (B, T, D)."""
        for block in self.blocks:
            x_BTD, _ = block(x_BTD, padding_BT)
        return x_BTD

    def feed_forward(self, x_BTD: Tensor, top: int, padding_BT: Tensor | None = None) -> list[Tensor]:
        """Return what the feed-forward layers of the last `top` blocks put out, before the sum, each (B, T, D)."""
        found: list[Tensor] = []
        for block in self.blocks:
            x_BTD, added_BTD = block(x_BTD, padding_BT)
            found.append(added_BTD)
        return found[len(found) - top :]
