"""Threads or processes: images per second of the loader from JPEG bytes to batches, by number of workers.

    python benchmarks/loader.py            # writes results/loader.json
    python benchmarks/loader.py --quick    # fewer steps, nothing written

`threads` is the loader as it is. `processes` runs as many loaders of one thread each, side by side in processes of
their own, and adds up their rates: an upper bound for any loader with processes, since nothing is handed over. The
views are SimCLR's (two crops of 224 pixels with colour jitter and blur), on sample photographs of ImageNet's size where
they are at hand (IMPRINT_SAMPLE_DATA or ../shared/data), else on the bundled photographs as JPEG.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import sys
import time
from pathlib import Path

from measure import write_results

BATCH = 64


def source_spec(scratch: Path) -> str:
    """Return what to read: the sample photographs, or the bundled ones written as JPEG."""
    data = Path(os.environ.get("IMPRINT_SAMPLE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if (archive := data / "imagenet_sample" / "images.zip").is_file():
        return os.fspath(archive)
    from PIL import Image

    from imprint.data.photos import photos

    bundled = photos("train", tile=128, stride=128)
    for i in range(len(bundled)):
        stream = io.BytesIO()
        Image.fromarray(bundled.read(i)).resize((500, 375), Image.Resampling.BICUBIC).save(stream, "jpeg", quality=90)
        (scratch / f"{i:04d}.jpg").write_bytes(stream.getvalue())
    return os.fspath(scratch)


def rate(spec: str, workers: int, seconds: float, ready: object = None) -> float:
    """Return images per second of one loader, after a first batch."""
    from imprint.data.loader import Loader
    from imprint.data.sources import open_source
    from imprint.data.views import Crop, Look, View

    look = Look(flip=0.5, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, jitter=0.8, grey=0.2, blur=0.5)
    view = View(name="view", count=2, crop=Crop(size=224), look=look)
    with Loader(open_source(spec), (view,), batch_size=BATCH, seed=0, workers=workers) as loader:
        batches = loader.batches()
        next(batches)
        if ready is not None:
            ready.wait()  # type: ignore[attr-defined]
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            count += len(next(batches))
        return count / (time.perf_counter() - start)


def _child(spec: str, seconds: float, ready: object, results: object) -> None:
    results.put(rate(spec, 1, seconds, ready))  # type: ignore[attr-defined]


def processes(spec: str, count: int, seconds: float) -> float:
    """Return the summed rate of `count` processes that start together."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(count), context.Queue()
    children = [context.Process(target=_child, args=(spec, seconds, ready, results)) for _ in range(count)]
    for child in children:
        child.start()
    total = sum(results.get(timeout=300) for _ in children)
    for child in children:
        child.join()
    return float(total)


def main() -> None:
    """Run as asked on the command line."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    seconds = 2.0 if options.quick else 10.0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = sorted({1, 2, 4, cores} if cores > 2 else {1, 2})
    results: dict[str, dict[str, float]] = {"threads": {}, "processes": {}}
    with tempfile.TemporaryDirectory() as scratch:
        spec = source_spec(Path(scratch))
        for count in counts:
            results["threads"][str(count)] = round(rate(spec, count, seconds), 1)
            results["processes"][str(count)] = round(processes(spec, count, seconds), 1)
            line = ", ".join(f"{kind} {found[str(count)]:7.1f} images/s" for kind, found in results.items())
            print(f"{count} workers: {line}", flush=True)
    if not options.quick:
        print("written:", write_results("loader", results, command="python benchmarks/loader.py"))


if __name__ == "__main__":
    sys.exit(main())
