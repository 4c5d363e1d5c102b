"""`imprint look`: a picture of what one encoder sees, or of what several see, as a file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from imprint.cli import fields, overrides
from imprint.cli.parser import Parser
from imprint.cli.text import option_lines
from imprint.viz import looks

PROG = "imprint look"


def arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("kind", metavar="KIND", help=", ".join(kind.name for kind in looks.KINDS))
    parser.add_argument(
        "--encoder",
        required=True,
        nargs="+",
        metavar="ENC",
        help="who looks: a run, an exported file, timm:NAME, random:NAME; several are shown side by side",
    )
    parser.add_argument("--data", required=True, nargs="+", metavar="SRC", help="the images: a source, or image files")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.png", help="picture to write")
    rows = "\n".join(f"  {kind.name:<14} {kind.description}" for kind in looks.KINDS)
    parser.epilog = f"kinds:\n{rows}\n\n'{PROG} KIND --help' lists the kind's own options."


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the short options and those of the kind of picture."""
    parser = Parser(PROG, "Write a picture of what encoders see.")
    arguments(parser)
    rest, pairs = overrides.split(argv, parser.options())
    if "--help" in rest or "-h" in rest:
        kind = next((word for word in rest if not word.startswith("-")), None)
        own = option_lines(_fields(kind)) if kind is not None else []
        print(parser.format_help() + "\n".join(["", f"options of {kind}:", *own] if own else []))
        raise SystemExit(0)
    if rest and not rest[0].startswith("-"):  # a misspelt kind or option is named before a missing one
        overrides.check_names(pairs, _fields(rest[0]), parser.options(), f"{PROG} {rest[0]}")
    args = parser.parse(rest)
    overrides.check_names(pairs, _fields(args.kind), parser.options(), f"{PROG} {args.kind}")
    args.pairs = pairs
    return args


def run(args: argparse.Namespace) -> int:
    """Make the picture and say where."""
    from imprint.viz import look

    kind = looks.kind(args.kind)
    config = overrides.apply_words(kind.config(), args.pairs, _fields(args.kind))
    data = args.data[0] if len(args.data) == 1 else tuple(args.data)
    print(getattr(look, kind.function)(args.encoder, data, args.out, config))
    return 0


def _fields(kind: str) -> tuple[fields.Field, ...]:
    return fields.fields_of("imprint.viz.looks", looks.kind(kind).config.__name__)
