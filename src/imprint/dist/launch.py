"""Start several processes on this machine, or take part in those that torchrun or Slurm started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from imprint.core import errors
from imprint.core.errors import ConfigError, ImprintError, Preempted
from imprint.dist.world import RENDEZVOUS, ranks_of, shutdown

GRACE = 60.0
"""Seconds that the other processes get to leave by themselves after one has failed or been asked to stop."""


def launch(fn: Callable[..., object], args: tuple[Any, ...], devices: int) -> None:
    """Run `fn(*args)` in `devices` processes of this machine, or here when torchrun or Slurm already started them.

    The processes meet through a file in a temporary folder and talk over the loopback interface, so no port is asked
    for and nothing is open to the network. `fn` must be importable by name (a module's function).

    Raises:
        ImprintError: the first error of any process, of its own class where it was raised on purpose.
        ConfigError: for fewer than one process.
    """
    if devices < 1:
        raise ConfigError(f"--devices must be at least 1, got {devices}.")
    if devices == 1 or ranks_of(os.environ) is not None:
        try:
            fn(*args)
        finally:
            shutdown()
        return
    with tempfile.TemporaryDirectory(prefix="imprint-") as folder:
        context = multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=_child, args=(rank, devices, folder, fn, args), name=f"imprint-{rank}")
            for rank in range(devices)
        ]
        with _signals_passed_on(processes):
            for process in processes:
                process.start()
            _wait(processes)
        failure = _first_error(Path(folder), processes)
    if failure is not None:
        raise failure


def _child(rank: int, size: int, folder: str, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size))
    os.environ[RENDEZVOUS] = (Path(folder) / "rendezvous").as_uri()
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or size) // size))
    try:
        fn(*args)
    except ImprintError as error:
        _record(folder, rank, type(error).__name__, str(error))
        _leave(error.exit_code)
    except BaseException:  # the parent must learn of KeyboardInterrupt and SystemExit, too
        _record(folder, rank, "", traceback.format_exc())
        _leave(1)
    shutdown()


def _leave(code: int) -> None:
    # Destroying a group whose other members are stuck in a collective can hang: leave without it.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _record(folder: str, rank: int, kind: str, message: str) -> None:
    target = Path(folder) / f"error-{rank}.json"
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps({"time": time.time(), "kind": kind, "message": message}), encoding="utf-8")
    temporary.replace(target)


def _wait(processes: list[Any]) -> None:
    """Wait for all; when one fails the others get a grace period, since they may hang in a collective with it."""
    deadline: float | None = None
    while any(p.is_alive() for p in processes):
        for process in processes:
            process.join(timeout=0.05)
        failed = [p for p in processes if p.exitcode not in (None, 0)]
        if failed and deadline is None:
            grace = GRACE if all(p.exitcode == Preempted.exit_code for p in failed) else 2.0
            deadline = time.monotonic() + grace
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                if process.is_alive():
                    process.kill()


def _first_error(folder: Path, processes: list[Any]) -> ImprintError | None:
    records = [
        (json.loads(path.read_text(encoding="utf-8")), path.stem.rpartition("-")[2])
        for path in folder.glob("error-*.json")
    ]
    # A process that fails breaks the collectives of the others; what was raised on purpose explains more than that.
    for record, rank in sorted(records, key=lambda item: (not item[0]["kind"], item[0]["time"])):
        kind = getattr(errors, record["kind"], None) if record["kind"] else None
        if kind is not None:
            failure: ImprintError = ImprintError.__new__(kind)
            ImprintError.__init__(failure, record["message"])
            return failure
        return ImprintError(f"process {rank} of {len(processes)} failed:\n{record['message']}")
    for rank, process in enumerate(processes):
        if process.exitcode not in (None, 0):
            how = (
                f"was killed by signal {-process.exitcode} ({signal.Signals(-process.exitcode).name}; "
                "SIGKILL is often the system running out of memory)"
                if process.exitcode is not None and process.exitcode < 0
                else f"left with code {process.exitcode}"
            )
            return ImprintError(f"process {rank} of {len(processes)} {how}. Continue with: imprint pretrain --resume RUN")
    return None


@contextlib.contextmanager
def _signals_passed_on(processes: list[Any]) -> Iterator[None]:
    """Pass SIGTERM on; Ctrl-C reaches the children by itself (same terminal), so this process only waits for them."""

    def forward(number: int, frame: object) -> None:
        for process in processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGTERM)

    try:
        before = {s: signal.signal(s, forward) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: no handlers can be set, and none is needed
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
