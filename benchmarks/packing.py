"""Multi-crop through a ViT, forward and backward: one packed pass against one pass per resolution.

Both run the same weights on the same crops and give the same features and gradients; only the grouping differs. On a
CPU each figure is taken in a fresh process; on a GPU in this one, with the peak of the allocator.

    python benchmarks/packing.py [--only NAME] [--quick] [--threads N] [--device cuda]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from rich import print
from rich.table import Table
from torch import Tensor

from imprint.backbones.arch import Arch
from imprint.backbones.build import build_encoder
from imprint.backbones.encoder import Encoder, Features
from measure import Measurement, child_main, measure, write_results


@dataclass(frozen=True)
class Crops:
    """A multi-crop batch: `images` images, each as (count, side) crops, through one encoder."""

    name: str
    patch: int
    crops: tuple[tuple[int, int], ...]
    images: int
    arch: Arch = Arch()
    drop_path: float = 0.0


CASES = {
    "vit-s/16 2x224+8x96": Crops("vit_small_patch16_224", 16, ((2, 224), (8, 96)), 8),
    "vit-s/16 2x224+8x96 leaving out 30 % of samples": Crops(
        "vit_small_patch16_224", 16, ((2, 224), (8, 96)), 8, drop_path=0.3
    ),
    "vit-tiny/4 2x32+6x16": Crops("vit_tiny_patch16_224", 4, ((2, 32), (6, 16)), 16),
}
QUICK = {
    "narrow vit/4 2x32+6x16": Crops(
        "vit_tiny_patch16_224", 4, ((2, 32), (6, 16)), 4, Arch(embed_dim=64, depth=2, num_heads=2)
    ),
}
WAYS = ("packed", "one pass per resolution")


def call_of(case: Crops, way: str, device: torch.device, images: int) -> Callable[[], object]:
    """Return one forward and backward pass; bfloat16 autocast on a GPU."""
    torch.manual_seed(0)
    encoder: Encoder = build_encoder(
        case.name,
        image_size=case.crops[0][1],
        patch_size=case.patch,
        arch=case.arch,
        drop_path=case.drop_path,
        drop_samples=case.drop_path > 0,
        uniform_drop_path=case.drop_path > 0,
    )
    encoder.to(device).train()
    crops = [torch.randn(count * images, 3, side, side, device=device) for count, side in case.crops]

    def features() -> list[Features]:
        # The packed pass itself: encode_many chooses the other way by itself where a CPU has much to do.
        return encoder._packed(crops, [None] * len(crops)) if way == "packed" else [encoder(x) for x in crops]

    def loss() -> Tensor:
        return torch.stack(
            [f.patches_BND.float().square().mean() + f.pooled_BD.float().mean() for f in features()]
        ).sum()

    def step() -> None:
        encoder.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            value = loss()
        value.backward()

    return step


def on_gpu(call: Callable[[], object], repeats: int = 20) -> Measurement:
    """Time `call` with the device's work finished each time, and the allocator's peak."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    peak = (torch.cuda.max_memory_allocated() - before) / 1e6
    return Measurement(statistics.median(times), min(times), peak, repeats)


def main() -> None:
    """Measure, print a table, and write benchmarks/results/packing.json unless the sizes were cut short."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--images", type=int, help="images per batch; the case's own when left out")
    parser.add_argument("--child")
    options = parser.parse_args()
    cases = CASES | QUICK
    if options.child:
        name, way, images = options.child.split("|")
        child_main(call_of(cases[name], way, torch.device("cpu"), int(images)))
        return
    table = Table("crops", "way", "seconds", "peak MB", "packed is faster by")
    results: dict[str, dict[str, object]] = {}
    for name, case in (QUICK if options.quick else CASES).items():
        if options.only and not any(word in name for word in options.only):
            continue
        images = options.images or case.images
        figures: dict[str, Measurement] = {}
        for way in WAYS:
            if options.device == "cuda":
                figures[way] = on_gpu(call_of(case, way, torch.device("cuda"), images))
            else:
                figures[way] = measure(__file__, f"{name}|{way}|{images}", threads=options.threads)
        factor = figures[WAYS[1]].seconds / figures[WAYS[0]].seconds
        for way, figure in figures.items():
            shown = f"{factor:.2f}x" if way == "packed" else ""
            table.add_row(f"{name}, {images} images", way, f"{figure.seconds:.3f}", f"{figure.peak_mb:.0f}", shown)
        results[f"{name}, {images} images"] = {
            "device": options.device,
            "faster": round(factor, 3),
            **{way: asdict(figure) for way, figure in figures.items()},
        }
    print(table)
    if not options.quick and not options.only:
        stem = "packing" if options.device == "cpu" else "packing_cuda"
        command = f"python benchmarks/packing.py --device {options.device}"
        print(write_results(stem, results, command=command))


if __name__ == "__main__":
    main()
