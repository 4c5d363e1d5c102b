"""`imprint report`: the page of a run, or of one evaluation."""

from __future__ import annotations

import argparse
from pathlib import Path

from imprint.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="folder of the run, or a report that imprint evaluate wrote (FILE.json)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.html", help="where to write it (RUN/report.html, or beside the FILE.json)"
    )


def run(args: argparse.Namespace) -> int:
    """Build the page and say where."""
    from imprint.viz.evaluation_page import build_evaluation_page
    from imprint.viz.report import build_report

    build = build_evaluation_page if args.run.suffix == ".json" and not args.run.is_dir() else build_report
    print(build(args.run, args.out))
    return 0
