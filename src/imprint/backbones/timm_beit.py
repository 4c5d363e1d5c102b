"""timm's BEiT family under the contract: relative position bias, shared by all blocks or one in each.

BEiT (arXiv 2106.08254, Sec. 2.3), SimMIM and data2vec pretrain ViTs with one shared bias and no absolute positions.

Shapes: N = gh * gw patches, T = 1 + N tokens, h heads, R = (2 gh - 1) (2 gw - 1) + 3 distances.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from imprint.backbones.encoder import Features
from imprint.backbones.timm_vit import TimmViT
from imprint.core.errors import ConfigError

CLASS_DISTANCES = 3
"""Rows at the table's end: class token to patch, patch to class token, class token to itself."""


class TimmBeit(TimmViT):
    """A timm Beit with token access.

    With relative positions `keep_BM` is refused: the bias is laid out for the full grid. For other image sizes than
    the built one the bias table is interpolated bicubically, as Swin's public code does.

    Args:
        model: Beit, built with `num_classes=0`.
        config: JSON-ready arguments of `build_encoder`.
    """

    def __init__(self, model: nn.Module, config: Mapping[str, Any]) -> None:
        described: Any = model
        described.patch_embed.strict_img_size = False
        super().__init__(model, config)
        tables = [described.rel_pos_bias, *(block.attn.relative_position_bias_table for block in described.blocks)]
        self._relative = any(table is not None for table in tables)
        self.can_drop = not self._relative

    def encode(self, images_BCHW: Tensor, mask_BN: Tensor | None = None, keep_BM: Tensor | None = None) -> Features:
        """Encode images; see the contract and the class."""
        if keep_BM is not None and self._relative:
            raise ConfigError(
                f"'{self.name}' has relative positions for the full grid, so no patches can be left out. "
                "Choose a ViT (for example --encoder vit_small_patch16_224)."
            )
        return super().encode(images_BCHW, mask_BN, keep_BM)

    def _biases(self, grid: tuple[int, int]) -> list[Tensor | None]:
        model: Any = self.model
        if not self._relative:
            return super()._biases(grid)
        shared = None
        if model.rel_pos_bias is not None:
            shared = self._bias(model.rel_pos_bias, grid)
        found: list[Tensor | None] = []
        for block in model.blocks:
            own = block.attn.relative_position_bias_table
            if own is None:
                found.append(shared)
            else:
                bias = self._bias(block.attn, grid)
                found.append(bias if shared is None else bias + shared)
        return found

    def _bias(self, holder: Any, grid: tuple[int, int]) -> Tensor:
        """Return the bias (h, T, T) of one table for a grid."""
        from timm.models.beit import gen_relative_position_index

        table_Rh: Tensor = holder.relative_position_bias_table
        index_TT: Tensor = holder.relative_position_index
        if grid != self._native_grid:
            table_Rh = resized_table(table_Rh, self._native_grid, grid)
            index_TT = gen_relative_position_index(grid, device=table_Rh.device)
        bias = table_Rh.index_select(0, index_TT.reshape(-1))
        return bias.view(*index_TT.shape, -1).permute(2, 0, 1)


def resized_table(table_Rh: Tensor, source: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Return a table of relative positions for another grid; the distances to the class token stay as they are.

    Args:
        table_Rh: rows row-major over (2 gh - 1, 2 gw - 1) distances, then three of the class token.
        source: (gh, gw) that the table was made for.
        grid: the grid wanted.
    """
    before, after = ((2 * g[0] - 1, 2 * g[1] - 1) for g in (source, grid))
    if before == after:
        return table_Rh
    square = table_Rh[:-CLASS_DISTANCES].T.unflatten(1, before)[None].float()
    resized = interpolate(square, size=after, mode="bicubic", align_corners=False)[0].flatten(1).T.to(table_Rh.dtype)
    return torch.cat([resized, table_Rh[-CLASS_DISTANCES:]])
