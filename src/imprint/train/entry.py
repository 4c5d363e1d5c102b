"""The one door to training: on this process or on as many as asked for, one run or several stages of one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from imprint.core.errors import ConfigError
from imprint.core.progress import Duration
from imprint.core.stages import is_staged, stage_folder
from imprint.data.sources import Source
from imprint.dist.collectives import barrier, broadcast_object
from imprint.dist.launch import launch
from imprint.dist.world import current, init_from_env, ranks_of
from imprint.train.config import RunConfig
from imprint.train.loop import train
from imprint.train.run import Run, read_stages, write_stages
from imprint.train.stages import Stages, check_stages, leave_encoder, state_of

Plan = RunConfig | Stages


def pretrain_run(
    config: Plan | None,
    out: str | Path,
    resume: bool = False,
    extend: Duration | None = None,
    *,
    source: Source | None = None,
) -> Run:
    """Train and return the run; see `train.loop.train` for arguments and errors.

    `config.devices` processes are started on this machine, unless torchrun or Slurm already started this one as one of
    several. A tuple of configurations is a run of several stages, in order; its last one is returned. Resuming goes on
    at the first stage that is not finished, and `extend` lengthens the last.

    Raises:
        ImprintError: whatever stopped the training, in this process or another.
    """
    folder = Path(out).expanduser()
    if isinstance(config, tuple) or (config is None and is_staged(folder)):
        if ranks_of(os.environ) is None:
            _stages(pretrain_run, config, folder, resume, extend, source)
        else:
            launch(_stages_worker, (config, folder, resume, extend, source), 1)
        return Run.open(folder)
    devices = (config if config is not None else Run.open(folder).config).devices
    if devices == 1 and ranks_of(os.environ) is None:
        return train(config, folder, resume=resume, extend=extend, source=source)
    launch(_worker, (config, folder, resume, extend, source), devices)
    return Run.open(folder)


def _worker(config: RunConfig | None, out: Path, resume: bool, extend: Duration | None, source: Source | None) -> None:
    train(config, out, resume=resume, extend=extend, source=source)


def _stages_worker(
    stages: Stages | None, out: Path, resume: bool, extend: Duration | None, source: Source | None
) -> None:
    """All stages in processes that torchrun or Slurm started: they stay together from the first to the last."""
    init_from_env((stages or read_stages(out))[0].device)
    _stages(train, stages, out, resume, extend, source)


def _stages(
    one: Callable[..., Run],
    stages: Stages | None,
    folder: Path,
    resume: bool,
    extend: Duration | None,
    source: Source | None,
) -> None:
    """Run one stage after the other with `one`; every process decides alike, by what the main one sees."""
    main = current().main
    resume = resume or extend is not None
    taken = broadcast_object(main and (is_staged(folder) or (folder / "config.json").exists()))
    if not resume:
        if taken:
            raise ConfigError(
                f"{folder} already holds a run. Continue it with: imprint pretrain --resume {folder}, or choose "
                "another --out."
            )
        assert stages is not None
        check_stages(stages, folder, source)
        if main:
            write_stages(folder, stages)
        barrier()
    stages = read_stages(folder)
    own = folder
    for number, stage in enumerate(stages, 1):
        own, last = stage_folder(folder, number), number == len(stages)
        state = broadcast_object(state_of(own) if main else "")
        if state == "finished" and (extend is None or not last):
            continue
        if extend is not None and state != "finished":
            raise ConfigError(
                f"{folder} stands at stage {number} of {len(stages)}; finish it first (imprint pretrain --resume "
                f"{folder}), then extend it."
            )
        if main:
            print(f"stage {number} of {len(stages)}: {stage.stage or stage.name} ({own})", file=sys.stderr, flush=True)
        new = state == "new"
        one(stage if new else None, own, resume=not new, extend=extend if last else None, source=source)
    if main:
        leave_encoder(folder, own)
    barrier()
