"""`imprint export`: the backbone in another library's form, re-loaded and compared."""

from __future__ import annotations

import argparse
from pathlib import Path

from imprint.cli.parser import Parser
from imprint.cli.values import one_of

FORMATS = ("safetensors", "timm", "torchvision", "hf", "onnx")


def arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("run", metavar="RUN", help="a run, or any other encoder")
    parser.add_argument("--format", required=True, type=one_of("format", FORMATS), metavar="F", help="|".join(FORMATS))
    parser.add_argument("--out", required=True, type=Path, metavar="PATH", help="file or folder to write")


def run(args: argparse.Namespace) -> int:
    """Export, and say what was written, how well it agrees and how to load it."""
    from imprint.export.formats import export

    result = export(args.run, args.format, args.out)
    print(f"{result.path}\nread back: largest difference {result.max_abs_diff:.2g}\n\n{result.how_to_load}")
    return 0
