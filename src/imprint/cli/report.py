"""`imprint report`: the page of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from imprint.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")


def run(args: argparse.Namespace) -> int:
    """Build the report and say where."""
    from imprint.viz.report import build_report

    print(build_report(args.run))
    return 0
