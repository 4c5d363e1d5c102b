"""Time and memory of a call in a fresh process, the machine's class, and result files.

    from measure import Measurement, machine, measure, rival_module, write_results

`measure` starts a new interpreter per figure, so no allocator, cache or thread pool is shared between rivals.
Memory is the growth of the resident set's peak over its level after the inputs exist, sampled and by the kernel's mark.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
_MARK = "MEASURED:"


@dataclass(frozen=True)
class Measurement:
    """One figure.

    Attributes:
        seconds: median over the repeats.
        best: fastest repeat.
        peak_mb: growth of peak resident memory during the first call, MB (10^6 bytes).
        repeats: timed calls after the first.
    """

    seconds: float
    best: float
    peak_mb: float
    repeats: int


def rival_module(name: str) -> Any:
    """Import a rival; they import torchvision, whose operators some builds of torch lack."""
    importlib.import_module("imprint.backbones.torchvision_compat")
    return importlib.import_module(name)


def measure(script: str | Path, case: str, *, threads: int | None = None, timeout: float = 900.0) -> Measurement:
    """Run `python script --child case` in a fresh process; the script hands the call to `child_main`.

    Raises:
        RuntimeError: with the child's output when it fails.
    """
    count = str(threads or os.cpu_count() or 1)
    env = os.environ | {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "NUMBA_NUM_THREADS": count}
    done = subprocess.run(
        [sys.executable, str(script), "--child", case], capture_output=True, text=True, env=env, timeout=timeout
    )
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(_MARK):
            return Measurement(**json.loads(line[len(_MARK) :]))
    raise RuntimeError(f"{script} --child {case} gave no figure:\n{done.stdout}\n{done.stderr}")


def child_main(call: Callable[[], object], *, repeats: int = 5, seconds: float = 10.0) -> None:
    """Measure `call` in this process and print the figure for the parent.

    The first call gives the memory peak and warms up; then up to `repeats` calls are timed, fewer when `seconds` pass.
    """
    reset_peak()
    before = resident()
    call()
    peak = max(peak_resident() - before, 0)
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < repeats and (not times or time.perf_counter() - started < seconds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    figure = Measurement(statistics.median(times), min(times), peak / 1e6, len(times))
    print(_MARK + json.dumps(asdict(figure)), flush=True)


def reset_peak() -> None:
    """Reset the kernel's mark of peak resident memory to the present level (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # elsewhere the mark stays at the peak of the process so far


def _status(field: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def resident() -> int:
    """Return resident memory in bytes."""
    value = _status("VmRSS")
    return value if value is not None else peak_resident()


def peak_resident() -> int:
    """Return the peak of resident memory in bytes since `reset_peak`."""
    value = _status("VmHWM")
    if value is not None:
        return value
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def machine() -> dict[str, Any]:
    """Describe the class of machine: processor family, cores, memory, software; nothing that names the machine."""
    import torch

    model = platform.processor() or platform.machine()
    features = ""
    try:
        info = dict(
            (key.strip(), value.strip())
            for key, _, value in (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
        )
        model = info.get("model name", model)
        flags = info.get("flags", "").split()
        features = next((f for f in ("avx512f", "avx2", "avx") if f in flags), "")
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": f"{model} {features}".strip(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def write_results(name: str, results: Mapping[str, Any], *, command: str) -> Path:
    """Write benchmarks/results/<name>.json: the command, the machine's class and the figures; return the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {"command": command, "machine": machine(), "results": results}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return path
