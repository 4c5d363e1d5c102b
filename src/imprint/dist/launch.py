"""Start several processes on this machine, or take part in those that torchrun or Slurm started."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from imprint.core import errors
from imprint.core.errors import ConfigError, ImprintError, Preempted
from imprint.dist.world import RENDEZVOUS, ranks_of, shutdown

GRACE = 60.0
"""Seconds that the other processes get to leave by themselves after one was asked to stop."""
HANGING = 2.0
"""Seconds after which the others are killed when one has failed: they wait for it inside a collective."""

Processes = Sequence["subprocess.Popen[bytes]"]


def launch(fn: Callable[..., object], args: tuple[Any, ...], devices: int) -> None:
    """Run `fn(*args)` in `devices` processes of this machine, or here when torchrun or Slurm already started them.

    The processes are fresh interpreters, so this works from scripts without a `__main__` guard and from notebooks. They
    meet through a file in a private temporary folder and talk over the loopback interface; nothing is open to the
    network. `fn` must be a module's function, importable by name.

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
        (Path(folder) / "task").write_bytes(pickle.dumps((fn, args)))
        processes: list[subprocess.Popen[bytes]] = []
        with _signals_passed_on(processes) as received:
            for rank in range(devices):
                command = [sys.executable, "-m", "imprint.dist.launch", folder]
                processes.append(subprocess.Popen(command, env=_environment(rank, devices, folder)))
            ended = _wait(processes)
        failure = _first_error(Path(folder), processes, ended)
    if failure is not None and received and type(failure) is ImprintError:
        raise Preempted("stopped before training had begun.")
    if failure is not None:
        raise failure


def _environment(rank: int, size: int, folder: str) -> dict[str, str]:
    own = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    env = {**os.environ, **{name: str(value) for name, value in own.items()}}
    env["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    env[RENDEZVOUS] = (Path(folder) / "rendezvous").as_uri()
    env.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    return env


def _child(folder: str) -> None:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or size) // size))
    try:
        fn, args = pickle.loads((Path(folder) / "task").read_bytes())  # written by our own parent, private folder
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


def _wait(processes: Processes) -> set[int]:
    """Wait for all; return the ranks that had to be killed here."""
    ended: set[int] = set()
    deadline: float | None = None
    while any(p.poll() is None for p in processes):
        time.sleep(0.02)
        failed = [p for p in processes if p.returncode not in (None, 0)]
        if failed and deadline is None:
            asked = all(p.returncode == Preempted.exit_code for p in failed)
            deadline = time.monotonic() + (GRACE if asked else HANGING)
        if deadline is not None and time.monotonic() > deadline:
            for rank, process in enumerate(processes):
                if process.poll() is None:
                    process.kill()
                    ended.add(rank)
    return ended


def _first_error(folder: Path, processes: Processes, ended: set[int]) -> ImprintError | None:
    records = [
        (json.loads(path.read_text(encoding="utf-8")), path.stem.rpartition("-")[2])
        for path in folder.glob("error-*.json")
    ]
    records.sort(key=lambda item: float(item[0]["time"]))
    # A process that fails breaks the collectives of the others, whose errors then say little: what was raised on
    # purpose comes first, then a death by a signal that is not ours, then any other error.
    for record, _ in records:
        kind = getattr(errors, record["kind"], None) if record["kind"] else None
        if kind is not None:
            failure: ImprintError = ImprintError.__new__(kind)
            ImprintError.__init__(failure, record["message"])
            return failure
    for rank, process in enumerate(processes):
        if process.returncode < 0 and rank not in ended:
            return ImprintError(
                f"process {rank} of {len(processes)} was killed by {signal.Signals(-process.returncode).name} (SIGKILL "
                "is often the system running out of memory). Continue with: imprint pretrain --resume RUN"
            )
    for record, rank_text in records:
        return ImprintError(f"process {rank_text} of {len(processes)} failed:\n{record['message']}")
    for rank, process in enumerate(processes):
        if process.returncode:
            return ImprintError(f"process {rank} of {len(processes)} left with code {process.returncode}.")
    return None


@contextlib.contextmanager
def _signals_passed_on(processes: Processes) -> Iterator[list[int]]:
    """Pass SIGTERM and Ctrl-C on, and wait; a child that got Ctrl-C from the terminal as well takes it once."""
    received: list[int] = []

    def forward(number: int, frame: object) -> None:
        received.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    try:
        before = {s: signal.signal(s, forward) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: no handlers can be set, and none is needed
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    _child(sys.argv[1])
