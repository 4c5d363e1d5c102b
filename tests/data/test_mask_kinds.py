"""Masks of every kind: their statistics, their keys, and that any number of processes draws the same."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from imprint.core.errors import ConfigError
from imprint.core.rng import key, uniforms
from imprint.data.mask_blocks import draw_blocks, uniform
from imprint.data.mask_kinds import (
    BlockMask,
    InverseBlockMask,
    Mask,
    RandomMask,
    ShareMask,
    SpreadMask,
    TargetsMask,
    UnitMask,
)
from imprint.data.mask_targets import block_size
from imprint.data.masks import Place, draw_masks, draw_with_placements, most_masked

KINDS: list[Mask] = [
    RandomMask(name="m", count=2, grid=(14, 14)),
    RandomMask(name="m", count=2, grid=(14, 14), shared=True),
    BlockMask(name="m", count=2, grid=(14, 14), patches=75),
    BlockMask(name="m", count=2, grid=(14, 12), patches=98, exact=True),
    ShareMask(name="m", count=2, grid=(14, 14)),
    ShareMask(name="m", count=2, grid=(14, 14), shape="random"),
    SpreadMask(name="m", count=2, grid=(16, 16)),
    UnitMask(name="m", count=2, grid=(12, 12), unit=2),
    TargetsMask(name="m", grid=(14, 14)),
    InverseBlockMask(name="m", count=2, grid=(14, 14)),
]
ids = [f"{type(kind).__name__}{i}" for i, kind in enumerate(KINDS)]


def place(rows: int = 64, *, seed: int = 3, epoch: int = 1, step: int = 5) -> Place:
    index = np.arange(rows)[::-1] * 7  # samples in some order
    return Place(seed=seed, epoch=epoch, step=step, index_B=index, first=0, total=rows)


def part(whole: Place, start: int, stop: int) -> Place:
    return dataclasses.replace(whole, index_B=whole.index_B[start:stop], first=start)


@pytest.mark.parametrize("kind", KINDS, ids=ids)
def test_two_processes_draw_what_one_draws(kind: Mask) -> None:
    whole = draw_masks(kind, place())
    halves = [draw_masks(kind, part(place(), *bounds)) for bounds in ((0, 32), (32, 64))]
    thirds = [draw_masks(kind, part(place(), *bounds)) for bounds in ((0, 10), (10, 40), (40, 64))]
    for name, mask in whole.items():
        assert mask.dtype == np.bool_ and mask.shape[1:] == (64, math.prod(kind.grid))
        for shards in (halves, thirds):
            np.testing.assert_array_equal(np.concatenate([shard[name] for shard in shards], axis=1), mask)


@pytest.mark.parametrize("kind", KINDS, ids=ids)
def test_other_seeds_names_and_steps_draw_other_masks(kind: Mask) -> None:
    whole = draw_masks(kind, place())["m"]
    again = draw_masks(kind, place())["m"]
    np.testing.assert_array_equal(whole, again)
    others = [
        draw_masks(kind, place(seed=4))["m"],
        draw_masks(kind, place(step=6, epoch=2))["m"],
        draw_masks(dataclasses.replace(kind, name="other"), place())["other"],
    ]
    for other in others:
        assert not np.array_equal(other, whole)
    if whole.shape[0] > 1:
        assert not np.array_equal(whole[0], whole[1])
    same_rows = isinstance(kind, RandomMask) and kind.shared
    assert np.array_equal(whole[0][0], whole[0][1]) == same_rows


def test_per_image_masks_do_not_depend_on_the_step_and_shared_ones_do() -> None:
    for kind in KINDS:
        by_step = isinstance(kind, SpreadMask | TargetsMask) or getattr(kind, "shared", False)
        same = np.array_equal(draw_masks(kind, place())["m"], draw_masks(kind, place(step=9))["m"])
        assert same != by_step, kind


def test_the_kernels_stream_is_the_stream_of_core_rng() -> None:
    words = key(1, np.arange(5))
    stream = uniforms(words, 7)
    for row in range(5):
        assert [uniform(words[row], n) for n in range(1, 8)] == stream[row].tolist()


@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (14, 14), (7, 5)])
@pytest.mark.parametrize("exact", [False, True])
def test_blocks_never_exceed_and_exact_ones_meet_their_number(grid: tuple[int, int], exact: bool) -> None:
    patches = int(0.4 * math.prod(grid))
    mask = BlockMask(name="m", grid=grid, patches=patches, min_block=max(1, patches // 6), exact=exact)
    count = draw_masks(mask, place(2000))["m"].sum(-1)
    assert count.min() >= 1 and count.max() <= patches
    assert (count == patches).all() if exact else count.mean() > 0.9 * patches


def test_what_is_in_one_block_is_a_rectangle() -> None:
    keys = key(0, np.arange(500))
    masks, tried = draw_blocks(keys, np.full(500, 30.0), (14, 14), low=30, cap=30, min_aspect=0.5)
    assert tried.shape == (14, 14) and tried.sum() >= 500 and tried[0].sum() == 0
    whole = [m.reshape(14, 14) for m in masks if m.sum() > 20]
    assert len(whole) > 400
    for m in whole:  # the first block is whole; later ones only fill what is left of 30
        rows, columns = np.flatnonzero(m.any(1)), np.flatnonzero(m.any(0))
        assert rows.size <= 14 and columns.size <= 14
    ratio = tried.sum(1) @ np.arange(14) / (tried.sum(0) @ np.arange(14))
    assert abs(ratio - 1) < 0.05  # as often tall as wide


def test_shares_are_chosen_with_equal_probability() -> None:
    mask = ShareMask(name="m", grid=(14, 14), shares=((0.0, 0.0), (0.3, 0.2)))
    count = draw_masks(mask, place(4000))["m"].sum(-1)
    assert abs((count == 0).mean() - 0.5) < 0.04
    some = count[count > 0]
    assert some.max() <= 0.5 * 196 and abs(some.mean() - 0.3 * 196) < 3
    scattered = draw_masks(dataclasses.replace(mask, shape="random"), place(4000))["m"].sum(-1)
    assert abs((scattered == 0).mean() - 0.5) < 0.04 and scattered.max() <= 98


@pytest.mark.parametrize("rows", [1, 2, 7, 32])
def test_spread_masks_half_of_the_global_batch(rows: int) -> None:
    mask = SpreadMask(name="m", count=2, grid=(16, 16))
    count = np.sort(draw_masks(mask, place(rows))["m"].sum(-1).reshape(-1))
    masked = count[2 * rows - int(rows) :]
    assert (count[: 2 * rows - masked.size] == 0).all() and (masked > 0).all()
    edges = 256 * np.linspace(0.1, 0.5, masked.size + 1)
    assert (masked <= edges[1:]).all() and (masked >= edges[:-1] - 12).all()
    assert masked.sum() <= most_masked(mask, rows)


def test_units_are_whole_and_exact() -> None:
    mask = UnitMask(name="m", grid=(12, 12), unit=4, ratio=0.6)
    drawn = draw_masks(mask, place())["m"].reshape(64, 3, 4, 3, 4)
    cells = drawn.any((2, 4))
    assert (cells == drawn.all((2, 4))).all() and (cells.sum((1, 2)) == math.ceil(0.6 * 9)).all()
    assert draw_masks(dataclasses.replace(mask, ratio=1.0), place())["m"].all()


@pytest.mark.parametrize("overlap", [False, True])
def test_targets_are_blocks_of_one_size_and_contexts_keep_clear_of_them(overlap: bool) -> None:
    mask = TargetsMask(name="m", grid=(14, 14), overlap=overlap)
    for step in range(20):
        drawn = draw_masks(mask, place(step=step))
        targets, context = drawn["m"], drawn["m:context"]
        assert targets.shape == (4, 64, 196) and context.shape == (1, 64, 196)
        assert len(np.unique(targets.sum(-1))) == 1 and len(np.unique(context.sum(-1))) == 1
        assert 0.12 * 196 < targets[0, 0].sum() < 0.23 * 196 and context[0, 0].sum() > 10
        assert (targets.any(0) & context[0]).any() == overlap
        block = targets[1, 3].reshape(14, 14)
        assert block.sum() == block.any(0).sum() * block.any(1).sum()


def test_a_context_without_room_lets_targets_in_one_by_one() -> None:
    crowded = TargetsMask(name="m", grid=(8, 8), targets=6, target_scale=(0.5, 0.6), min_keep=20)
    drawn = draw_masks(crowded, place(16))
    context = drawn["m:context"][0]
    assert context.sum(-1).min() > 20 and (drawn["m"].any(0) & context).any()


def test_the_sizes_of_the_public_code() -> None:
    assert block_size((14, 14), (0.85, 1.0), (1.0, 1.0), 0.0) == (13, 13)
    assert block_size((14, 14), (0.15, 0.2), (0.75, 1.5), 0.0) == (5, 6)
    assert block_size((14, 14), (0.15, 0.2), (0.75, 1.5), 0.999) == (8, 5)


@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (4, 4), (5, 9), (16, 3)])
@pytest.mark.parametrize("ratio", [0.65, 0.3, 0.9])
@pytest.mark.parametrize("roll", [True, False])
def test_inverse_blocks_are_exact(grid: tuple[int, int], ratio: float, roll: bool) -> None:
    drawn = draw_masks(InverseBlockMask(name="m", grid=grid, ratio=ratio, roll=roll), place(500))["m"]
    assert (drawn.sum(-1) == int(ratio * math.prod(grid) + 1e-9)).all()
    if roll:  # every patch is seen alike
        assert abs(drawn.mean((0, 1)) - drawn.mean()).max() < 0.12
    else:  # one block, its last row perhaps shorter
        seen = ~drawn[0].reshape(-1, *grid)
        boxes = seen.any(1).sum(1) * seen.any(2).sum(1)
        assert (boxes - seen.sum((1, 2)) < seen.any(1).sum(1)).all()


@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (2, 2)])
def test_tiny_grids_work(grid: tuple[int, int]) -> None:
    patches = math.prod(grid)
    kinds: list[Mask] = [
        BlockMask(name="m", grid=grid, patches=patches // 2, min_block=1),
        ShareMask(name="m", grid=grid),
        SpreadMask(name="m", grid=grid, count=2),
        UnitMask(name="m", grid=grid),
        InverseBlockMask(name="m", grid=grid),
    ]
    if grid != (2, 2):
        kinds.append(TargetsMask(name="m", grid=grid, min_keep=2))
    for kind in kinds:
        for mask in draw_masks(kind, place(32)).values():
            assert mask.shape[-1] == patches and (~mask).any(-1).all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (BlockMask(name="m", grid=(4, 4), patches=6), "set min_block to 1..6"),
        (BlockMask(name="m", grid=(4, 4), patches=16, min_block=1), r"1\.\.15"),
        (BlockMask(name="m", grid=(8, 8), patches=30, min_block=8, max_block=4), "less than min_block"),
        (BlockMask(name="m", grid=(8, 8), patches=30, min_block=8, min_aspect=0.0), "min_aspect"),
        (BlockMask(name="m", count=0, grid=(8, 8), patches=30), "count"),
        (ShareMask(name="m", grid=(8, 8), shares=((0.1, 0.2),)), "share"),
        (ShareMask(name="m", grid=(8, 8), shape="ring"), "shape"),
        (SpreadMask(name="m", grid=(8, 8), low=0.6), "low"),
        (UnitMask(name="m", grid=(7, 7), unit=2), "tile"),
        (UnitMask(name="m", grid=(8, 8), ratio=0.0), "ratio"),
        (TargetsMask(name="m", grid=(4, 4)), "min_keep to at most 8"),
        (TargetsMask(name="m", grid=(2, 2), min_keep=0), "empty"),
        (TargetsMask(name="m", grid=(8, 8), target_scale=(0.3, 0.2)), "rising"),
        (InverseBlockMask(name="m", grid=(8, 8), ratio=1.0), "ratio"),
        (RandomMask(name="m", grid=(0, 8)), "no patches"),
    ],
)
def test_impossible_settings_are_refused(mask: Mask, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        draw_masks(mask, place(4))


def test_placements_are_of_the_masks_that_are_delivered() -> None:
    mask = BlockMask(name="m", grid=(14, 14), patches=75)
    masks, tried = draw_with_placements(mask, place())
    np.testing.assert_array_equal(masks, draw_masks(mask, place())["m"])
    assert tried.sum() >= 64 * 2
