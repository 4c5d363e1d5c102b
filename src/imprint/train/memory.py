"""Out of memory: find the micro-batch that fits, and say so."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import torch

from imprint.core.errors import ConfigError, ImprintError
from imprint.core.progress import Progress
from imprint.data.batch import Batch

if TYPE_CHECKING:
    from imprint.train.step import Stepper


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on a device or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_cpu")
    )


def out_of_memory(stepper: Stepper, batch: Batch, t: Progress) -> ConfigError:
    """Build the error: what ran out, and batch size and accumulation that fit.

    A process alone tries: it halves the micro-batch until forward and backward pass. Several processes cannot (the
    others are inside a collective), so they are told the next halving.
    """
    config, world = stepper.config, stepper.world
    rows = len(batch) // config.accumulate
    where = "the GPU" if world.device.type != "cpu" else "this machine"
    message = (
        f"out of memory at step {t.step}: {rows} images per forward pass (batch size {config.batch_size}, "
        f"{world.size} processes, accumulate {config.accumulate}) do not fit {where}. "
    )
    release(stepper)
    fits = rows // 2 if world.distributed else largest_that_fits(stepper, batch, t, rows)
    if fits == 0:
        return ConfigError(message + "Not even one image does: use a smaller encoder or --image-size.")
    accumulate = -(-len(batch) // fits)
    verb = "try" if world.distributed else "this fits:"
    same = f"--batch-size {config.batch_size} --accumulate {accumulate}"
    small = f"--batch-size {fits * world.size} --accumulate 1"
    return ConfigError(
        f"{message}With the same batch per step, {verb} {same} (losses that compare images within a pass then compare "
        f"fewer); as a smaller batch, {small}."
    )


def largest_that_fits(stepper: Stepper, batch: Batch, t: Progress, rows: int) -> int:
    """Return the largest divisor of the batch below `rows` whose forward and backward pass fit; 0 when none does."""
    for size in (n for n in range(rows - 1, 0, -1) if len(batch) % n == 0 and n <= rows // 2):
        part = stepper.prepared(batch.part(0, size))
        try:
            with stepper.precision.autocast():
                loss, _ = stepper.parallel.forward(part, t, (stepper.method.objectives or ("",))[-1])
            loss.backward()
        except ImprintError:  # the method refuses so few images (a queue or groups of norms that they do not divide)
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            del part
            release(stepper)
            continue
        release(stepper)
        return size
    return 0


def release(stepper: Stepper) -> None:
    """Drop gradients and cached blocks."""
    stepper.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if stepper.world.device.type == "cuda":
        torch.cuda.empty_cache()
