"""`imprint doctor`: what works on this machine, what is slow, what is missing, and the cure for each."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from imprint.cli.parser import Parser

EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "detection": ("COCO average precision", ("pycocotools",)),
    "video": ("reading video files", ("av",)),
    "text": ("text towers and tokenizers", ("transformers",)),
    "diffusion": ("diffusion decoders", ("diffusers",)),
    "hub": ("Hugging Face datasets and models (hf:NAME)", ("datasets", "huggingface_hub")),
    "maps": ("UMAP maps of embeddings", ("umap",)),
    "webdataset": ("tar shards in the cloud", ("webdataset",)),
    "export": ("ONNX export and its check", ("onnx", "onnxruntime", "onnxscript")),
    "slurm": ("submitting to Slurm from Python", ("submitit",)),
    "bench": ("benchmarks against other toolkits", ("lightly", "albumentations")),
    "dev": ("tests, lint and documentation", ("pytest", "mypy", "ruff", "mkdocs")),
}
"""Extra -> what it is for and the modules it brings."""

LOW_DISK = 5 << 30
LOW_MEMORY = 4 << 30
SLOW_DECODE = 60.0
"""500 x 375 photographs a second and core below which decoding will hold training back."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at.
        value: what was found.
        cure: what to do when something is wrong, else "".
    """

    name: str
    value: str
    cure: str = ""


def arguments(parser: Parser) -> None:
    """Declare the options: there are none."""


def run(args: argparse.Namespace) -> int:
    """Print the findings, each with its cure."""
    found = []
    for finding in findings():
        found.append(finding)
        print(f"{'warn' if finding.cure else 'ok':<5} {finding.name:<14} {finding.value}")
        if finding.cure:
            print(f"{'':<20} {finding.cure}")
    warnings = sum(bool(finding.cure) for finding in found)
    print(f"\n{warnings} warning{'s' if warnings != 1 else ''}." if warnings else "\nAll well.")
    return 0


def findings() -> Iterator[Finding]:
    """Look at one thing after another; what cannot be looked at is a finding, too."""
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for look in (cores, memory, torch_build, devices, bf16, threads, operators, decoding, cache, disk, extras):
        try:
            result = look()
            yield from [result] if isinstance(result, Finding) else result
        except (ImportError, OSError, RuntimeError) as problem:
            yield Finding(
                look.__name__, f"{type(problem).__name__}: {problem}", "Reinstall: pip install --upgrade imprint"
            )


def cores() -> Finding:
    """Count the cores this process may use."""
    return Finding("cores", f"{_usable_cores()} usable of {os.cpu_count()}")


def memory() -> Finding:
    """Read how much memory the machine has and how much is free."""
    total, free = _memory_bytes()
    if total == 0:
        return Finding("memory", "unknown on this system")
    low = 0 < free < LOW_MEMORY
    cure = "Little memory is free; use a smaller --batch-size and fewer --workers." if low else ""
    return Finding("memory", f"{total / 2**30:.1f} GiB" + (f", {free / 2**30:.1f} GiB free" if free else ""), cure)


def torch_build() -> Finding:
    """Read the versions of torch and the libraries that must match it."""
    import torch

    return Finding("torch", f"{torch.__version__}, torchvision {_version('torchvision')}, timm {_version('timm')}")


def devices() -> Iterator[Finding]:
    """List the devices that torch sees."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding(f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    elif torch.backends.mps.is_available():
        yield Finding("device", "mps (Apple GPU)")
    else:
        driver = Path("/proc/driver/nvidia/version").exists()
        cure = "An NVIDIA driver is loaded but this torch sees no GPU; install a CUDA build of torch." if driver else ""
        yield Finding("device", "cpu", cure)


def threads() -> Finding:
    """Compare torch's threads with the cores."""
    import torch

    count, usable = torch.get_num_threads(), _usable_cores()
    cure = f"More threads than cores slow each other down; set OMP_NUM_THREADS={usable}." if count > usable else ""
    return Finding("threads", f"{count} in torch", cure)


def operators() -> Finding:
    """Say whether torchvision's compiled operators work."""
    from imprint.backbones.torchvision_compat import OPERATORS_AVAILABLE

    if OPERATORS_AVAILABLE:
        return Finding("torchvision", "compiled operators load; detection uses them")
    cure = "Detection runs, somewhat slower. Install torch and torchvision from the same index (README, 'Install')."
    return Finding(
        "torchvision", "compiled operators do not load; detection uses imprint's own nms and roi_align", cure
    )


def bf16() -> Finding:
    """Say whether the device computes in bf16, which is what `--precision auto` asks."""
    from imprint.dist.world import pick_device
    from imprint.train.precision import computes_in_bf16

    device = pick_device("auto")
    native = computes_in_bf16(device)
    state = "native" if native else "not native"
    return Finding("bf16", f"{state} on {device.type}; --precision auto uses {'bf16' if native else 'fp32'}")


def decoding() -> Finding:
    """Time the decoding of a 500 x 375 JPEG made from a bundled photograph, on one core."""
    import cv2
    import numpy as np
    import simplejpeg

    from imprint.data.decode import decode

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC)
    noise = rng.integers(-12, 13, picture.shape)
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(np.clip(picture + noise, 0, 255).astype(np.uint8)), quality=90)
    decode(data, channels=3, min_side=None)
    count, start = 0, time.perf_counter()
    while count < 20 or time.perf_counter() - start < 0.3:
        decode(data, channels=3, min_side=None)
        count += 1
    rate = count / (time.perf_counter() - start)
    cure = "Decoding is slow here; is the machine busy, or throttled?" if rate < SLOW_DECODE else ""
    return Finding("jpeg", f"{rate:.0f} images/s on one core (500 x 375, {len(data) / 1024:.0f} kB)", cure)


def cache() -> Finding:
    """Say where indexes, features and compiled kernels are kept and whether that can be written."""
    from imprint.data.compact import cache_dir

    folder = cache_dir()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if os.access(existing, os.W_OK):
        return Finding("cache", str(folder))
    return Finding("cache", f"{folder} cannot be written", "Set IMPRINT_CACHE to a folder that can.")


def disk() -> Finding:
    """Read how much room is left where runs would be written from here."""
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free
    cure = "Checkpoints need room; free some, or write runs elsewhere with --out." if free < LOW_DISK else ""
    return Finding("disk", f"{free / 2**30:.0f} GiB free in {folder}", cure)


def extras() -> Iterator[Finding]:
    """Say which extras are installed and what the others would bring."""
    for extra, (purpose, modules) in EXTRAS.items():
        absent = [module for module in modules if util.find_spec(module) is None]
        state = "installed" if not absent else f"not installed: pip install 'imprint[{extra}]'"
        yield Finding(f"[{extra}]", f"{purpose}; {state}")


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _memory_bytes() -> tuple[int, int]:
    """Return (total, available) bytes; 0 where the system does not say."""
    info = Path("/proc/meminfo")
    if info.exists():
        values = dict(line.split(":", 1) for line in info.read_text(encoding="ascii").splitlines() if ":" in line)
        return tuple(int(values.get(k, "0 kB").split()[0]) << 10 for k in ("MemTotal", "MemAvailable"))  # type: ignore[return-value]
    if sys.platform == "darwin":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 0
    return 0, 0
