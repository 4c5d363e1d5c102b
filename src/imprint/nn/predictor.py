"""A narrow transformer that says what stands at places of the image that the encoder did not see.

Shape suffixes: T target sets, B images, M seen patches, K patches of a target set, P prefix tokens, D encoder width,
W own width, N patches of the grid, O values per prediction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from imprint.nn.decoder import Block
from imprint.ops.positions import sincos_2d


class Predictor(nn.Module):
    """Seen tokens and positional mask tokens to predictions (I-JEPA, arXiv 2301.08243, Sec. 3 and App. A; public code).

    A mask token is one learned vector plus the fixed sin-cos position of the place that is asked for. All target sets
    go through at once: T sets of B images are T B sequences of M + K tokens, so no set sees another.

    Weights start from a normal distribution of 0.02 cut at 2 standard deviations of torch's `trunc_normal_`, biases at
    zero, and the last layers of both branches of block l (from 1) are divided by sqrt(2 l), as in the public code.

    Args:
        encoder_width: D.
        width: W, a multiple of 4 and of `heads`.
        depth: number of blocks.
        heads: attention heads.
        grid: (gh, gw) of the patch grid.
        outputs: O.
        positions_ND: where each place lies, (N, W); None takes sines and cosines of `grid`.
    """

    positions_ND: Tensor

    def __init__(
        self,
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        grid: tuple[int, int],
        outputs: int,
        positions_ND: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        table_ND = sincos_2d(width, grid) if positions_ND is None else positions_ND
        self.register_buffer("positions_ND", table_ND.float(), persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.out = nn.Linear(width, outputs)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            for number, block in enumerate(self.blocks, start=1):
                assert isinstance(block, Block)
                for last in (block.proj, block.mlp[-1]):
                    assert isinstance(last, nn.Linear)
                    last.weight.div_(math.sqrt(2.0 * number))

    def forward(self, seen_BMD: Tensor, seen_at_BM: Tensor, targets_TBK: Tensor) -> Tensor:
        """Predict what stands at the targets.

        Args:
            seen_BMD: the encoder's tokens of the patches that it saw.
            seen_at_BM: int64, where they are.
            targets_TBK: int64, places asked for.

        Returns:
            Predictions (T B, K, O), set-major.
        """
        tokens = self.tokens(seen_BMD, seen_at_BM, targets_TBK)
        out: Tensor = self.out(tokens[:, -targets_TBK.shape[-1] :])
        return out

    def tokens(
        self, seen_BMD: Tensor, seen_at_BM: Tensor, targets_TBK: Tensor, prefix_BPD: Tensor | None = None
    ) -> Tensor:
        """Return all tokens after the last norm, (T B, P + M + K, W): prefix (without position), seen, asked for."""
        sets, images, asked = targets_TBK.shape
        seen = self.embed(seen_BMD)
        seen = seen + self.positions_ND[seen_at_BM].to(seen.dtype)
        if prefix_BPD is not None:
            seen = torch.cat([self.embed(prefix_BPD), seen], dim=1)
        masked = (self.mask_token + self.positions_ND[targets_TBK.flatten(0, 1)]).to(seen.dtype)
        every = seen.expand(sets, -1, -1, -1).reshape(sets * images, *seen.shape[1:])
        x = torch.cat([every, masked], dim=1)
        assert masked.shape[1] == asked
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out
