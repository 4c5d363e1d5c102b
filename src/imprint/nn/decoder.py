"""Decoders of masked autoencoders."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imprint.ops.attention import attend
from imprint.ops.positions import sincos_2d


class Block(nn.Module):
    """Pre-norm transformer block with the fused attention of PyTorch: (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the block's output."""
        qkv = self.qkv(self.norm1(x_BTD)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attend(qkv[0], qkv[1], qkv[2])
        x_BTD = x_BTD + self.proj(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x_BTD + self.mlp(self.norm2(x_BTD))
        return out


class PixelDecoder(nn.Module):
    """MAE's decoder: kept tokens and mask tokens, put back in order, to pixels (arXiv 2111.06377, Sec. 3 and App. A).

    Fixed 2-d sin-cos positions; one learned mask token shared by all places; Xavier-uniform linears.

    Args:
        encoder_width: D of the encoder.
        width: decoder width.
        depth: number of blocks.
        heads: attention heads.
        grid: (gh, gw) of the patch grid.
        patch_values: values per patch, p * p * channels.
    """

    positions_1TD: Tensor

    def __init__(
        self, encoder_width: int, width: int, depth: int, heads: int, grid: tuple[int, int], patch_values: int
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions_1TD", sincos_2d(width, grid, cls=True)[None].float(), persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pixels = nn.Linear(width, patch_values)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, cls_B1D: Tensor, kept_BMD: Tensor, restore_BN: Tensor) -> Tensor:
        """Predict every patch.

        Args:
            cls_B1D: class token of the encoder.
            kept_BMD: kept patch tokens.
            restore_BN: for each place of the grid its row in [kept, masked].

        Returns:
            Predictions (B, N, patch_values).
        """
        kept = self.embed(kept_BMD)
        missing = restore_BN.shape[1] - kept.shape[1]
        tokens = torch.cat([kept, self.mask_token.to(kept.dtype).expand(kept.shape[0], missing, -1)], dim=1)
        tokens = torch.gather(tokens, 1, restore_BN[..., None].expand(-1, -1, tokens.shape[-1]))
        x = torch.cat([self.embed(cls_B1D), tokens], dim=1) + self.positions_1TD
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.pixels(self.norm(x[:, 1:]))
        return out
