"""The head of a jigsaw solver: features of tiles, one by one, then side by side.

Shape suffixes: B puzzles, N tiles in all, T tiles of a puzzle, D width of the encoder, W width of a tile, P classes.
"""

from __future__ import annotations

from torch import Tensor, nn


class TileFusion(nn.Module):
    """A layer on each tile's features, the results side by side, and a classifier over permutations.

    CFN (arXiv 1603.09246, Fig. 3): fc6 on each tile, shared; fc7 on the concatenation; fc8 to the classes.

    Args:
        width: D.
        tiles: T.
        classes: P.
        tile_width: W, fc6.
        fusion_width: fc7; 0 leaves it out.
        norm: BatchNorm before the ReLUs.
        dropout: after the ReLUs.
    """

    def __init__(
        self,
        width: int,
        tiles: int,
        classes: int,
        *,
        tile_width: int = 1024,
        fusion_width: int = 4096,
        norm: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.tile = _layer(width, tile_width, norm, dropout)
        self.fusion = _layer(tiles * tile_width, fusion_width, norm, dropout) if fusion_width else nn.Identity()
        self.classifier = nn.Linear(fusion_width or tiles * tile_width, classes)

    def embed(self, features_ND: Tensor) -> Tensor:
        """Return what enters the concatenation, (N, W)."""
        embedded: Tensor = self.tile(features_ND)
        return embedded

    def forward(self, tiles_BTW: Tensor) -> Tensor:
        """Return logits (B, P) for embedded tiles in the order of their places."""
        logits: Tensor = self.classifier(self.fusion(tiles_BTW.flatten(1)))
        return logits


def _layer(fan_in: int, fan_out: int, norm: bool, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(fan_in, fan_out, bias=not norm)]
    if norm:
        layers.append(nn.BatchNorm1d(fan_out))
    layers.append(nn.ReLU(inplace=True))
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)
