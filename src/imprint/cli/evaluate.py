"""`imprint evaluate`: a protocol, an encoder, labelled images."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imprint.cli import fields, overrides
from imprint.cli.parser import Parser
from imprint.cli.text import option_lines
from imprint.evals import catalog

if TYPE_CHECKING:
    from imprint.evals.report import Report

PROG = "imprint evaluate"
ENCODERS = (
    "ENC is a run, an exported file, timm:NAME, random:NAME (untrained), hf:FOLDER (a local CLIP or SigLIP) or pixels "
    "(no encoder at all)."
)


def arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("protocol", metavar="PROTOCOL", help=", ".join(catalog.names()))
    parser.add_argument("--encoder", required=True, metavar="ENC", help="what is judged")
    parser.add_argument(
        "--train",
        required=True,
        nargs="+",
        metavar="SRC",
        help="bank of kNN, training set of a probe, or the one source",
    )
    parser.add_argument("--test", nargs="+", metavar="SRC", help="what is scored, where there are two sources")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the report as JSON (a run's: RUN/evals)")
    width = max(map(len, catalog.names()))
    rows = "\n".join(f"  {row.name:<{width}}  {row.description}" for row in catalog.CATALOG)
    parser.epilog = f"protocols:\n{rows}\n\n{ENCODERS}\n'{PROG} PROTOCOL --help' lists the protocol's own options."


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the short options and those of the protocol's configuration."""
    parser = Parser(PROG, "Judge an encoder by a protocol.")
    arguments(parser)
    rest, pairs = overrides.split(argv, parser.options())
    if "--help" in rest or "-h" in rest:
        protocol = next((word for word in rest if not word.startswith("-")), None)
        own = option_lines(fields.protocol_fields(protocol)) if protocol is not None else []
        print(parser.format_help() + "\n".join(["", f"options of {protocol}:", *own] if own else []))
        raise SystemExit(0)
    if rest and not rest[0].startswith("-"):  # a misspelt protocol or option is named before a missing one
        overrides.check_names(pairs, fields.protocol_fields(rest[0]), parser.options(), f"{PROG} {rest[0]}")
    args = parser.parse(rest)
    overrides.check_names(pairs, fields.protocol_fields(args.protocol), parser.options(), f"{PROG} {args.protocol}")
    args.pairs = pairs
    return args


def run(args: argparse.Namespace) -> int:
    """Evaluate and print the numbers."""
    from imprint.evals.evaluate import evaluate
    from imprint.evals.report import run_report_path

    defaults = catalog.protocol_class(args.protocol).Config()
    config = overrides.apply_words(defaults, args.pairs, fields.protocol_fields(args.protocol))
    changed = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != getattr(defaults, field.name)
    }
    train = one_or_more(args.protocol, args.train)
    test = one_or_more(args.protocol, args.test) if args.test else None
    report = evaluate(args.protocol, args.encoder, train, test, args.out, **changed)
    print(table(report))
    out = args.out
    if out is None and (out := run_report_path(args.encoder, report)) is not None:
        try:
            report.save(out)
        except OSError as error:  # a run of somebody else's: the numbers stand above
            print(f"not kept in the run: {error.strerror or error}: {out}; --out FILE.json writes it elsewhere")
            return 0
    if out is not None:
        print(f"written to {out} (imprint report {shlex.quote(str(out))} makes a page of it)")
    return 0


def one_or_more(protocol: str, words: list[str]) -> str | tuple[str, ...]:
    """Return the only SRC as a word and several as a tuple; a protocol that takes a list always gets one."""
    if len(words) == 1 and catalog.row(protocol).takes != "several":
        return words[0]
    return tuple(words)


def table(report: Report) -> str:
    """Return the metrics of a report as aligned lines, the main one marked."""
    lines = [f"{report.protocol} of {report.encoder}"]
    width = max(map(len, report.metrics), default=0)
    for name, metric in report.metrics.items():
        interval = (
            f"  [{metric.low:.2f}, {metric.high:.2f}]" if metric.low is not None and metric.high is not None else ""
        )
        count = f"  n={metric.n}" if metric.n is not None else ""
        mark = "*" if name == report.main else " "
        lines.append(f"{mark} {name:<{width}}  {metric.value:8.3f}{interval}{count}")
    return "\n".join(lines)
