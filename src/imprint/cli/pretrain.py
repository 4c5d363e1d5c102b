"""`imprint pretrain`: a recipe, a stored configuration, or a run to continue."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imprint.cli import fields, overrides, resolve, staged
from imprint.cli.parser import Parser
from imprint.cli.text import option_lines
from imprint.cli.values import at_least, budget, cadence, one_of
from imprint.core.errors import ConfigError
from imprint.core.progress import Epochs

if TYPE_CHECKING:
    from imprint.train.config import RunConfig

PROG = "imprint pretrain"
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
USAGE = """imprint pretrain METHOD[/RECIPE] --data SRC --out RUN [OPTIONS]
       imprint pretrain --config RUN/config.json|RUN/stages.json [--out RUN2]
       imprint pretrain --resume RUN [--extend-epochs N]"""
SOURCES = "SRC is a folder, a file list, a shard pattern, video files, hf:NAME, or a bundled name (photos)."


def arguments(parser: Parser) -> None:
    """Declare the short options."""
    parser.usage = USAGE
    parser.add_argument("method", nargs="?", metavar="METHOD[/RECIPE]", help="see 'imprint methods'; RECIPE is small")
    parser.add_argument("--data", nargs="+", metavar="SRC", help="images to learn from; several are joined")
    parser.add_argument("--val", metavar="SRC", help="labelled images for the probes during training")
    parser.add_argument("--out", type=Path, metavar="RUN", help="folder of the run; must be new or empty")
    parser.add_argument("--encoder", metavar="NAME", help="a timm name, timm:NAME, a run, or an exported file")
    parser.add_argument("--image-size", type=at_least(1), metavar="N", help="side of the largest view in pixels")
    parser.add_argument("--batch-size", type=at_least(1), metavar="N", help="images per step over all processes")
    parser.add_argument("--epochs", type=at_least(0, float), metavar="N", help="length in passes over the images")
    parser.add_argument("--steps", type=at_least(1), metavar="N", help="length in optimizer steps")
    parser.add_argument("--budget", type=budget, metavar="TIME", help="length in time: 90s, 10min, 1h")
    parser.add_argument("--seed", type=at_least(0), metavar="N", help="the one seed of the run")
    parser.add_argument("--workers", type=at_least(0), metavar="N", help="threads that make views, per process")
    parser.add_argument("--devices", type=at_least(1), metavar="N", help="processes on this machine")
    parser.add_argument("--precision", type=one_of("precision", PRECISIONS), metavar="P", help="|".join(PRECISIONS))
    parser.add_argument(
        "--checkpoint-every", type=cadence, metavar="N", help="steps between checkpoints; 2ep counts epochs"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="repeat the run that wrote this config.json")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue a run that was stopped")
    parser.add_argument(
        "--extend-epochs", type=at_least(0, float), metavar="N", help="with --resume: train a finished run further"
    )
    parser.epilog = f"{SOURCES}\nEvery field of the configuration is an option by its dotted name, for example\n" + (
        "--method.temperature 0.2 --optim.lr.base 1e-3 --encoder.drop-path 0.1 --data.bad-limit 0.1;\n"
        "durations are 30ep or 500st. 'imprint pretrain METHOD --help' lists them all."
    )


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse short and dotted options; names are checked against the method's fields before anything heavy loads."""
    parser = Parser(PROG, "Pretrain a backbone on images without labels.")
    arguments(parser)
    rest, pairs = overrides.split(argv, parser.options())
    if "--help" in rest or "-h" in rest:
        method = next((word.partition("/")[0] for word in rest if not word.startswith("-")), None)
        print(parser.format_help() + (field_help(method) if method is not None else ""))
        raise SystemExit(0)
    args = parser.parse(rest, also_known=[f"--{name}" for name in fields.names()])
    check_start(args)
    method = None
    if args.method is not None:
        method = args.method.partition("/")[0]
    elif args.config is not None:
        stored = resolve.read_json(args.config)
        method = str(stored["stages"][0]["name"] if "stages" in stored else stored["name"])
    staged.check_names(pairs, method, parser.options(), PROG)
    check_form(args, bool(pairs))
    args.pairs = pairs
    return args


def check_start(args: argparse.Namespace) -> None:
    """Refuse a line that starts from nothing, or from two things.

    Raises:
        ConfigError: naming the three forms.
    """
    starts = [name for name in ("method", "config", "resume") if getattr(args, name) is not None]
    if len(starts) != 1:
        problem = "nothing says what to train" if not starts else "a run starts from one thing only"
        raise ConfigError(f"{problem}; give METHOD (put it first), --config FILE or --resume RUN. See '{PROG} --help'.")


def check_form(args: argparse.Namespace, dotted: bool) -> None:
    """Refuse what does not belong to the form that was started.

    Raises:
        ConfigError: saying which option has no place there, or is missing.
    """
    if args.extend_epochs is not None and args.resume is None:
        raise ConfigError("--extend-epochs trains a finished run further; it needs --resume RUN.")
    if args.resume is not None:
        extra = [name for name in (*resolve.SHORT, "out") if getattr(args, name) is not None]
        if extra or dotted:
            named = f"--{extra[0].replace('_', '-')}" if extra else "a dotted option"
            raise ConfigError(
                f"--resume continues a run with its own configuration, so {named} has no place beside it; "
                f"start a new run from it with --config {args.resume / 'config.json'}."
            )
    if args.method is not None:
        for name, what in (("data", "--data SRC, the images to learn from"), ("out", "--out RUN, where to write")):
            if getattr(args, name) is None:
                raise ConfigError(f"missing {what}. See '{PROG} --help'.")


def run(args: argparse.Namespace) -> int:
    """Train, build the report, and say where things lie."""
    if args.resume is not None:
        extend = Epochs(args.extend_epochs) if args.extend_epochs is not None else None
        return train_and_report(None, args.resume, resume=True, extend=extend)
    if args.out is not None:
        resolve.require_free(args.out)
    if args.config is None:
        stages = resolve.recipe_stages(args.method, image_size=args.image_size)
    else:
        stages = resolve.load_stages(args.config)
    stages = staged.with_short(stages, staged.short_of(args))
    stages = staged.apply_words(stages, args.pairs, arguments, PROG)
    config = stages[0] if len(stages) == 1 else stages
    folder = args.config if args.config is None or args.config.is_dir() else args.config.parent
    return train_and_report(config, args.out or resolve.free_folder(folder))


def train_and_report(
    config: RunConfig | tuple[RunConfig, ...] | None, out: Path, *, resume: bool = False, extend: Epochs | None = None
) -> int:
    """Run the training and leave the report beside it."""
    from imprint.train.entry import pretrain_run

    pretrain_run(config, out, resume=resume, extend=extend)
    if resolve.is_main():
        from imprint.viz.report import build_report

        folder = out.expanduser()
        report = build_report(folder)
        print(f"run      {folder}\nencoder  {folder / 'encoder.safetensors'}\nreport   {report}")
    return 0


def field_help(method: str) -> str:
    """Return the dotted options of a method's runs as text."""
    intro = f"dotted options of {method} (defaults are the paper's or the program's; a recipe may set others):"
    lines = ["", intro, *option_lines(*fields.fields(method))]
    several = fields.staged_recipes(method)
    if several:
        lines += [
            "",
            f"stages: {', '.join(several)} of {method} train in several stages. --stage-N.OPTION (dotted or short, for "
            "example",
            "--stage-1.epochs 100 --stage-2.optim.lr.base 0.1) addresses one; without prefix an option goes to every "
            "stage",
            "that has the field, and --budget is split by --stage-N.share.",
        ]
    return "\n".join(lines)
