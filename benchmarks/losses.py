"""Losses against their rivals: forward plus backward, time and peak memory growth, each in a fresh process.

python benchmarks/losses.py [--only NAME ...] [--quick] [--threads N]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from measure import RESULTS, Measurement, child_main, measure, rival_module, write_results

SIZES: dict[str, tuple[str, ...]] = {
    "nt_xent": ("512", "2048", "8192"),
    "dino": ("64x10x65536",),
    "knn": ("10000x50000x384",),
}
QUICK: dict[str, tuple[str, ...]] = {"nt_xent": ("512",), "dino": ("8x10x65536",), "knn": ("1000x50000x384",)}
RIVALS: dict[str, tuple[str, ...]] = {
    "nt_xent": ("imprint", "lightly", "stable-pretraining", "plain torch"),
    "dino": ("imprint", "imprint overwrite", "lightly", "stable-pretraining", "official style"),
    "knn": ("imprint", "matrix product alone", "torch.topk"),
}


def nt_xent_call(rival: str, size: str) -> Callable[[], object]:
    """NT-Xent over `size` pairs, D = 128, tau = 0.1."""
    generator = torch.Generator().manual_seed(0)
    z1, z2 = (torch.randn(int(size), 128, generator=generator).requires_grad_() for _ in range(2))

    def plain(a: Tensor, b: Tensor) -> Tensor:
        z = F.normalize(torch.cat([a, b]), dim=1)
        logits = (z @ z.T / 0.1).fill_diagonal_(-torch.inf)
        count = len(a)
        targets = torch.arange(2 * count).roll(count)
        return F.cross_entropy(logits, targets)

    loss: Callable[[Tensor, Tensor], Tensor]
    if rival == "imprint":
        from imprint.losses.contrastive import nt_xent

        def loss(a: Tensor, b: Tensor) -> Tensor:
            return nt_xent(a, b, 0.1)
    elif rival == "lightly":
        loss = rival_module("lightly.loss").NTXentLoss(temperature=0.1)
    elif rival == "stable-pretraining":
        loss = rival_module("stable_pretraining.losses").NTXEntLoss(temperature=0.1)
    else:
        loss = plain

    def call() -> None:
        z1.grad = z2.grad = None
        loss(z1, z2).backward()

    return call


def dino_call(rival: str, size: str) -> Callable[[], object]:
    """DINO's loss: images x crops x prototypes, two teacher views, tau_s = 0.1, tau_t = 0.04."""
    batch, crops, width = (int(n) for n in size.split("x"))
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(crops, batch, width, generator=generator).mul_(0.1).requires_grad_()
    teacher = torch.randn(2, batch, width, generator=generator).mul_(0.1)
    center = torch.zeros(width)

    if rival.startswith("imprint"):
        from imprint.losses.distillation import cross_view_cross_entropy

        overwrite = rival.endswith("overwrite")

        def call() -> None:
            student.grad = None
            logits = student.view_as(student) if overwrite else student
            # Overwriting consumes the values; a training step computes fresh ones, so timing is not affected.
            cross_view_cross_entropy(logits, teacher, center, 0.1, 0.04, overwrite=overwrite).backward()
            if overwrite:
                student.grad = None

    elif rival == "lightly":
        lightly = rival_module("lightly.loss").DINOLoss(output_dim=width, teacher_temp=0.04, student_temp=0.1)

        def call() -> None:
            student.grad = None
            lightly(list(teacher.unbind()), list(student.unbind())).backward()

    elif rival == "stable-pretraining":
        stable = rival_module("stable_pretraining.losses").DINOv1Loss(temperature_student=0.1)
        stable.center = center

        def call() -> None:
            student.grad = None
            stable(student, stable.softmax_center_teacher(teacher, 0.04, update_centers=False)).backward()

    else:

        def call() -> None:
            student.grad = None
            targets = F.softmax((teacher - center) / 0.04, dim=-1).detach().unbind()
            outs = (student.flatten(0, 1) / 0.1).chunk(crops)
            total, terms = torch.zeros(()), 0
            for w, q in enumerate(targets):
                for v, out in enumerate(outs):
                    if v != w:
                        total = total + torch.sum(-q * F.log_softmax(out, dim=-1), dim=-1).mean()
                        terms += 1
            (total / terms).backward()

    return call


