"""One optimizer step: forward and backward over the micro-batches, clipping, the finite check, the update."""

from __future__ import annotations

import torch
from torch import Tensor

from imprint.core.progress import Progress
from imprint.core.rng import seed_of
from imprint.data.batch import Batch, Normalise
from imprint.dist.world import World
from imprint.methods.base import Method
from imprint.train.config import RunConfig
from imprint.train.gradients import clip_
from imprint.train.health import FiniteGuard
from imprint.train.optim import named_parameters, set_rates
from imprint.train.parallel import Parallel
from imprint.train.precision import Precision


class Stepper:
    """Turns a batch into one update of the weights.

    All randomness on the device (dropout, stochastic depth, noise) comes from a generator seeded from (seed, step,
    rank), so a step is a pure function of weights, optimizer state, batch and step number.
    """

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        optimizer: torch.optim.Optimizer,
        world: World,
        precision: Precision,
    ) -> None:
        self.config, self.method, self.optimizer = config, method, optimizer
        self.world, self.precision = world, precision
        self.parallel = Parallel(method, world, config.accumulate)
        self.normalise = Normalise(config.data.mean, config.data.std)
        self.guard = FiniteGuard(method, optimizer, world, precision)
        self.reschedule(config)

    def reschedule(self, config: RunConfig) -> None:
        """Take learning rate and weight decay from another configuration of the same run."""
        self.config = config
        self.lr = config.optim.lr.schedule(config.batch_size)
        self.weight_decay = config.optim.weight_decay

    def seed(self, t: Progress) -> None:
        """Seed the device's generators for the step at `t`."""
        torch.manual_seed(seed_of(self.config.seed, "step", t.step, self.world.rank))

    def prepared(self, batch: Batch) -> Batch:
        """Return the batch as the network sees it: on the device, laid out, normalised."""
        return self.precision.laid_out(batch).prepared(self.world.device, self.normalise)

    def __call__(self, batch: Batch, t: Progress) -> dict[str, Tensor]:
        """Take the step at `t` and return detached 0-d metrics: `loss`, `grad_norm`, and the method's own.

        Raises:
            HealthError: when loss or gradients are not finite (a CUDA run with a fused optimizer leaves the weights
                as they were and reports it one step later, so that the host never waits).
        """
        self.seed(t)
        set_rates(self.optimizer, self.lr(t), self.lr.start, self.weight_decay(t))
        metrics: dict[str, Tensor] = {}
        objectives = self.method.objectives or ("",)
        for objective in objectives:
            if "loss" in metrics:
                metrics[f"{objectives[objectives.index(objective) - 1]}_loss"] = metrics["loss"]
            with self.parallel.only(objective):
                metrics |= self.update(batch, t, objective, last=objective == objectives[-1])
        with torch.no_grad():
            self.method.after_optimizer_step(t)
        return metrics

    def update(self, batch: Batch, t: Progress, objective: str = "", *, last: bool = True) -> dict[str, Tensor]:
        """Move the parameters of one objective; `last` is the one before whose update the method may act."""
        self.optimizer.zero_grad(set_to_none=True)
        metrics = self.gradients(batch, t, objective)
        if self.precision.scaler is not None:
            self.precision.scaler.unscale_(self.optimizer)
        norm = clip_(named_parameters(self.optimizer), self.method.clipping, self.config.optim.clip)
        self.guard.inspect(metrics["loss"], norm, batch, t, self, objective)
        if last:
            with torch.no_grad():
                self.method.before_optimizer_step(t)
        if self.precision.scaler is not None:
            self.precision.scaler.step(self.optimizer)
            self.precision.scaler.update()
        else:
            self.optimizer.step()
        metrics["grad_norm"] = norm
        return metrics

    def gradients(self, batch: Batch, t: Progress, objective: str = "") -> dict[str, Tensor]:
        """Add the gradients of the batch's mean loss to the parameters and return mean metrics over micro-batches."""
        parts = self.config.accumulate
        size = len(batch) // parts
        sums: dict[str, Tensor] = {}
        for i in range(parts):
            part = self.prepared(batch if parts == 1 else batch.part(i * size, (i + 1) * size))
            with self.parallel.exchange(i == parts - 1, objective):
                with self.precision.autocast():
                    loss, metrics = self.parallel.forward(part, t, objective)
                scaled = loss / parts if parts > 1 else loss
                if self.precision.scaler is not None:
                    scaled = self.precision.scaler.scale(scaled)
                scaled.backward()
            for name, value in {"loss": loss.detach(), **metrics}.items():
                sums[name] = sums[name] + value if name in sums else value
        return {name: value / parts for name, value in sums.items()} if parts > 1 else sums
