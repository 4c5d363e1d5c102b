"""Which patches are hidden, as data. A mask kind says how masks are drawn; `masks` draws them from counter keys.

All are delivered as `Batch.masks[name]`, bool of shape (count, B, N) with True = masked, N = gh * gw, row-major; and
`Batch.places[name]` holds where they are True, as flat indices, made on the host so that no device is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RandomMask:
    """Uniformly random patches of every image, exactly int(N * (1 - ratio)) kept (MAE, arXiv 2111.06377, Sec. 3).

    Attributes:
        name: name in the batch.
        count: masks per image.
        grid: patches (down, across).
        ratio: share of patches to mask, in [0, 1).
        shared: one draw for the whole batch instead of one per image (MSN, arXiv 2204.07141, public code).
    """

    name: str
    count: int = 1
    grid: tuple[int, int]
    ratio: float = 0.75
    shared: bool = False


@dataclass(frozen=True, kw_only=True)
class BlockMask:
    """Blocks until `patches` are masked (BEiT, arXiv 2106.08254, Algorithm 1; data2vec, CAE, MaskFeat).

    Attributes:
        name: name in the batch.
        count: masks per image.
        grid: patches (down, across).
        patches: how many to mask; the drawing stops a few short when blocks no longer fit, unless `exact`.
        min_block: smallest area aimed at, at most `patches`; the last blocks are smaller.
        max_block: largest area aimed at; None sets no other bound than what is left to mask.
        min_aspect: smallest aspect ratio of a block, the largest is its inverse.
        exact: add or take away random patches until exactly `patches` are masked (CAE, public code).
    """

    name: str
    count: int = 1
    grid: tuple[int, int]
    patches: int
    min_block: int = 16
    max_block: int | None = None
    min_aspect: float = 0.3
    exact: bool = False


@dataclass(frozen=True, kw_only=True)
class ShareMask:
    """Per image a drawn share of patches, in blocks or at random (iBOT, arXiv 2111.07832, App. E; public code).

    Attributes:
        name: name in the batch.
        count: masks per image.
        grid: patches (down, across).
        shares: per choice the mean share and its half range: the share is U(mean - range, mean + range) of one of
            these, chosen with equal probability; (0, 0) leaves the image whole.
        shape: `block` or `random`.
        min_aspect: smallest aspect ratio of a block, the largest is its inverse.
    """

    name: str
    count: int = 1
    grid: tuple[int, int]
    shares: tuple[tuple[float, float], ...] = ((0.0, 0.0), (0.3, 0.2))
    shape: str = "block"
    min_aspect: float = 0.3


@dataclass(frozen=True, kw_only=True)
class SpreadMask:
    """Block masks for a part of the batch's crops, their shares spread evenly (DINOv2, arXiv 2304.07193, public code).

    Of the count * B crops of the global batch int(count * B * probability) are masked, the i-th with a share uniform in
    the i-th slice of [low, high]; which crops these are is drawn anew every step.

    Attributes:
        name: name in the batch.
        count: masks per image.
        grid: patches (down, across).
        low: smallest share of patches.
        high: largest share of patches.
        probability: part of the crops that are masked.
        min_block: fewest patches of a block.
        max_block: largest block as a share of all patches.
        min_aspect: smallest aspect ratio of a block, the largest is its inverse.
    """

    name: str
    count: int = 1
    grid: tuple[int, int]
    low: float = 0.1
    high: float = 0.5
    probability: float = 0.5
    min_block: int = 4
    max_block: float = 0.5
    min_aspect: float = 0.3


@dataclass(frozen=True, kw_only=True)
class UnitMask:
    """Random square units of several patches, exactly ceil(ratio * units) of them (SimMIM, arXiv 2111.09886, Sec. 3.2).

    Attributes:
        name: name in the batch.
        count: masks per image.
        grid: patches (down, across), a multiple of `unit`.
        unit: side of a unit in patches.
        ratio: share of units to mask, in (0, 1].
    """

    name: str
    count: int = 1
    grid: tuple[int, int]
    unit: int = 1
    ratio: float = 0.6


@dataclass(frozen=True, kw_only=True)
class TargetsMask:
    """Several target blocks and a context block without them (I-JEPA, arXiv 2301.08243, Sec. 3 and App. A).

    The sizes of the blocks are drawn once per step, their places once per image. `masks[name]` is (targets, B, N), True
    = to be predicted, every row of the same number of patches. `masks[name + ":context"]` is (1, B, N), True = SEEN by
    the context encoder, every row cut to the smallest number in the global batch.

    Attributes:
        name: name of the targets in the batch; the context is `name:context`.
        grid: patches (down, across).
        targets: number of target blocks.
        target_scale: bounds of a target's share of the patches.
        target_aspect: bounds of its aspect ratio.
        context_scale: bounds of the context block's share.
        context_aspect: bounds of its aspect ratio.
        min_keep: a context has more patches than this; where none is found, targets are let into it one by one.
        overlap: let targets lie within the context (the paper's ablation).
    """

    name: str
    grid: tuple[int, int]
    targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    context_aspect: tuple[float, float] = (1.0, 1.0)
    min_keep: int = 10
    overlap: bool = False


@dataclass(frozen=True, kw_only=True)
class InverseBlockMask:
    """All but one block of patches, rolled over the edges, exactly int(ratio * N) masked (CAPI, arXiv 2502.08769).

    Attributes:
        name: name in the batch.
        count: masks per image.
        grid: patches (down, across).
        ratio: share of patches to mask.
        min_aspect: smallest aspect ratio of the visible block, the largest is its inverse.
        roll: move the block by a random shift that wraps around the edges.
    """

    name: str
    count: int = 1
    grid: tuple[int, int]
    ratio: float = 0.65
    min_aspect: float = 0.5
    roll: bool = True


Mask = RandomMask | BlockMask | ShareMask | SpreadMask | UnitMask | TargetsMask | InverseBlockMask