def knn_call(rival: str, size: str) -> Callable[[], object]:
    """The 20 nearest of a bank: queries x bank x width."""
    queries, rows, width = (int(n) for n in size.split("x"))
    generator = torch.Generator().manual_seed(0)
    bank = F.normalize(torch.randn(rows, width, generator=generator), dim=1)
    query = F.normalize(torch.randn(queries, width, generator=generator), dim=1)
    if rival == "imprint":
        from imprint.ops.neighbours import nearest

        return lambda: nearest(query, bank, 20)
    out = torch.empty(256, rows)

    def product() -> None:
        for part in query.split(256):
            torch.mm(part, bank.T, out=out[: len(part)])

    def sort() -> None:
        for part in query.split(256):
            torch.mm(part, bank.T, out=out[: len(part)]).topk(20, dim=1)

    return product if rival == "matrix product alone" else sort


CALLS: dict[str, Callable[[str, str], Callable[[], object]]] = {
    "nt_xent": nt_xent_call,
    "dino": dino_call,
    "knn": knn_call,
}
for _path in sorted(Path(__file__).parent.glob("losses_*.py")):  # one file per family, with the same four tables
    _family = importlib.import_module(_path.stem)
    for _table, _more in ((SIZES, _family.SIZES), (QUICK, _family.QUICK), (RIVALS, _family.RIVALS)):
        _table.update(_more)
    CALLS |= _family.CALLS


def main() -> None:
    """Print the table and write benchmarks/results/losses.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(CALLS), help="some benchmarks; the others' figures stay")
    parser.add_argument("--quick", action="store_true", help="smallest sizes; writes no result file")
    parser.add_argument("--threads", type=int, help="threads per process (default: all cores)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, rival, size = args.child.split("/")
        child_main(CALLS[name](rival, size))
        return

    from rich.console import Console
    from rich.table import Table

    console = Console()
    results: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    names = {"lightly": "lightly", "stable-pretraining": "stable_pretraining"}
    absent = [rival for rival, name in names.items() if importlib.util.find_spec(name) is None]
    if absent:
        console.print(f"not installed, left out: {', '.join(absent)}")
    for name in args.only or list(CALLS):
        table = Table("size", "implementation", "ms", "peak MB", "time / imprint", "memory / imprint", title=name)
        for size in (QUICK if args.quick else SIZES)[name]:
            figures: dict[str, Measurement] = {}
            for rival in RIVALS[name]:
                if rival in absent:
                    continue
                try:
                    figures[rival] = measure(__file__, f"{name}/{rival}/{size}", threads=args.threads)
                except RuntimeError as error:
                    if rival == "imprint":
                        raise
                    console.print(f"{rival} does not run here: {str(error).strip().splitlines()[-1]}")
                    continue
                ours, theirs = figures["imprint"], figures[rival]
                table.add_row(
                    size,
                    rival,
                    f"{1e3 * theirs.seconds:.1f}",
                    f"{theirs.peak_mb:.1f}",
                    f"{theirs.seconds / ours.seconds:.2f}",
                    f"{theirs.peak_mb / max(ours.peak_mb, 0.1):.1f}",
                )
            results.setdefault(name, {})[size] = {rival: asdict(figure) for rival, figure in figures.items()}
        console.print(table)
    if args.quick:
        return
    if args.threads:
        results = {f"{name}, threads: {args.threads}": found for name, found in results.items()}
    before = json.loads((RESULTS / "losses.json").read_text())["results"] if args.only else {}
    path = write_results("losses", before | results, command="python benchmarks/losses.py")
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()
