"""CIFAR-10 end to end by the command line: prepare a folder of PNGs, pretrain, judge against the untrained encoder.

    python benchmarks/cifar.py prepare --source ../shared/data/cifar10 --out data/cifar10
    python benchmarks/cifar.py league --data data/cifar10 --out runs/cifar --budget 10min [--jobs 2] [METHOD ...]
    python benchmarks/cifar.py run simclr dino mae --data data/cifar10 --out runs/cifar --budget 15min
    python benchmarks/cifar.py table --out runs/cifar

`prepare` reads the lossless mosaics of the sample-data folder. `run` pretrains, then stores per method the kNN of raw
pixels and kNN and linear probe of the untrained and of the pretrained encoder; `score` does the second half again.
`league` runs every method with one of two small encoders (the CNN, or the ViT where tokens are needed; EsViT, iGPT and
the discrete VAE bring their own) and the same budget, `--jobs` at a time with an equal share of the cores each, goes on
where it was stopped, and writes benchmarks/results/cifar.json; `table` prints the stored results as Markdown. Masked
methods are also fine-tuned, three epochs on 5,000 images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from imprint.methods.catalog import CATALOG, method_class, row
from measure import write_results

CNN = [
    "--encoder", "resnet18", "--encoder.stem", "half", "--encoder.arch.layers", "1", "1", "1", "1",
    "--encoder.arch.channels", "32", "64", "128", "256",
]  # fmt: skip
VIT = ["--encoder.arch.embed-dim", "128", "--encoder.arch.depth", "4", "--encoder.arch.num-heads", "4"]
"""Options beside the small-scale recipe at 32 pixels: the small encoders that a 2-core CPU can train in minutes."""

OWN = ("igpt", "dvae")
"""Methods whose recipe's own encoder is taken."""
SIDE = {"igpt": 12}
"""Pixels on a side where it is not 32: to iGPT every pixel is a token."""
STEPS_ON = ("gram",)
"""Methods that only go on from another's run, so that a run of their own says little."""
MASKED = "masked image modelling"
METHODS = [entry.name for entry in CATALOG]
LEAGUE = [entry.name for entry in CATALOG if entry.name not in STEPS_ON]
FINETUNE = {"epochs": 3, "minibatch": 128, "lr": 2e-3, "warmup": 1.0, "layer_decay": 0.8, "limit": 5_000, "mixup": 0.0,
            "cutmix": 0.0, "drop_path": 0.0, "rand_augment": 0.0, "erasing": 0.0, "precision": "bf16",
            "crop_scale": (0.5, 1.0)}  # fmt: skip
"""Few labels and few passes, so that the start shows."""


COARSE = ["--encoder.patch-size", "8", "--method.local-size", "16"]
PATCHES = {"ibot": COARSE, "dinov2": COARSE, "msn": ["--encoder.patch-size", "8", "--method.focal-size", "16"]}
"""Many crops are many tokens: these get patches of 8 pixels, or they would see too few images in minutes."""


def encoder_of(method: str) -> list[str]:
    """Return the options that give a method its encoder: the ViT where patches are hidden, left out or matched."""
    if method in OWN:
        return []
    takes_patches = method_class(method).needs_tokens or method in PATCHES or row(method).family == MASKED
    return VIT + PATCHES.get(method, []) if takes_patches else CNN


