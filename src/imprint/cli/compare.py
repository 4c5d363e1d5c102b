"""`imprint compare`: several runs side by side, and public models known from report files."""

from __future__ import annotations

import argparse
from pathlib import Path

from imprint.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folders of the runs; FILE.json of imprint evaluate for models that are no runs",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.html", help="where to write the page")


def run(args: argparse.Namespace) -> int:
    """Build the page and say where."""
    from imprint.viz.compare import build_compare

    print(build_compare(args.runs, args.out))
    return 0
