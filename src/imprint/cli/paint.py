"""`imprint paint`: what representations know, as samples of RCDM runs side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from imprint.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of rcdm runs, say one told the backbone and "
                        "one told the projector of an encoder")  # fmt: skip
    parser.add_argument("--data", required=True, nargs="+", metavar="SRC", help="the images: a source, or image files")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.html", help="page to write, or a .png picture")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="images to show [8]")
    parser.add_argument("--samples", type=int, default=4, metavar="N", help="samples of each image [4]")
    parser.add_argument(
        "--measured", type=int, default=64, metavar="N", help="images that measures are taken on, 0 for none [64]"
    )
    parser.add_argument("--steps", type=int, default=None, metavar="N", help="steps of the sampler [each run's own]")
    parser.add_argument("--side", type=int, default=64, metavar="PX", help="side of an image on the page [64]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    parser.add_argument("--workers", type=int, default=None, metavar="N", help="loader threads [measured]")


def run(args: argparse.Namespace) -> int:
    """Build the page and say where."""
    from imprint.viz.rcdm_page import build_rcdm_page

    data = args.data[0] if len(args.data) == 1 else tuple(args.data)
    settings = ("images", "samples", "measured", "steps", "side", "device", "workers")
    print(build_rcdm_page(args.runs, data, args.out, **{name: getattr(args, name) for name in settings}))
    return 0
