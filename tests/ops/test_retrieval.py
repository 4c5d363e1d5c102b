"""Ranks and precision against plain loops, ties included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from imprint.core.errors import DataError
from imprint.ops import retrieval
from imprint.ops.retrieval import best_rows, first_ranks, leave_one_out, recall_at


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def naive_ranks(query: Tensor, mine: Tensor, bank: Tensor, theirs: Tensor) -> list[int]:
    ranks = []
    for q, group in zip(query.double(), mine.tolist(), strict=True):
        scored = [
            (float((q * b).sum()), other == group) for b, other in zip(bank.double(), theirs.tolist(), strict=True)
        ]
        target = max(score for score, right in scored if right)
        ranks.append(1 + sum(score >= target and not right for score, right in scored))
    return ranks


def pairs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images = unit(60, 8)
    images[7] = images[9]  # an exact tie
    counts = torch.arange(60) % 4 + 1
    group = torch.repeat_interleave(torch.arange(60), counts)
    texts = F.normalize(
        images[group] + 0.6 * torch.randn(len(group), 8, generator=torch.Generator().manual_seed(1)), dim=1
    )
    texts[5] = texts[100]
    return texts, group, images, torch.arange(60)


@pytest.mark.parametrize("tile", [7, 8192])
def test_ranks_equal_the_plain_loop_both_ways(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_TILE", tile)
    texts, group, images, own = pairs()
    there, back = first_ranks(texts, group, images, own), first_ranks(images, own, texts, group)
    assert there.tolist() == naive_ranks(texts, group, images, own)
    assert back.tolist() == naive_ranks(images, own, texts, group)
    assert recall_at(there, 5) == sum(rank <= 5 for rank in there.tolist()) > recall_at(there, 1) > 0
    shuffled = torch.randperm(len(texts), generator=torch.Generator().manual_seed(3))  # order of the bank is nothing
    assert first_ranks(images, own, texts[shuffled], group[shuffled]).tolist() == back.tolist()


def test_near_ties_that_float32_cannot_tell_are_told_in_float64() -> None:
    bank = torch.zeros(3, 4, dtype=torch.float64)
    bank[:, 0], bank[:, 1] = 1.0, torch.tensor([0.0, 1e-9, -1e-9])
    query = F.normalize(torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64), dim=1)
    ranks = [int(first_ranks(query, torch.tensor([g]), bank, torch.arange(3))[0]) for g in range(3)]
    assert ranks == [2, 1, 3]


def test_one_point_for_everything_finds_nothing() -> None:
    same = torch.full((50, 16), 0.25)
    assert first_ranks(same, torch.arange(50), same, torch.arange(50)).tolist() == [50] * 50
    hit, precision = leave_one_out(same, torch.arange(50) % 5)
    assert not hit.any() and precision.max() == 0


def test_queries_without_an_answer_and_bad_vectors_are_refused() -> None:
    with pytest.raises(DataError, match="query 1 has no right answer"):
        first_ranks(unit(2, 4), torch.tensor([0, 5]), unit(3, 4), torch.arange(3))
    with pytest.raises(DataError, match="differ in width"):
        first_ranks(unit(2, 4), torch.arange(2), unit(3, 5), torch.arange(3))
    broken = unit(3, 4)
    broken[1, 2] = float("nan")
    with pytest.raises(DataError, match="bank are not finite"):
        first_ranks(unit(2, 4), torch.arange(2), broken, torch.arange(3))


def test_precision_at_r_equals_the_plain_loop() -> None:
    features, labels = unit(90, 6), torch.randint(0, 6, (90,), generator=torch.Generator().manual_seed(2))
    labels[4] = 77  # alone in its class
    features[10] = features[11]
    hit, precision = leave_one_out(features, labels)
    for i in range(90):
        others = [j for j in range(90) if j != i]
        right = {j for j in others if labels[j] == labels[i]}
        if not right:
            assert precision[i].isnan() and not hit[i]
            continue
        score = {j: round(float(features[i] @ features[j]) * 2**20) for j in others}
        ranked = sorted(others, key=lambda j: (-score[j], j in right))
        flags = [j in right for j in ranked[: len(right)]]
        expected = sum(sum(flags[: k + 1]) / (k + 1) for k, flag in enumerate(flags) if flag) / len(right)
        assert precision[i] == pytest.approx(expected, abs=1e-6) and bool(hit[i]) == flags[0]


def test_best_rows_are_the_nearest() -> None:
    cosine, rows = best_rows(3 * unit(4, 8, seed=5), 2 * unit(30, 8), 3)
    expected = (unit(4, 8, seed=5) @ unit(30, 8).T).topk(3)
    torch.testing.assert_close(cosine, expected.values)
    assert torch.equal(rows, expected.indices)
