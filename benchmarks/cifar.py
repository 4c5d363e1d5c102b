"""CIFAR-10 end to end by the command line: prepare a folder of PNGs, pretrain, judge against the untrained encoder.

    python benchmarks/cifar.py prepare --source ../shared/data/cifar10 --out data/cifar10
    python benchmarks/cifar.py run simclr dino mae --data data/cifar10 --out runs/cifar --budget 15min
    python benchmarks/cifar.py table --out runs/cifar

`prepare` reads the lossless mosaics of the sample-data folder. `run` pretrains, then stores per method the kNN of raw
pixels and kNN and linear probe of the untrained and of the pretrained encoder; `score` does the second half again;
`table` prints the stored results as Markdown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

CNN = [
    "--encoder", "resnet18", "--encoder.stem", "half", "--encoder.arch.layers", "1", "1", "1", "1",
    "--encoder.arch.channels", "32", "64", "128", "256",
]  # fmt: skip
VIT = ["--encoder.arch.embed-dim", "128", "--encoder.arch.depth", "4", "--encoder.arch.num-heads", "4"]
ENCODERS = {"simclr": CNN, "dino": CNN, "mae": VIT}
"""Options beside the small-scale recipe at 32 pixels: the small encoders that a 2-core CPU can train in minutes."""


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


def run(methods: list[str], data: Path, out: Path, budget: str, seed: int, extra: list[str]) -> None:
    """Pretrain each method by the command line for `budget`, then judge it."""
    out.mkdir(parents=True, exist_ok=True)
    for method in methods:
        command = [
            "pretrain", method, "--data", str(data / "train"), "--out", str(out / f"{method}-seed{seed}"),
            "--image-size", "32", "--budget", budget, "--seed", str(seed), "--probe-every", "None", *ENCODERS[method],
            *extra,
        ]  # fmt: skip
        print("$ imprint", " ".join(command), flush=True)
        subprocess.run([sys.executable, "-m", "imprint", *command], check=True)
        score([method], data, out, seed)


def score(methods: list[str], data: Path, out: Path, seed: int) -> None:
    """Judge runs that are finished and store the figures as cifar.json beside them."""
    for method in methods:
        folder = out / f"{method}-seed{seed}"
        result = {"method": method, "seed": seed} | judge(folder, data)
        (folder / "cifar.json").write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result, indent=2), flush=True)


def judge(folder: Path, data: Path) -> dict[str, Any]:
    """Return kNN and linear probe of pixels, the untrained encoder and the pretrained one, on the whole test set."""
    import torch

    from imprint.backbones.build import build_encoder
    from imprint.core.rng import seed_of
    from imprint.data.batch import Normalise
    from imprint.evals.evaluate import evaluate
    from imprint.train.run import Run

    run = Run.open(folder)
    normalise = Normalise(run.config.data.mean, run.config.data.std)
    trained = run.encoder()
    torch.manual_seed(seed_of(run.config.seed, "weights"))  # as the run itself starts
    untrained = build_encoder(**trained.config).eval()
    train, test = str(data / "train"), str(data / "test")
    result: dict[str, Any] = {"images_seen": run.last_step * run.config.batch_size, "encoder": trained.config}
    for protocol in ("knn", "linear"):
        for name, encoder in (("pixels", "pixels"), ("untrained", untrained), ("trained", trained)):
            pixels = name == "pixels"
            if pixels and protocol == "linear":
                continue  # 3,072 dimensions: it would take longer than all the rest
            # Averaged patches: a CNN's own pooling, and what MAE's encoder was trained on (its class token is not).
            options = {} if pixels else {"normalise": normalise, "tokens": "patch_mean"}
            report = evaluate(protocol, encoder, train, test, **options)
            metric = report.metrics[report.main]
            result[f"{protocol}_{name}"] = {"top1": metric.value, "low": metric.low, "high": metric.high}
    return result


def table(out: Path) -> None:
    """Print the stored results as a Markdown table."""
    print("| method | images seen | kNN pixels | kNN untrained | **kNN** | linear untrained | **linear** |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for path in sorted(out.glob("*/cifar.json")):
        r = json.loads(path.read_text())
        cells = [
            f"{r[k]['top1']:.1f}"
            for k in ("knn_pixels", "knn_untrained", "knn_trained", "linear_untrained", "linear_trained")
        ]
        print(f"| {r['method']} (seed {r['seed']}) | {r['images_seen']:,} | " + " | ".join(cells) + " |")


def main() -> None:
    """Parse and go."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    one = actions.add_parser("prepare")
    one.add_argument("--source", type=Path, default=Path("../shared/data/cifar10"))
    one.add_argument("--out", type=Path, default=Path("data/cifar10"))
    two = actions.add_parser("run")
    two.add_argument("methods", nargs="+", choices=sorted(ENCODERS))
    two.add_argument("--data", type=Path, default=Path("data/cifar10"))
    two.add_argument("--out", type=Path, default=Path("runs/cifar"))
    two.add_argument("--budget", default="15min")
    two.add_argument("--seed", type=int, default=0)
    three = actions.add_parser("score")
    three.add_argument("methods", nargs="+", choices=sorted(ENCODERS))
    three.add_argument("--data", type=Path, default=Path("data/cifar10"))
    three.add_argument("--out", type=Path, default=Path("runs/cifar"))
    three.add_argument("--seed", type=int, default=0)
    four = actions.add_parser("table")
    four.add_argument("--out", type=Path, default=Path("runs/cifar"))
    args, extra = parser.parse_known_args()
    if args.action == "prepare":
        prepare(args.source, args.out)
    elif args.action == "run":
        run(args.methods, args.data, args.out, args.budget, args.seed, extra)
    elif args.action == "score":
        score(args.methods, args.data, args.out, args.seed)
    else:
        table(args.out)


if __name__ == "__main__":
    main()
