"""The `imprint` program: find the command, parse its options, run it, and turn errors into one paragraph."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence
from typing import Protocol, cast

from imprint.cli.parser import Parser
from imprint.core.errors import ImprintError, unknown

COMMANDS: dict[str, str] = {
    "demo": "pretrain on bundled photographs in a few minutes and show what was gained",
    "methods": "list the methods, their papers and how closely they are followed",
    "pretrain": "pretrain a backbone on a folder of images",
    "evaluate": "measure an encoder with a protocol (kNN, linear probe, label-free ranks, ...)",
    "embed": "write the embeddings of images to a file",
    "look": "write a picture of what encoders see (attention, patch features, matches, maps, ...)",
    "paint": "show what representations know: samples of rcdm runs side by side",
    "report": "build the HTML report of a run",
    "compare": "put several runs side by side in one HTML file",
    "export": "write a run's backbone for another library and check it there",
    "doctor": "look at this machine: what works, what is slow, what is missing",
}
"""Command -> what it does. The module of a command is `imprint.cli.<command>`."""

INTERRUPTED = 130
"""Exit code after Ctrl-C where nothing was there to checkpoint (128 + SIGINT)."""


class Command(Protocol):
    """What a module of a command offers."""

    def arguments(self, parser: Parser) -> None:
        """Declare the options."""

    def run(self, args: Namespace) -> int:
        """Do it and return the exit code."""


def command_module(name: str) -> Command:
    """Import the module of a command.

    Raises:
        ConfigError: for an unknown command, naming the nearest.
    """
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    return cast(Command, importlib.import_module(f"imprint.cli.{name}"))


def command_parser(name: str) -> Parser:
    """Return the parser of a command."""
    parser = Parser(f"imprint {name}", f"{COMMANDS[name][0].upper()}{COMMANDS[name][1:]}.")
    command_module(name).arguments(parser)
    return parser


def usage() -> str:
    """Return the text of `imprint --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: imprint COMMAND [OPTIONS]",
            "",
            "Turn unlabeled images into a vision backbone.",
            "",
            "commands:",
            *lines,
            "",
            "'imprint COMMAND --help' lists the options of a command; --debug shows the traceback of an error.",
            "Exit codes: 0 done, 2 bad input or options, 3 stopped by health checks, 143 checkpointed after SIGTERM.",
        ]
    )


def dispatch(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors are raised."""
    words = [word for word in argv if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"imprint {version('imprint')}")
        return 0
    name = words[0]
    module = command_module(name)
    prepare = getattr(module, "parse", None)
    args = prepare(words[1:]) if prepare is not None else command_parser(name).parse(words[1:])
    return module.run(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Args:
        argv: the words after `imprint`; None takes the process's own.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        code = dispatch(words)
        sys.stdout.flush()  # here, where a reader that left is understood, not while the interpreter shuts down
        return code
    except SystemExit as leaving:  # argparse after --help
        return leaving.code if isinstance(leaving.code, int) else 0
    except BrokenPipeError:  # the reader left (`imprint methods | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        message, code = explain(error)
        print(message, file=sys.stderr)
        return code


def explain(error: BaseException) -> tuple[str, int]:
    """Return what to say about an error, as one paragraph, and the exit code."""
    if isinstance(error, ImprintError):
        return f"error: {paragraph(str(error))}", error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted.", INTERRUPTED
    if isinstance(error, (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)):
        return f"error: {error.strerror}: {error.filename}.", 2
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"error: {error.strerror or error}{where} (--debug shows the traceback).", 1
    detail = paragraph(str(error)) or "no message"
    return f"error: unexpected {type(error).__name__}: {detail} (--debug shows the traceback).", 1


def paragraph(text: str) -> str:
    """Return text with its line breaks and runs of blanks folded into single blanks."""
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
