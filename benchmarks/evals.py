"""Protocols on cached features against their rivals: time and peak memory growth, each in a fresh process.

    python benchmarks/evals.py [--only NAME ...] [--threads N]     # writes results/evals.json
    python benchmarks/evals.py --quick                             # small sizes, nothing written

`linear` trains probes of 10 epochs: the sweep of 13 learning rates, one rate alone, one rate in a plain loop of torch
operations, and lightly's probe (its LinearClassifier in Lightning's Trainer, one rate). `logreg` solves one penalty.
`knn` finds the 20 nearest and votes; `knn_million` does so for a memory-mapped bank, whose pages are not counted as
memory: they belong to the file and the system takes them back at will.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from measure import RESULTS, Measurement, child_main, measure, rival_module, write_results

SIZES: dict[str, tuple[str, ...]] = {
    "linear": ("50000x384x10", "50000x384x100"),
    "logreg": ("50000x384x10",),
    "knn": ("10000x50000x384",),
    "knn_million": ("1000x1000000x384",),
}
QUICK: dict[str, tuple[str, ...]] = {
    "linear": ("5000x64x10",),
    "logreg": ("5000x64x10",),
    "knn": ("500x5000x64",),
    "knn_million": ("100x100000x64",),
}
RIVALS: dict[str, tuple[str, ...]] = {
    "linear": ("imprint 13 rates", "imprint 1 rate", "plain torch 1 rate", "lightly 1 rate"),
    "logreg": ("imprint", "scikit-learn"),
    "knn": ("imprint", "matrix product alone", "torch.topk", "lightly", "scikit-learn"),
    "knn_million": ("imprint", "torch.topk"),
}
EPOCHS = 10
NEEDS = {"lightly": "lightly", "lightly 1 rate": "lightly", "scikit-learn": "sklearn"}


def labelled(size: str) -> tuple[Tensor, Tensor, int]:
    """Return features around one centre per class, labels and the number of classes: rows x width x classes."""
    rows, width, classes = (int(n) for n in size.split("x"))
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, width, generator=generator) * 0.1
    labels = torch.randint(classes, (rows,), generator=generator)
    return centres[labels] + torch.randn(rows, width, generator=generator), labels, classes


def linear_call(rival: str, size: str) -> Callable[[], object]:
    """Training of probes for 10 epochs."""
    x, y, classes = labelled(size)
    if rival.startswith("imprint"):
        from imprint.evals.linear import LEARNING_RATES, LinearConfig, fit_heads

        rates = LEARNING_RATES if "13" in rival else (0.1,)
        config = LinearConfig(lrs=rates, epochs=EPOCHS, device="cpu")
        rows = torch.arange(len(x))
        return lambda: fit_heads(x, y, rows, classes, config)
    if rival.startswith("lightly"):
        return _lightly_probe(x, y, classes)

    def plain() -> None:
        layer = nn.Linear(x.shape[1], classes)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(x)).split(1024):
                optimizer.zero_grad()
                F.cross_entropy(layer(x[rows]), y[rows]).backward()
                optimizer.step()

    return plain


def _lightly_probe(x: Tensor, y: Tensor, classes: int) -> Callable[[], object]:
    probes = rival_module("lightly.utils.benchmarking")
    lightning = rival_module("pytorch_lightning")
    for name in ("pytorch_lightning", "lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

    def call() -> None:
        data = torch.utils.data.TensorDataset(x, y)
        loader = torch.utils.data.DataLoader(data, batch_size=1024, shuffle=True)
        probe = probes.LinearClassifier(nn.Identity(), 1024, feature_dim=x.shape[1], num_classes=classes)
        trainer = lightning.Trainer(
            max_epochs=EPOCHS, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.fit(probe, loader)

    return call


def logreg_call(rival: str, size: str) -> Callable[[], object]:
    """One penalty, C = 1, to a largest gradient entry of 1e-4."""
    x, y, classes = labelled(size)
    if rival == "imprint":
        from imprint.evals.logreg import LogRegConfig, solve

        config, rows = LogRegConfig(device="cpu"), torch.arange(len(x))
        return lambda: solve(x, y, rows, classes, (1.0,), config)
    from sklearn.linear_model import LogisticRegression

    features, labels = x.numpy(), y.numpy()
    return lambda: LogisticRegression(C=1.0, tol=1e-4, max_iter=1000).fit(features, labels)


def knn_call(rival: str, size: str) -> Callable[[], object]:
    """The 20 nearest of queries x bank x width, and their weighted votes (the product alone has none)."""
    queries, rows, width = (int(n) for n in size.split("x"))
    generator = torch.Generator().manual_seed(0)
    bank = F.normalize(torch.randn(rows, width, generator=generator), dim=1)
    query = F.normalize(torch.randn(queries, width, generator=generator), dim=1)
    labels = torch.randint(10, (rows,), generator=generator)
    if rival == "imprint":
        from imprint.ops.neighbours import knn_classify

        return lambda: knn_classify(query, bank, labels, 10, (20,))
    if rival == "lightly":
        predict = rival_module("lightly.utils.benchmarking").knn_predict

        def lightly() -> None:
            for part in query.split(256):
                predict(part, bank.T, labels, 10, knn_k=20, knn_t=0.07)

        return lightly
    if rival == "scikit-learn":
        from sklearn.neighbors import KNeighborsClassifier

        found = KNeighborsClassifier(20, algorithm="brute", metric="euclidean").fit(bank.numpy(), labels.numpy())
        return lambda: found.predict(query.numpy())
    if rival == "torch.topk":
        return _topk(query, bank, labels)
    out = torch.empty(256, rows)

    def product() -> None:
        for part in query.split(256):
            torch.mm(part, bank.T, out=out[: len(part)])

    return product


def _topk(query: Tensor, bank: Tensor, labels: Tensor) -> Callable[[], object]:
    def call() -> None:
        for part in query.split(256):
            similarity, index = (part @ bank.T).topk(20, dim=1)
            votes = torch.zeros(len(part), int(labels.max()) + 1)
            votes.scatter_add_(1, labels[index], (similarity / 0.07).exp()).argmax(1)

    return call


def knn_million_call(rival: str, size: str) -> Callable[[], object]:
    """The same for a bank in a file, as the feature cache keeps it: not normalised, memory-mapped."""
    queries, rows, width = (int(n) for n in size.split("x"))
    path = Path(tempfile.gettempdir()) / f"imprint-bank-{os.getuid()}-{rows}x{width}.npy"
    if not path.exists():
        aside = path.with_suffix(".part")
        table = np.lib.format.open_memmap(aside, mode="w+", dtype=np.float32, shape=(rows, width))
        rng = np.random.default_rng(0)
        for first in range(0, rows, 50_000):
            part = table[first : first + 50_000]
            part[:] = rng.standard_normal(part.shape, dtype=np.float32)
        table.flush()
        del table
        aside.rename(path)
    bank = torch.from_numpy(np.load(path, mmap_mode="c"))
    bank.sum()  # its pages are in memory before anything is measured
    generator = torch.Generator().manual_seed(0)
    query = F.normalize(torch.randn(queries, width, generator=generator), dim=1)
    labels = torch.randint(1000, (rows,), generator=generator)
    if rival == "imprint":
        from imprint.ops.neighbours import inverse_norms, knn_classify

        return lambda: knn_classify(query, bank, labels, 1000, (20,), scale_N=inverse_norms(bank))

    return lambda: _topk(query, F.normalize(bank, dim=1), labels)()


CALLS: dict[str, Callable[[str, str], Callable[[], object]]] = {
    "linear": linear_call,
    "logreg": logreg_call,
    "knn": knn_call,
    "knn_million": knn_million_call,
}


def main() -> None:
    """Print the tables and write benchmarks/results/evals.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(CALLS), help="some benchmarks; the others' figures stay")
    parser.add_argument("--quick", action="store_true", help="small sizes; writes no result file")
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
    for name in args.only or list(CALLS):
        head = ("size", "implementation", "ms", "peak MB", "time / first", "memory / first")
        table = Table(*head, title=name)
        for size in (QUICK if args.quick else SIZES)[name]:
            figures: dict[str, Measurement] = {}
            for rival in RIVALS[name]:
                if importlib.util.find_spec(NEEDS.get(rival, "torch")) is None:
                    console.print(f"not installed, left out: {NEEDS[rival]}")
                    continue
                try:
                    figures[rival] = measure(__file__, f"{name}/{rival}/{size}", threads=args.threads)
                except RuntimeError as error:
                    if rival.startswith("imprint"):
                        raise
                    console.print(f"{rival} does not run here: {str(error).strip().splitlines()[-1]}")
                    continue
                ours, theirs = figures[RIVALS[name][0]], figures[rival]
                table.add_row(
                    size,
                    rival,
                    f"{1e3 * theirs.seconds:.1f}",
                    f"{theirs.peak_mb:.1f}",
                    f"{theirs.seconds / ours.seconds:.2f}",
                    f"{theirs.peak_mb / max(ours.peak_mb, 0.1):.1f}",
                )
            results.setdefault(name, {})[size] = {rival: asdict(figure) for rival, figure in figures.items()}
            if name == "linear":
                sweep, one = figures["imprint 13 rates"].seconds, figures["imprint 1 rate"].seconds
                console.print(f"{size}: 13 rates cost {sweep / one:.2f} times one")
                if "lightly 1 rate" in figures:
                    times = 13 * figures["lightly 1 rate"].seconds / sweep
                    console.print(f"{size}: lightly's probe 13 times costs {times:.0f} times the sweep")
        console.print(table)
    if args.quick:
        return
    if args.threads:
        results = {f"{name}, threads: {args.threads}": found for name, found in results.items()}
    known = RESULTS / "evals.json"
    before = json.loads(known.read_text())["results"] if args.only and known.is_file() else {}
    path = write_results("evals", before | results, command="python benchmarks/evals.py")
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()