def prepare(source: Path, out: Path) -> None:
    """Write train/CLASS/NNNNN.png and test/CLASS/NNNNN.png from the mosaics."""
    from PIL import Image

    labels = np.load(source / "labels.npz")
    classes = [str(c) for c in labels["classes"]]
    for split, mosaics in (("train", 5), ("test", 1)):
        for name in classes:
            (out / split / name).mkdir(parents=True, exist_ok=True)
        for m in range(mosaics):
            mosaic = np.asarray(Image.open(source / f"{split}_{m}.webp").convert("RGB"))
            tiles = mosaic.reshape(100, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
            for i, tile in enumerate(tiles):
                number = m * 10_000 + i
                label = classes[int(labels[f"{split}_y"][number])]
                Image.fromarray(tile).save(out / split / label / f"{number:05d}.png", compress_level=1)
        print(f"{split}: {mosaics * 10_000} images in {out / split}")


def run(methods: list[str], data: Path, out: Path, budget: str, seed: int, bank: int, extra: list[str]) -> None:
    """Pretrain each method by the command line for `budget`, then judge it."""
    out.mkdir(parents=True, exist_ok=True)
    for method in methods:
        command = [
            "pretrain", method, "--data", str(data / "train"), "--out", str(out / f"{method}-seed{seed}"),
            "--image-size", str(SIDE.get(method, 32)), "--budget", budget, "--seed", str(seed), "--probe-every", "None",
            *encoder_of(method), *extra,
        ]  # fmt: skip
        print("$ imprint", " ".join(command), flush=True)
        subprocess.run([sys.executable, "-m", "imprint", *command], check=True)
        score([method], data, out, seed, bank)


def score(methods: list[str], data: Path, out: Path, seed: int, bank: int) -> None:
    """Judge runs that are finished and store the figures as cifar.json beside them."""
    for method in methods:
        folder = out / f"{method}-seed{seed}"
        result = {"method": method, "seed": seed, "bank": bank or 50_000} | judge(folder, data, bank)
        (folder / "cifar.json").write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result, indent=2), flush=True)


def league(
    methods: list[str], data: Path, out: Path, budget: str, seed: int, jobs: int, bank: int, extra: list[str]
) -> None:
    """Run the methods that have no figures yet, `jobs` at a time, and write the result file."""
    out.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    env = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}

    def one(method: str) -> int:
        with (out / f"{method}-seed{seed}.log").open("w") as log:
            command = [sys.executable, __file__, "run", method, "--data", str(data), "--out", str(out)]
            command += ["--budget", budget, "--seed", str(seed), "--bank", str(bank), "--workers", threads, *extra]
            print(f"{method} ...", flush=True)
            return subprocess.run(command, env=env, stdout=log, stderr=log, check=False).returncode

    waiting = [m for m in methods if not (out / f"{m}-seed{seed}" / "cifar.json").exists()]
    with ThreadPoolExecutor(jobs) as pool:
        for method, code in zip(waiting, pool.map(one, waiting), strict=True):
            print(f"{method}: {'done' if code == 0 else f'failed, see {out / method}-seed{seed}.log'}", flush=True)
    table(out)
    figures = {path.parent.name: json.loads(path.read_text()) for path in sorted(out.glob("*/cifar.json"))}
    command = f"python benchmarks/cifar.py league --budget {budget} --jobs {jobs}"
    print(f"written: {write_results('cifar', figures, command=command)}")


def judge(folder: Path, data: Path, bank: int = 0) -> dict[str, Any]:
    """Return kNN, linear probe (and fine-tuning) of the untrained and the pretrained encoder, on the whole test set.

    `bank` training images, spread over all, are what kNN and probe learn from; 0 takes all 50,000.
    """
    import torch

    from imprint.backbones.build import build_encoder
    from imprint.core.rng import seed_of
    from imprint.core.stages import begun, is_staged
    from imprint.data.batch import Normalise
    from imprint.train.run import Run

    run = Run.open(folder)
    normalise = Normalise(run.config.data.mean, run.config.data.std)
    trained = run.encoder()
    torch.manual_seed(seed_of(run.config.seed, "weights"))  # as the run itself starts
    untrained = build_encoder(**trained.config).eval()
    parts = [Run.open(stage) for stage in begun(folder)] if is_staged(folder) else [run]
    result: dict[str, Any] = {
        "images_seen": sum(part.last_step * part.config.batch_size for part in parts),
        "seconds": round(sum(max(line["time"] for line in part.metrics() if "time" in line) for part in parts), 1),
        "encoder": trained.config,
    }
    baselines = folder.parent / "baselines.json"  # pixels and each untrained encoder once
    known: dict[str, Any] = json.loads(baselines.read_text()) if baselines.exists() else {}
    start = json.dumps([trained.config, run.config.seed, bank], sort_keys=True)
    masked = row(run.config.name).family == MASKED and run.config.name not in OWN
    protocols = ("knn", "linear", *(("finetune",) if masked else ()))
    if not {f"{protocol}_untrained" for protocol in protocols} <= known.get(start, {}).keys():
        known[start] = {"knn_pixels": top1("knn", "pixels", data, bank=bank)}
        for protocol in protocols:
            known[start][f"{protocol}_untrained"] = top1(protocol, untrained, data, normalise, bank=bank)
        baselines.write_text(json.dumps(known, indent=2) + "\n")
    result |= known[start]
    for protocol in protocols:
        result[f"{protocol}_trained"] = top1(protocol, trained, data, normalise, bank=bank)
    return result


