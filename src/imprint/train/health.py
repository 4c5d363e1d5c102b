"""Is the run still making sense? Non-finite numbers stop it and say where they began."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from imprint.core.errors import HealthError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.dist.collectives import any_process, gather_objects
from imprint.dist.world import World
from imprint.train.precision import Precision

if TYPE_CHECKING:
    from imprint.train.step import Stepper

SMALLEST_SCALE = 2.0**-10
"""fp16 loss scale below which the run counts as diverged: every step overflows, whatever the scale."""


NOT_AGAIN = "it did not show again when the step was repeated (a race, or a hardware fault)."


class FiniteGuard:
    """Checks loss and gradients of every step without making a GPU's host wait.

    On the CPU, and with optimizers that cannot skip an update by themselves, the check is made before the update. On
    CUDA a fused optimizer reads the flag on the device and skips a bad update; the host reads it one step later. Either
    way the weights are those from before the bad step, so the search for the culprit sees what happened.

    With fp16 loss scaling, overflowing gradients are part of the game (the scaler skips those steps): then only the
    loss counts, and a scale that has collapsed.
    """

    def __init__(self, method: nn.Module, optimizer: torch.optim.Optimizer, world: World, precision: Precision) -> None:
        self.last_good: Callable[[], str] = lambda: "There is no checkpoint yet."
        self.method, self.optimizer, self.world, self.precision = method, optimizer, world, precision
        self._late = (
            world.device.type == "cuda" and precision.scaler is None and optimizer.defaults.get("fused") is True
        )
        self._pending: tuple[Tensor, torch.cuda.Event, Batch, Progress, Stepper, str] | None = None

    def inspect(
        self, loss: Tensor, norm: Tensor, batch: Batch, t: Progress, stepper: Stepper, objective: str = ""
    ) -> None:
        """Check one step's loss and gradient norm before its update.

        Raises:
            HealthError: naming step, module and what to try.
        """
        watched = loss.float() if self.precision.scaler is not None else loss.float() + norm * 0
        bad = (~torch.isfinite(watched)).float()
        if self.world.distributed:  # all processes must stop together
            torch_dist.all_reduce(bad, op=torch_dist.ReduceOp.MAX)
        if not self._late:
            if bool(bad.item()):
                raise self._error(batch, t, stepper, objective)
            return
        self.settle()
        self.optimizer.found_inf = bad.reshape(())  # type: ignore[attr-defined]  # read by the fused kernels
        host = torch.empty((), pin_memory=True)
        host.copy_(bad.reshape(()), non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending = (host, event, batch, t, stepper, objective)

    def settle(self) -> None:
        """Look at the flag that is still on its way; to be called before anything is kept (a checkpoint).

        Raises:
            HealthError: when the last step was bad.
        """
        if self.precision.scaler is not None and self.precision.scaler.get_scale() < SMALLEST_SCALE:
            raise HealthError(
                f"the fp16 loss scale fell to {self.precision.scaler.get_scale():g}: gradients overflow at every step. "
                "Try --precision bf16 or fp32, a lower learning rate, or gradient clipping (--optim.clip 3)."
            )
        if self._pending is None:
            return
        host, event, batch, t, stepper, objective = self._pending
        self._pending = None
        event.synchronize()
        if bool(host.item()):
            raise self._error(batch, t, stepper, objective)

    def _error(self, batch: Batch, t: Progress, stepper: Stepper, objective: str) -> HealthError:
        # One process may know more than the others: the first that found something speaks for all.
        told = gather_objects(locate(stepper, batch, t, objective))
        where = next((text for text in told if text != NOT_AGAIN), NOT_AGAIN)
        return HealthError(
            f"loss or gradients became non-finite at step {t.step} (epoch {t.epoch}): {where} {self.last_good()} "
            "Try a lower learning rate (--optim.lr.base), a longer warm-up, gradient clipping (--optim.clip 3), or "
            "--precision fp32."
        )


def locate(stepper: Stepper, batch: Batch, t: Progress, objective: str = "") -> str:
    """Repeat a bad step's forward and backward with every module watched; return a sentence on where it began.

    Several processes keep in step with each other (a forward may hold collectives) and leave out the backward.
    """
    method = stepper.method
    for name, value in method.named_parameters():  # not buffers: the bad forward has already moved those
        if not bool(torch.isfinite(value).all()):
            return f"the weight '{name}' was non-finite before the step."
    stepper.seed(t)
    stepper.optimizer.zero_grad(set_to_none=True)
    parts, size = stepper.config.accumulate, len(batch) // stepper.config.accumulate
    for i in range(parts):
        prepared = stepper.prepared(batch.part(i * size, (i + 1) * size))
        with watched(method) as found, torch.enable_grad():
            with stepper.precision.autocast():
                output = method(prepared, t, objective) if objective else method(prepared, t)
        text = _forward_finding(method, prepared, found, output.loss)
        if any_process(text is not None):
            return text or NOT_AGAIN
        if stepper.world.distributed:
            continue
        output.loss.backward()
    culprits = [
        name
        for name, parameter in method.named_parameters()
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
    ]
    if culprits:
        more = f" and {len(culprits) - 1} more" if len(culprits) > 1 else ""
        return f"forward and loss are finite, the gradient of '{culprits[-1]}'{more} is not: it began in backward."
    if stepper.world.distributed:
        return "forward and loss are finite: it began in backward."
    return NOT_AGAIN


def _forward_finding(method: nn.Module, prepared: Batch, found: list[str], loss: Tensor) -> str | None:
    for name, view in prepared.views.items():
        if not bool(torch.isfinite(view).all()):
            return f"the images of view '{name}' are non-finite; check data.mean and data.std."
    if found:
        return f"it began in the forward of module '{found[0]}'."
    if not bool(torch.isfinite(loss)):
        for name, value in method.named_buffers():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                return f"the outputs of all modules are finite, the buffer '{name}' is not."
        return "the outputs of all modules are finite, the loss is not; look at temperatures and norms close to zero."
    return None


@contextmanager
def watched(module: nn.Module) -> Iterator[list[str]]:
    """Yield a list that names the modules with non-finite outputs, in the order in which they ran."""
    found: list[str] = []

    def hook_of(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if any(not bool(torch.isfinite(x).all()) for x in _floats(output)):
                found.append(name)

        return hook

    hooks = [child.register_forward_hook(hook_of(name)) for name, child in module.named_modules() if name]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _floats(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value.detach()
    elif isinstance(value, dict):
        for item in value.values():
            yield from _floats(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _floats(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _floats(getattr(value, name))
