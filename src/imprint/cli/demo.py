"""`imprint demo`: a few minutes on bundled photographs, and what they were worth."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from imprint.cli import resolve
from imprint.cli.parser import Parser
from imprint.core.progress import Epochs

if TYPE_CHECKING:
    from imprint.backbones.encoder import Encoder
    from imprint.evals.report import Report
    from imprint.train.config import RunConfig

RECIPE = "simclr/small"
IMAGE_SIZE = 32
LAYERS = (1, 1, 1, 1)
CHANNELS = (32, 64, 128, 256)
BATCH_SIZE = 128
SECONDS = 120.0
TRAIN, TEST = "photos:train", "photos:test"
K = 20


def arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the run (default: runs/demo, or runs/demo-2 and so on)"
    )


def config() -> RunConfig:
    """Return the demo's configuration: a small CNN that two CPU cores train in two minutes."""
    from imprint.backbones.arch import Arch

    base = resolve.recipe_config(RECIPE, image_size=IMAGE_SIZE)
    encoder = dataclasses.replace(base.encoder, stem="half", arch=Arch(layers=LAYERS, channels=CHANNELS))
    short = {"data": TRAIN, "val": TEST, "batch_size": BATCH_SIZE, "budget": SECONDS}
    timed = resolve.with_short(dataclasses.replace(base, encoder=encoder), short)
    return dataclasses.replace(timed, checkpoint_every=Epochs(10), probe_every=None)


def untrained(run_config: RunConfig) -> Encoder:
    """Return the encoder as it is before the first step."""
    import torch

    from imprint.backbones.build import build_encoder
    from imprint.core.rng import seed_of

    torch.manual_seed(seed_of(run_config.seed, "weights"))
    given = run_config.encoder
    settings = {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
    return build_encoder(**{**settings, "channels": given.channels or 3})


def run(args: argparse.Namespace) -> int:
    """Measure pixels and the untrained encoder, train, measure again, and say where the report lies."""
    out = args.out if args.out is not None else resolve.free_folder(Path("runs") / "demo")
    resolve.require_free(out)
    from imprint.data.sources import open_source

    bank, test = open_source(TRAIN), open_source(TEST)
    settings = config()
    print(
        f"Bundled photographs: {len(bank)} training tiles, {len(test)} test tiles of {len(bank.classes)} photographs, "
        "cut from regions that do not overlap.\n"
        f"Pretraining {settings.encoder.name} with {settings.name} on {IMAGE_SIZE} x {IMAGE_SIZE} views, "
        f"without labels, for {SECONDS:.0f} seconds.",
        flush=True,
    )
    before = {"raw pixels": knn("pixels"), "untrained encoder": knn(untrained(settings))}

    from imprint.train.entry import pretrain_run

    result = pretrain_run(settings, out, resume=False, extend=None)
    reports = {**before, "trained encoder": knn(result.encoder())}
    for name, report in reports.items():
        report.save(result.path / "evals" / f"knn-{name.replace(' ', '-')}.json")

    from imprint.viz.report import build_report

    page = build_report(result.path)
    print(summary(reports))
    print(f"\nreport   {page}\nencoder  {result.encoder_path}")
    return 0


def knn(encoder: str | Encoder) -> Report:
    """Return the kNN accuracy of the test tiles among the training tiles."""
    from imprint.evals.evaluate import evaluate

    return evaluate("knn", encoder, TRAIN, TEST, ks=(K,), image_size=IMAGE_SIZE)


def summary(reports: dict[str, Report]) -> str:
    """Return the accuracies as aligned lines."""
    lines = [f"\nWhich photograph is a test tile from? {K} nearest neighbours among the training tiles, top-1:"]
    width = max(map(len, reports))
    for name, report in reports.items():
        metric = report.metrics[report.main]
        interval = (
            f"   [{metric.low:.1f}, {metric.high:.1f}]" if metric.low is not None and metric.high is not None else ""
        )
        lines.append(f"  {name:<{width}}  {metric.value:5.1f} %{interval}")
    return "\n".join(lines)