def top1(protocol: str, encoder: Any, data: Path, normalise: Any = None, *, bank: int = 0) -> dict[str, float]:
    """Return the protocol's main figure with its interval, fitted on `train` and counted on all of `test`."""
    from imprint.data.sources import open_source, spread
    from imprint.evals.evaluate import evaluate

    # Averaged patches: a CNN's own pooling, and what MAE's encoder was trained on (its class token is not).
    options = {} if encoder == "pixels" else {"normalise": normalise, "tokens": "patch_mean"}
    options |= FINETUNE if protocol == "finetune" else {}
    train = open_source(str(data / "train"))
    if bank and protocol != "finetune":
        train = train.subset(spread(len(train), bank))
    report = evaluate(protocol, encoder, train, str(data / "test"), **options)
    metric = report.metrics[report.main]
    return {"top1": metric.value, "low": metric.low, "high": metric.high}


def table(out: Path) -> None:
    """Print the stored results as a Markdown table."""
    print("| method | images seen | seconds | kNN untrained | **kNN** | linear untrained | **linear** | fine-tuned |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    rows = [json.loads(path.read_text()) for path in out.glob("*/cifar.json")]
    for r in sorted(rows, key=lambda r: -r["knn_trained"]["top1"]):
        cells = [f"{r[k]['top1']:.1f}" for k in ("knn_untrained", "knn_trained", "linear_untrained", "linear_trained")]
        if "finetune_trained" in r:
            cells.append(f"{r['finetune_trained']['top1']:.1f} ({r['finetune_untrained']['top1']:.1f})")
        print(f"| {r['method']} | {r['images_seen']:,} | {r['seconds']:.0f} | " + " | ".join(cells) + " |")


def main() -> None:
    """Parse and go."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    one = actions.add_parser("prepare")
    one.add_argument("--source", type=Path, default=Path("../shared/data/cifar10"))
    one.add_argument("--out", type=Path, default=Path("data/cifar10"))
    two = actions.add_parser("run")
    two.add_argument("methods", nargs="+", choices=METHODS)
    two.add_argument("--data", type=Path, default=Path("data/cifar10"))
    two.add_argument("--out", type=Path, default=Path("runs/cifar"))
    two.add_argument("--budget", default="15min")
    two.add_argument("--seed", type=int, default=0)
    two.add_argument("--bank", type=int, default=0, help="training images for kNN and probe; 0 is all")
    five = actions.add_parser("league")
    five.add_argument("methods", nargs="*", help=f"default: {' '.join(LEAGUE)}")
    five.add_argument("--data", type=Path, default=Path("data/cifar10"))
    five.add_argument("--out", type=Path, default=Path("runs/cifar"))
    five.add_argument("--budget", default="10min")
    five.add_argument("--seed", type=int, default=0)
    five.add_argument("--jobs", type=int, default=2)
    five.add_argument("--bank", type=int, default=0, help="training images for kNN and probe; 0 is all")
    three = actions.add_parser("score")
    three.add_argument("methods", nargs="+", choices=METHODS)
    three.add_argument("--data", type=Path, default=Path("data/cifar10"))
    three.add_argument("--out", type=Path, default=Path("runs/cifar"))
    three.add_argument("--seed", type=int, default=0)
    three.add_argument("--bank", type=int, default=0, help="training images for kNN and probe; 0 is all")
    four = actions.add_parser("table")
    four.add_argument("--out", type=Path, default=Path("runs/cifar"))
    args, extra = parser.parse_known_args()
    if args.action == "prepare":
        prepare(args.source, args.out)
    elif args.action == "run":
        run(args.methods, args.data, args.out, args.budget, args.seed, args.bank, extra)
    elif args.action == "league":
        league(args.methods or LEAGUE, args.data, args.out, args.budget, args.seed, args.jobs, args.bank, extra)
    elif args.action == "score":
        score(args.methods, args.data, args.out, args.seed, args.bank)
    else:
        table(args.out)


if __name__ == "__main__":
    main()
