"""The story of a training run, from an empty folder to an encoder. The order of events is the order of the lines."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from imprint.backbones.layer_decay import layer_scales
from imprint.backbones.stored import save_encoder
from imprint.core.errors import DataError, Preempted
from imprint.core.progress import Duration, Progress, Steps
from imprint.core.rng import seed_of
from imprint.core.stages import home
from imprint.data.labelled import labelled_part, write_names
from imprint.data.loader import Loader
from imprint.data.sources import Source
from imprint.dist.collectives import barrier, broadcast_object
from imprint.dist.world import init_from_env
from imprint.methods.catalog import method_class, row
from imprint.train.allocator import keep_freed_memory
from imprint.train.begin import begin, extended, require_divisible
from imprint.train.budget import fitted, measure
from imprint.train.build import build, fit
from imprint.train.checkpoint import Checkpoint, Checkpoints, disk_full_explained
from imprint.train.collapse import CollapseMonitor
from imprint.train.config import RunConfig
from imprint.train.images import as_clips, open_images
from imprint.train.memory import is_out_of_memory, out_of_memory
from imprint.train.optim import build_optimizer
from imprint.train.parallel import compile_encoders, synchronise_norms
from imprint.train.precision import (
    choose_precision,
    gains_from_channels_last,
    set_numerics,
    steady_convolutions,
    to_channels_last,
)
from imprint.train.probe import online_probe
from imprint.train.pseudo_labels import with_pseudo_labels
from imprint.train.recompute import recompute_activations
from imprint.train.run import Run, write_config
from imprint.train.runlog import RunLog
from imprint.train.samples import write_reconstructions, write_views
from imprint.train.signals import StopRequest
from imprint.train.stages import inherit, with_classes
from imprint.train.state import restore, snapshot, tensors_of
from imprint.train.step import Stepper
from imprint.train.teacher_cache import keep_answers
from imprint.train.text_samples import write_continuations
from imprint.train.texts import read_texts


def train(
    config: RunConfig | None,
    out: str | Path,
    *,
    resume: bool = False,
    extend: Duration | None = None,
    source: Source | None = None,
) -> Run:
    """Train on this process (every process of a distributed run calls it) and return the finished run.

    Args:
        config: what to do; None when resuming, since the run folder knows.
        out: the run folder.
        resume: go on from the newest whole checkpoint; the weights end as if the run had never stopped.
        extend: train a finished run this much further; schedules then run over the whole new length.
        source: training images that no SRC string names (arrays in memory), instead of `config.data.train`.

    Raises:
        ConfigError: for what cannot work, and for running out of memory (with sizes that fit).
        DataError: when too many samples are damaged.
        CheckpointError: for a full disk (the last checkpoint stays whole) or damaged checkpoints.
        HealthError: when loss or gradients stop being finite.
        Preempted: after SIGTERM or Ctrl-C, with a checkpoint written.
    """
    began = time.perf_counter()
    folder = Path(out).expanduser()

    # Where: processes, device, folder.
    wanted = config if config is not None else Run.open(folder).config
    world = init_from_env(wanted.device)
    require_divisible(wanted, world)
    set_numerics(world.device)
    if world.device.type == "cpu":
        keep_freed_memory()
    start = begin(config, folder, world, resume=resume or extend is not None)
    plan, checkpoint = start.config, start.checkpoint

    # What: images, encoder, method.
    cls = method_class(plan.name)
    plan, whole = open_images(plan, world, source)
    images, known = labelled_part(whole, plan.data.labelled, folder)
    images = as_clips(plan, images)
    plan, reading = read_texts(plan, images, folder, world)
    images = images if reading is None else reading.rows
    if cls.needs_labels and images.labels is None:
        raise DataError(f"{plan.name} learns from labels, and '{images.spec}' has none: use one folder per class.")
    if cls.needs_labels and len(images.classes) == 1:
        raise DataError(f"{plan.name} learns to tell classes apart, and '{images.spec}' has one class only.")
    plan = with_classes(plan, images, folder)
    images = with_pseudo_labels(plan, whole, images, folder, world, begun=checkpoint is not None)
    torch.manual_seed(seed_of(plan.seed, "weights"))
    method, loader = build(plan, images, folder, world, None if reading is None else reading.tokenizer)
    inherit(method, plan, folder)
    if checkpoint is None:
        fit(method, images, plan)
    clock = clock_of(plan, loader, checkpoint)
    if extend is not None:
        plan = extended(plan, clock.step, clock, extend)
        clock = clock_of(plan, loader, checkpoint)

    # How: number formats, synchronised norms, compilation, optimizer.
    precision = choose_precision(plan.precision, world.device, plan.channels_last, gains_from_channels_last(method))
    method.to(world.device).train()
    if precision.channels_last:
        to_channels_last(method)
    if world.device.type == "cpu":
        steady_convolutions(method)
    synchronise_norms(method, world)
    if plan.checkpoint_activations:
        recompute_activations(method)
    if plan.compile:
        compile_encoders(method)
    optimizer = build_optimizer(
        method.param_groups(),
        plan.optim,
        world.device,
        scales=layer_scales(method, plan.optim.layer_decay) if plan.optim.layer_decay != 1.0 else None,
        shard=(world.rank, world.size) if plan.shard == "optimizer" else None,
    )
    stepper = Stepper(plan, method, optimizer, world, precision)
    keep_answers(stepper, loader, folder)
    probe = online_probe(plan, whole, reading, world) if plan.probe_every is not None and world.main else None
    warmup_steps = min(clock.steps_per_epoch, clock.total_steps // 10)
    monitor = CollapseMonitor(warmup_steps, row(plan.name).family, cls.dangers(plan.method))
    sizes = {"prototypes": int(getattr(plan.method, "prototypes", 0))}
    keeper = Checkpoints(folder / "checkpoints", plan.keep)
    stepper.guard.last_good = keeper.last_words

    # Resume: everything that changes during training is in the checkpoint or a function of the step.
    state: dict[str, Any] = checkpoint.state if checkpoint is not None else {}
    if checkpoint is not None:
        restore(checkpoint, stepper)
        if state.get("stream") is not None:
            loader.sampler.resume(state["stream"])
    best: float | None = state.get("best")
    log = RunLog(folder, world, clock=clock, elapsed=state.get("elapsed", 0.0))
    log.restore_window(state.get("window", {}))
    warmup = plan.optim.lr.warmup
    if plan.budget is None and checkpoint is None and clock.steps(warmup) >= clock.total_steps:
        log.event(clock, f"the warm-up ({warmup}) fills the whole run; shorten --optim.lr.warmup", kind="warning")
    for note in (*start.notes, *(reading.notes if reading is not None and checkpoint is None else ())):
        log.event(clock, note, kind="warning")
    if world.main:
        write_config(folder / "config.json", plan)
        if known is not None:
            write_names(folder / "labelled.txt", whole, known)
    if extend is not None:
        log.event(clock, "extended", by=str(extend), total_steps=clock.total_steps)
    elif checkpoint is not None:
        log.event(clock, "resumed", total_steps=clock.total_steps)

    def look(t: Progress) -> bool:
        """Probe the encoder at `t`; True when it is the best so far. The others wait for the main process."""
        nonlocal best
        improved = False
        if probe is not None:
            values = probe.judge(method)
            log.values(t, values)
            for text in monitor.look(t.step, values, {**sizes, "rank": probe.rank_bound}):
                log.event(t, text, kind="warning")
            score = values.get(probe.main) if probe.main is not None else None
            improved = score is not None and t.step > 0 and (best is None or score > best)
            best = score if improved else best
        return broadcast_object(improved)

    def keep(t: Progress, *, is_best: bool = False) -> None:
        """Write a checkpoint, after making sure that the last step was a good one."""
        stepper.guard.settle()
        tensors = tensors_of(stepper)
        if world.main:
            rest = snapshot(plan, stepper, log, t, best) | {"stream": loader.sampler.state(t.step)}
            keeper.save(t.step, tensors, rest, best=is_best)
        barrier()

    batch = None
    try:
        with disk_full_explained(home(folder), keeper), StopRequest() as stop:
            # Before the first step: what the encoder is worth untrained, and how many steps the budget holds.
            if clock.step == 0:
                probe_began = time.perf_counter()
                if plan.probe_every is not None:
                    look(clock)
                probe_seconds = time.perf_counter() - probe_began
                if plan.budget is not None:
                    plan, clock = budgeted(plan, stepper, loader, clock, began, probe_seconds, log)
                    if world.main:
                        write_config(folder / "config.json", plan)
                if world.main:
                    write_views(folder, next(iter(loader.batches(0, 1))))

            # The loop.
            batches = iter(loader.batches(clock.step, clock.total_steps))
            for step in range(clock.step, clock.total_steps):
                t, done = clock.at(step), clock.at(step + 1)
                with log.waiting():
                    batch = next(batches, None)
                if batch is None:  # a stream that ended
                    break
                log.add(stepper(batch, t), plan.batch_size)
                last = done.step == loader.last_step(clock.total_steps)
                if last or done.step % plan.log_every == 0:
                    line = log.write(done, {"lr": stepper.lr(t), "wd": stepper.weight_decay(t)})
                    for text in monitor.look(done.step, line, sizes):
                        log.event(done, text, kind="warning")
                improved = False
                if plan.probe_every is not None and (last or done.every(plan.probe_every)):
                    with log.aside():
                        improved = look(done)
                stopping = not last and stop.anywhere()
                if last or stopping or improved or done.every(plan.checkpoint_every):
                    with log.aside():
                        keep(done, is_best=improved)
                if stopping:
                    log.event(done, f"stopped by {stop.received or 'another process'}")
                    raise Preempted(
                        f"stopped at step {done.step} of {done.total_steps} with a checkpoint. "
                        f"Continue with: imprint pretrain --resume {home(folder)}"
                    )

            # The end: what the run leaves behind.
            end = clock.at(loader.last_step(clock.total_steps))
            if end.step < clock.total_steps:
                log.event(
                    end, f"the stream ended here, before the run's length of {clock.total_steps} steps", kind="warning"
                )
            if world.main:
                write_reconstructions(folder, stepper, next(iter(loader.batches(0, 1))), end)
                write_continuations(folder, method, reading)
                save_encoder(
                    method.encoder,
                    folder,
                    mean=plan.data.mean,
                    std=plan.data.std,
                    provenance={"method": plan.name, "recipe": plan.recipe, "steps": end.step, "seed": plan.seed},
                )
                log.event(end, "finished", seconds=round(log.elapsed, 3))
            barrier()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(stepper, batch or next(iter(loader.batches(0, 1))), clock) from error
    finally:
        log.close()
        loader.close()
    return Run(folder, plan)


def clock_of(config: RunConfig, loader: Loader, checkpoint: Checkpoint | None) -> Progress:
    """Return where the run stands, and how long it is."""
    spe = loader.steps_per_epoch or (config.length.n if isinstance(config.length, Steps) else 1)  # a stream is one pass
    total = max(1, Progress(0, 0, spe).steps(config.length))
    return Progress(min(total, checkpoint.step) if checkpoint is not None else 0, total, spe)


def budgeted(
    config: RunConfig,
    stepper: Stepper,
    loader: Loader,
    clock: Progress,
    began: float,
    probe_seconds: float,
    log: RunLog,
) -> tuple[RunConfig, Progress]:
    """Fix the number of steps so that the run ends `config.budget` seconds after `began`."""
    budget = config.budget or 0.0
    step_seconds = measure(stepper, loader.batches(0), clock, budget)
    spent = broadcast_object(time.perf_counter() - began)
    config = fitted(
        config,
        clock,
        budget=budget,
        spent=spent,
        step_seconds=step_seconds,
        probe_seconds=broadcast_object(probe_seconds),
    )
    stepper.reschedule(config)
    fixed = clock_of(config, loader, None)
    log.begin_at(fixed)
    log.event(fixed, f"{step_seconds:.3f} s a step: {fixed.total_steps} steps fit the budget of {budget:.0f} s")
    return config, fixed
