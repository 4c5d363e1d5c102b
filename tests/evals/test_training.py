"""The loop of protocols that train: a killed one goes on, and gives what it would have given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from imprint.core.errors import HealthError
from imprint.core.schedules import cosine
from imprint.evals.training import Plan, fit
from imprint.evals.workspace import Workspace

CPU = torch.device("cpu")


class Killed(Exception):
    pass


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))


def train(workspace: Workspace, stop: int | None = None, scale: float = 1.0) -> tuple[nn.Module, list[float]]:
    model = network()

    def batches(first: int, last: int) -> Iterator[torch.Tensor]:
        for step in range(first, last):
            if step == stop:
                raise Killed
            yield torch.randn(6, 4, generator=torch.Generator().manual_seed(step))

    def loss(x: torch.Tensor, step: int) -> torch.Tensor:
        return scale * (model(x)[:, 0] - x.sum(1)).square().mean()

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    plan = Plan(name="toy", steps=24, per_epoch=6, lr=cosine(0.05, 0.0), ema=0.9, clip=1.0, seed=3)
    return fit(model, optimizer, batches, loss, plan, device=CPU, workspace=workspace)


@pytest.mark.parametrize("stop", [5, 13])
def test_killed_training_goes_on_and_ends_equal(tmp_path: Path, stop: int) -> None:
    whole, curve = train(Workspace(None))
    with pytest.raises(Killed):
        train(Workspace(tmp_path, every=0.0), stop=stop)
    assert (tmp_path / "toy.pt").is_file()
    resumed, again = train(Workspace(tmp_path, every=0.0))
    assert again == curve and len(curve) == 4 and curve[-1] < curve[0]
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_finished_training_is_not_repeated(tmp_path: Path) -> None:
    _, curve = train(Workspace(tmp_path))
    _, again = train(Workspace(tmp_path), stop=0)  # would raise if one more batch were drawn
    assert again == curve


def test_damaged_state_starts_anew(tmp_path: Path) -> None:
    _, curve = train(Workspace(tmp_path))
    (tmp_path / "toy.pt").write_bytes(b"not a state")
    _, again = train(Workspace(tmp_path))
    assert again == curve


def test_divergence_is_said(tmp_path: Path) -> None:
    with pytest.raises(HealthError, match="toy training diverged in epoch 1"):
        train(Workspace(None), scale=float("inf"))
