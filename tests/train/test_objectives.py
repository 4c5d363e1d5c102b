"""Methods with several objectives: each update moves its own parameters only, and sees the updates before it."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.dist.world import World
from imprint.methods.base import Method, StepOutput, split_decay
from imprint.train.optim import build_optimizer
from imprint.train.precision import choose_precision
from imprint.train.step import Stepper


class Duel(Method):
    """Two linear maps that push one product apart: the critic up, the maker down."""

    objectives = ("critic", "maker")

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.critic = nn.Linear(3, 3), nn.Linear(3, 1)
        self.seen: list[tuple[str, bool, torch.Tensor]] = []
        self.hooks: list[str] = []

    def forward(self, batch: Batch, t: Progress, objective: str = "maker") -> StepOutput:
        moving = self.critic.weight.requires_grad, self.maker.weight.requires_grad
        self.seen.append((objective, *moving, self.critic.weight.detach().clone()))
        score = self.critic(self.maker(batch.views["x"][0].mean((2, 3)))).mean()
        return StepOutput(score if objective == "maker" else -score, {f"duel/{objective}": score})

    def before_optimizer_step(self, t: Progress) -> None:
        self.hooks.append("before")

    def after_optimizer_step(self, t: Progress) -> None:
        self.hooks.append("after")

    def param_groups(self):
        groups = []
        for name in ("maker", "critic"):
            for group in split_decay(getattr(self, name).named_parameters(prefix=name), prefix=f"{name}/"):
                groups.append(dataclasses.replace(group, objective=name, lr_scale=0.1 if name == "maker" else 1.0))
        return groups


def test_each_objective_moves_its_own_parameters_and_sees_the_updates_before(tiny) -> None:
    config = tiny()
    torch.manual_seed(0)
    method = Duel()
    world = World()
    optimizer = build_optimizer(method.param_groups(), config.optim, world.device)
    stepper = Stepper(config, method, optimizer, world, choose_precision("fp32", world.device, None, False))
    batch = Batch(views={"x": torch.rand(1, 16, 3, 4, 4)}, index_B=torch.arange(16))
    states: list[dict[str, torch.Tensor]] = []
    real = optimizer.step

    def step(*args, **kwargs):
        states.append({k: v.clone() for k, v in method.state_dict().items()})
        with_grad = {n for n, p in method.named_parameters() if p.grad is not None}
        assert {n.split(".")[0] for n in with_grad} == {("critic", "maker")[(len(states) - 1) % 2]}
        return real(*args, **kwargs)

    optimizer.step = step
    metrics = stepper(batch, Progress(5, 20, 4))
    ends = {k: v.clone() for k, v in method.state_dict().items()}
    before, between = states
    for name in before:
        moved_first, moved_second = not before[name].equal(between[name]), not between[name].equal(ends[name])
        assert (moved_first, moved_second) == (name.startswith("critic"), name.startswith("maker")), name
    assert [entry[:3] for entry in method.seen] == [("critic", True, False), ("maker", False, True)]
    assert method.seen[1][3].equal(between["critic.weight"])
    assert method.hooks == ["before", "after"]
    assert all(p.requires_grad for p in method.parameters())
    assert {"loss", "critic_loss", "duel/critic", "duel/maker", "grad_norm"} <= metrics.keys()
    torch.testing.assert_close(metrics["critic_loss"], -metrics["duel/critic"])
    torch.testing.assert_close(metrics["loss"], metrics["duel/maker"])
