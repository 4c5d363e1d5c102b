"""Logistic regression: the optimum is scikit-learn's, the cost is picked without a look at test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from imprint.core.errors import ConfigError, DataError
from imprint.evals import logreg
from imprint.evals.features import FeatureTable
from imprint.evals.logreg import LogReg, LogRegConfig, regress, solve
from imprint.evals.pixels import PixelEncoder
from imprint.evals.protocol import EvalData
from imprint.evals.workspace import Workspace


def problem(count: int = 400, seed: int = 0, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 10, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(classes, (count,), generator=generator)
    return centres[labels] + 1.5 * torch.randn(count, 10, generator=generator) + 2.0, labels


def table(x: torch.Tensor, y: torch.Tensor, classes: int) -> FeatureTable:
    rows = np.arange(len(y))
    return FeatureTable(x.numpy(), y.numpy(), rows, tuple(f"c{i}" for i in range(classes)), [str(i) for i in rows])


def test_optima_of_a_path_are_those_of_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = problem()
    rows = torch.arange(20, 400)
    config = LogRegConfig(standardise=False, tolerance=1e-6, device="cpu")
    costs = (1e-3, 0.1, 10.0)
    solved = solve(x, y, rows, 4, costs, config)
    for g, cost in enumerate(costs):
        twin = linear_model.LogisticRegression(C=cost, tol=1e-8, max_iter=5000)
        twin.fit(x[rows].double().numpy(), y[rows].numpy())
        weight = torch.from_numpy(twin.coef_).T.float()
        torch.testing.assert_close(solved.heads.weight_DGC[:, g], weight, rtol=3e-3, atol=3e-4)
        bias = torch.from_numpy(twin.intercept_ - twin.intercept_.mean()).float()
        torch.testing.assert_close(solved.heads.bias_GC[g], bias, rtol=3e-3, atol=2e-3)
        got = solved.heads.pick(g).logits(x)[:, 0].softmax(1)
        torch.testing.assert_close(got, torch.from_numpy(twin.predict_proba(x.double())).float(), rtol=0, atol=2e-3)
    again = solve(x, y, rows, 4, costs[1:2], config, start=solved.heads.pick(1))
    assert again.steps[0] <= 3 and all(solved.converged)


def test_rare_and_absent_classes_and_constant_columns() -> None:
    x, y = problem(300, classes=3)
    x = torch.cat([x, torch.full((300, 1), 7.0), torch.zeros(300, 1)], 1)
    y = y.clone()
    y[y == 2] = 4  # classes 2 and 3 have no image
    y[0] = 5  # one image only
    solved = solve(x, y, torch.arange(300), 6, (0.1, 1e5), LogRegConfig(device="cpu"))
    assert torch.isfinite(solved.heads.weight_DGC).all()
    predicted = solved.heads.logits(x).argmax(2)
    assert not torch.isin(predicted, torch.tensor([2, 3])).any()
    assert int(predicted[0, 1]) == 5
    assert solved.heads.weight_DGC[10:].abs().max() < 0.05  # constant columns tell nothing
    with pytest.raises(DataError, match="one class"):
        solve(x, torch.zeros_like(y), torch.arange(300), 6, (1.0,), LogRegConfig(device="cpu"))


def test_order_of_classes_does_not_matter() -> None:
    x, y = problem()
    order = torch.tensor([2, 0, 3, 1])
    config = LogRegConfig(tolerance=1e-6, device="cpu")
    a = solve(x, y, torch.arange(400), 4, (1.0,), config).heads.logits(x)
    b = solve(x, order[y], torch.arange(400), 4, (1.0,), config).heads.logits(x)
    torch.testing.assert_close(a, b[:, :, order], rtol=1e-2, atol=3e-3)


def test_search_finds_the_best_of_the_whole_path_here_and_test_is_never_looked_at() -> None:
    train, test = table(*problem(400), 4), table(*problem(300, seed=5), 4)
    metrics, details = regress(train, test, LogRegConfig(device="cpu"))
    whole_metrics, whole = regress(train, test, LogRegConfig(device="cpu", search=False))
    assert len(whole["path"]) == 45 and 12 <= len(details["path"]) <= 18
    assert details["chosen"]["held_out_top1"] >= whole["chosen"]["held_out_top1"] - 3
    assert abs(metrics["top1"].value - whole_metrics["top1"].value) < 4 and metrics["top1"].n == 300
    assert metrics["top1"].value > 50 and details["final_converged"]
    other = table(torch.from_numpy(test.features_ND), torch.from_numpy((test.labels_N + 1) % 4), 4)
    assert regress(train, other, LogRegConfig(device="cpu"))[1]["path"] == details["path"]


def test_killed_search_goes_on_and_ends_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = table(*problem(400), 4), table(*problem(300, seed=5), 4)
    config = LogRegConfig(device="cpu", costs=tuple(10.0**i for i in range(-6, 6)))
    monkeypatch.setattr(logreg, "_STATE_BYTES", 4 * 26 * 4 * 11 * 2)  # two costs at a time
    want = regress(train, test, config)
    real, calls = logreg.solve, []

    def dying(*args, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(args[4])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(logreg, "solve", dying)
    with pytest.raises(KeyboardInterrupt):
        regress(train, test, config, Workspace(tmp_path))
    assert regress(train, test, config, Workspace(tmp_path)) == want
    assert calls[0] not in calls[3:] and calls[1] not in calls[3:] and calls[3] == calls[2]


def test_protocol(train, test, unlabelled) -> None:
    config = LogRegConfig(device="cpu", cache=False, costs=(1e-4, 1e-2, 1.0))
    report = LogReg().run(PixelEncoder(8), EvalData(train=train, test=test), config)
    assert report.main == "top1" and report.metrics["top1"].value > 90 and report.cost["fit_s"] > 0
    with pytest.raises(DataError, match="needs labels"):
        LogReg().run(PixelEncoder(8), EvalData(train=unlabelled, test=test), config)
    for wrong in ({"costs": ()}, {"costs": (0.0,)}, {"held_out": 1.0}, {"max_iter": 0}, {"tolerance": 0.0}):
        with pytest.raises(ConfigError):
            LogRegConfig(**wrong)
