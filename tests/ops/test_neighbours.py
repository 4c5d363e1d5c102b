from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError, DataError
from imprint.ops import neighbours
from imprint.ops.neighbours import inverse_norms, knn_classify, knn_scores, nearest, top_accuracy


def features(rows: int, width: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize(
    ("queries", "rows", "width", "k"),
    [
        (7, 50, 8, 3),
        (300, 300, 16, 20),
        (5, 9000, 4, 60),
        (3, 131, 7, 131),
        (2, 4097, 3, 1),
        (4, 4099, 2, 5),
        (1, 1, 1, 1),
    ],
)
@pytest.mark.parametrize("bank_rows", [64, 5000, 65_536])
def test_nearest_equals_a_full_sort(
    monkeypatch: pytest.MonkeyPatch, queries: int, rows: int, width: int, k: int, bank_rows: int
) -> None:
    monkeypatch.setattr(neighbours, "_BANK_ROWS", bank_rows)
    q, bank = features(queries, width, 0), torch.randn(rows, width, generator=torch.Generator().manual_seed(1))
    similarity, index = nearest(q, bank, k)
    expected = (q @ bank.T).topk(k, dim=1)
    torch.testing.assert_close(similarity, expected.values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((q[:, None] * bank[index]).sum(-1), similarity, atol=1e-5, rtol=1e-5)
    assert all(len(set(row)) == k for row in index.tolist())


@pytest.mark.parametrize("order", ["rising", "falling", "equal"])
def test_sorted_and_tied_banks(monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    monkeypatch.setattr(neighbours, "_BANK_ROWS", 700)
    values = {"rising": torch.arange(3000.0), "falling": -torch.arange(3000.0), "equal": torch.zeros(3000)}[order]
    similarity, index = nearest(torch.ones(2, 1), values[:, None], 40)
    assert torch.equal(similarity[0], values.sort(descending=True).values[:40])
    assert len(set(index[1].tolist())) == 40


def test_leaving_itself_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BANK_ROWS", 90)
    bank = features(300, 8, 0)
    similarity, index = nearest(bank[40:140], bank, 299, leave_out_Q=torch.arange(40, 140))
    assert not (index == torch.arange(40, 140)[:, None]).any()
    expected = (bank[40:140] @ bank.T).scatter_(1, torch.arange(40, 140)[:, None], -9.0).topk(299, dim=1).values
    torch.testing.assert_close(similarity, expected, atol=1e-6, rtol=0)


def test_precision_follows_the_inputs() -> None:
    q, bank = features(3, 5, 0), features(20, 5, 1)
    assert nearest(q.double(), bank.double(), 2)[0].dtype == torch.float64
    assert nearest(q.bfloat16(), bank.bfloat16(), 2)[0].dtype == torch.float32


def naive_votes(q: Tensor, bank: Tensor, labels: Tensor, classes: int, k: int, t: float, deepest: int | None) -> Tensor:
    votes = torch.zeros(len(q), classes, dtype=q.dtype)
    for i in range(len(q)):
        sims, index = (q[i] @ bank.T).sort(descending=True)
        sims, index = sims[: deepest or k], index[: deepest or k]
        weights = torch.exp(sims / t) if deepest is None else torch.softmax(sims / t, 0)
        for j in range(k):
            votes[i, labels[index[j]]] += weights[j]
    return votes


@pytest.mark.parametrize(("k", "deepest"), [(1, None), (10, None), (10, 10), (10, 25)])
def test_votes_equal_the_loops(k: int, deepest: int | None) -> None:
    q, bank = features(30, 6, 0).double(), features(80, 6, 1).double()
    labels = torch.randint(4, (80,), generator=torch.Generator().manual_seed(2))
    weighting = "exp" if deepest is None else "softmax"
    got = knn_scores(q, bank, labels, 4, k, 0.1, weighting=weighting, max_k=deepest)
    torch.testing.assert_close(got, naive_votes(q, bank, labels, 4, k, 0.1, deepest))


@pytest.mark.parametrize("weighting", ["exp", "softmax"])
def test_all_settings_in_one_pass_equal_one_by_one(weighting: neighbours.Weighting) -> None:
    q, bank = features(40, 6, 0), features(500, 6, 1)
    labels = torch.randint(7, (500,), generator=torch.Generator().manual_seed(2))
    ranked = knn_classify(q, bank, labels, 7, (20, 5, 100), (0.07, 1.0), weighting=weighting)
    assert set(ranked) == {(k, t) for k in (20, 5, 100) for t in (0.07, 1.0)}
    for (k, t), classes in ranked.items():
        votes = knn_scores(q, bank, labels, 7, k, t, weighting=weighting, max_k=100)
        assert classes.shape == (40, 5)
        torch.testing.assert_close(votes.gather(1, classes), votes.topk(5, dim=1).values)


def test_classes_without_votes_come_in_order() -> None:
    bank = features(10, 4, 0)
    ranked = knn_classify(bank[:3], bank, torch.full((10,), 3), 6, [5])[5, 0.07]
    assert ranked.tolist() == [[3, 0, 1, 2, 4]] * 3


def test_separable_classes_are_found() -> None:
    centres = torch.eye(5)
    labels = torch.arange(5).repeat(40)
    noise = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * 0.05
    bank = F.normalize(centres[labels] + noise, dim=1)
    ranked = knn_classify(centres, bank, labels, 5, [10])[10, 0.07]
    assert top_accuracy(ranked, torch.arange(5)).item() == 1.0
    assert top_accuracy(ranked, (torch.arange(5) + 1) % 5).item() == 0.0
    assert top_accuracy(ranked, (torch.arange(5) + 1) % 5, top=5).item() == 1.0


def test_wrong_input_is_named() -> None:
    bank, labels = features(10, 4, 0), torch.zeros(10, dtype=torch.int64)
    with pytest.raises(DataError, match="k = 11"):
        nearest(bank, bank, 11)
    with pytest.raises(DataError, match="k = 10"):
        nearest(bank, bank, 10, leave_out_Q=torch.arange(10))
    with pytest.raises(DataError, match="width"):
        nearest(bank[:, :3], bank, 1)
    with pytest.raises(DataError, match="labels"):
        knn_scores(bank, bank, labels[:5], 2, 1, 0.1)
    with pytest.raises(ConfigError, match="softmax"):
        knn_classify(bank, bank, labels, 2, [1], weighting="softmx")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="temperatures"):
        knn_classify(bank, bank, labels, 2, [1], [0.0])
    with pytest.raises(ConfigError, match="no k"):
        knn_classify(bank, bank, labels, 2, [])


def test_factors_on_rows_make_cosines_of_a_bank_as_it_is() -> None:
    generator = torch.Generator().manual_seed(3)
    bank = torch.randn(5000, 24, generator=generator) * torch.rand(5000, 1, generator=generator).mul(9)
    bank[17] = 0
    query = torch.nn.functional.normalize(torch.randn(40, 24, generator=generator), dim=1)
    want = nearest(query, torch.nn.functional.normalize(bank, dim=1), 7)
    got = nearest(query, bank, 7, scale_N=inverse_norms(bank, chunk=999))
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(got[1], want[1])
