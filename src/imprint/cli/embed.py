"""`imprint embed`: one vector per image, in a file that other programs read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from imprint.cli import fields, overrides
from imprint.cli.parser import Parser
from imprint.cli.text import option_lines

PROG = "imprint embed"


def arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("--encoder", required=True, metavar="ENC", help="a run, an exported file, or timm:NAME")
    parser.add_argument("--data", required=True, metavar="SRC", help="the images; labels are kept where there are any")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="ends in .parquet or .npy")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the short options and those that say how features are made."""
    parser = Parser(PROG, "Write the embeddings of images to a file.")
    arguments(parser)
    known = fields.embedding_fields()
    rest, pairs = overrides.split(argv, parser.options())
    if "--help" in rest or "-h" in rest:
        print(parser.format_help() + "\n".join(["", "how features are made:", *option_lines(known)]))
        raise SystemExit(0)
    overrides.check_names(pairs, known, parser.options(), PROG)
    args = parser.parse(rest)
    args.pairs = pairs
    return args


def run(args: argparse.Namespace) -> int:
    """Embed and say where."""
    from imprint.api import embed
    from imprint.evals.protocol import ProtocolConfig

    config = overrides.apply_words(ProtocolConfig(), args.pairs, fields.embedding_fields())
    print(embed(args.encoder, args.data, args.out, config=config))
    return 0
