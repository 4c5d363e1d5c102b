"""The one door to training: on this process, or on as many as the configuration asks for."""

from __future__ import annotations

import os
from pathlib import Path

from imprint.core.progress import Duration
from imprint.data.sources import Source
from imprint.dist.launch import launch
from imprint.dist.world import ranks_of
from imprint.train.config import RunConfig
from imprint.train.loop import train
from imprint.train.run import Run


def pretrain_run(
    config: RunConfig | None,
    out: str | Path,
    resume: bool = False,
    extend: Duration | None = None,
    *,
    source: Source | None = None,
) -> Run:
    """Train and return the run; see `train.loop.train` for arguments and errors.

    `config.devices` processes are started on this machine, unless torchrun or Slurm already started this one as one of
    several.

    Raises:
        ImprintError: whatever stopped the training, in this process or another.
    """
    folder = Path(out).expanduser()
    devices = (config if config is not None else Run.open(folder).config).devices
    if devices == 1 and ranks_of(os.environ) is None:
        return train(config, folder, resume=resume, extend=extend, source=source)
    launch(_worker, (config, folder, resume, extend, source), devices)
    return Run.open(folder)


def _worker(config: RunConfig | None, out: Path, resume: bool, extend: Duration | None, source: Source | None) -> None:
    train(config, out, resume=resume, extend=extend, source=source)
