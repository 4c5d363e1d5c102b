"""Which process this is among those that train together, and on which device it works."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as torch_dist

from imprint.core.errors import ConfigError

RENDEZVOUS = "IMPRINT_RENDEZVOUS"
"""Environment variable with the init method of processes started by `launch`."""


@dataclass(frozen=True)
class World:
    """One process's place.

    Attributes:
        rank: number of this process, from 0.
        size: how many processes train together.
        local_rank: number of this process on its machine.
        device: where it computes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = torch.device("cpu")

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    @property
    def distributed(self) -> bool:
        """Whether other processes take part."""
        return self.size > 1


@dataclass(frozen=True)
class Ranks:
    """What an environment says about this process and where the processes meet."""

    rank: int
    size: int
    local_rank: int
    init_method: str


_current = World()


def current() -> World:
    """Return this process's place; rank 0 of 1 on the CPU until `init_from_env` was called."""
    return _current


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `mps` into a device; `auto` takes the first of cuda, mps, cpu that is there.

    Raises:
        ConfigError: for a device that this machine or this build of torch lacks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("device cuda: torch sees no CUDA GPU here. Use --device cpu, or a CUDA build of torch.")
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise ConfigError(f"process {local_rank} finds only {count} CUDA GPUs; lower --devices to {count}.")
        return torch.device("cuda", local_rank)
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device mps: torch sees no Apple GPU here. Use --device cpu.")
    return torch.device(name)


def ranks_of(env: Mapping[str, str]) -> Ranks | None:
    """Read torchrun's or Slurm's description of this process, or None when it was started alone.

    torchrun (and `launch`) set RANK, WORLD_SIZE and LOCAL_RANK. Slurm counts only inside a step of several tasks
    (`srun`): the shell of a batch script also carries SLURM_PROCID and must not wait for peers that never come.

    Raises:
        ConfigError: for half of a description.
    """
    if "RANK" in env or "WORLD_SIZE" in env:
        try:
            rank, size = int(env["RANK"]), int(env["WORLD_SIZE"])
            local = int(env.get("LOCAL_RANK", rank))
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"RANK, WORLD_SIZE and LOCAL_RANK do not describe a process ({error}). Start with torchrun, "
                "or unset RANK and WORLD_SIZE to run alone."
            ) from None
        if not 0 <= rank < size:
            raise ConfigError(f"RANK {rank} is outside WORLD_SIZE {size}.")
        return Ranks(rank, size, local, env.get(RENDEZVOUS, "env://"))
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in env:
        host = env.get("MASTER_ADDR") or first_host(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", ""))
        port = env.get("MASTER_PORT") or str(20000 + int(env.get("SLURM_JOB_ID", "0")) % 20000)
        return Ranks(
            int(env["SLURM_PROCID"]),
            int(env["SLURM_STEP_NUM_TASKS"]),
            int(env.get("SLURM_LOCALID", "0")),
            f"tcp://{host or '127.0.0.1'}:{port}",
        )
    return None


def first_host(nodelist: str) -> str:
    """Return the first host of a Slurm node list: `gpu[03-05,9],cpu1` gives `gpu03`."""
    match = re.match(r"([^\[,]*)(?:\[([^\],-]+)[^\]]*\])?([^,]*)", nodelist)
    if match is None:
        return nodelist
    head, number, tail = match.groups()
    return f"{head}{number or ''}{tail}"


def init_from_env(device: str = "auto", *, env: Mapping[str, str] | None = None) -> World:
    """Join the other processes that the environment names and remember this process's place.

    CPU tensors travel over gloo, CUDA tensors over NCCL. Alone, only the device is settled. Calling it again in a
    running group returns the same place.

    Raises:
        ConfigError: for a device that is missing, or when the processes do not meet.
    """
    global _current
    if torch_dist.is_initialized():
        return _current
    ranks = ranks_of(os.environ if env is None else env)
    if ranks is None or ranks.size == 1:
        _current = World(device=pick_device(device))
        return _current
    where = pick_device(device, ranks.local_rank)
    if where.type == "mps":
        raise ConfigError("several processes cannot share an Apple GPU; use --devices 1, or --device cpu.")
    backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
    if where.type == "cuda":
        torch.cuda.set_device(where)
    try:
        torch_dist.init_process_group(
            backend,
            init_method=ranks.init_method,
            rank=ranks.rank,
            world_size=ranks.size,
            timeout=datetime.timedelta(minutes=30),
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"process {ranks.rank} of {ranks.size} could not meet the others at {ranks.init_method}: {error}"
        ) from error
    _current = World(ranks.rank, ranks.size, ranks.local_rank, where)
    return _current


def shutdown() -> None:
    """Leave the group; the process is alone afterwards."""
    global _current
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()
    _current = World(device=_current.device)
