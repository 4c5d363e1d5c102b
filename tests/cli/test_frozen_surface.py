"""The command line is a promise: what is written here may grow, and nothing in it may go or change its meaning."""

from __future__ import annotations

import pytest

from imprint.cli.main import COMMANDS, command_parser
from imprint.core import errors

SURFACE: dict[str, tuple[list[str], list[str]]] = {
    "demo": ([], ["--out"]),
    "methods": (["NAME?"], ["--json", "--fidelity"]),
    "pretrain": (
        ["METHOD[/RECIPE]?"],
        [
            "--data+", "--val", "--out", "--encoder", "--image-size", "--batch-size", "--epochs", "--steps", "--budget",
            "--seed", "--workers", "--devices", "--precision", "--checkpoint-every", "--config", "--resume",
            "--extend-epochs",
        ],
    ),
    "evaluate": (["PROTOCOL"], ["--encoder!", "--train+!", "--test+", "--out"]),
    "embed": ([], ["--encoder!", "--data!", "--out!"]),
    "look": (["KIND"], ["--encoder+!", "--data+!", "--out!"]),
    "paint": (
        ["RUN+"],
        ["--data+!", "--out!", "--images", "--samples", "--measured", "--steps", "--side", "--device", "--workers"],
    ),
    "report": (["RUN"], ["--out"]),
    "compare": (["RUN+"], ["--out!"]),
    "export": (["RUN"], ["--format!", "--out!"]),
    "doctor": ([], []),
}  # fmt: skip
"""Command -> positional arguments and options; ? may be missing, + takes several, ! must be given."""

EXIT_CODES = {
    "ConfigError": 2,
    "DataError": 2,
    "CheckpointError": 2,
    "MissingExtra": 2,
    "HealthError": 3,
    "Preempted": 143,
}


def test_the_commands() -> None:
    assert list(COMMANDS) == list(SURFACE)


@pytest.mark.parametrize("command", SURFACE)
def test_the_options_of(command: str) -> None:
    positional, options = [], []
    for action in command_parser(command)._actions:
        several = "+" if action.nargs == "+" else ""
        if not action.option_strings:
            positional.append(f"{action.metavar}{'?' if action.nargs == '?' else several}")
        elif action.option_strings[-1] not in ("--help", "--debug"):
            options.append(f"{action.option_strings[-1]}{several}{'!' if action.required else ''}")
    assert (positional, options) == SURFACE[command]


@pytest.mark.parametrize("command", SURFACE)
def test_every_command_has_help_and_debug(command: str) -> None:
    parser = command_parser(command)
    assert {"--help", "--debug"} <= set(parser.options())
    for action in parser._actions:
        assert action.help, f"{command} {action.dest} does not say what it is"


def test_formats_and_precisions() -> None:
    from imprint.cli.export import FORMATS
    from imprint.cli.pretrain import PRECISIONS

    assert FORMATS == ("safetensors", "timm", "torchvision", "hf", "onnx")
    assert PRECISIONS == ("auto", "fp32", "bf16", "fp16")


@pytest.mark.parametrize(("name", "code"), EXIT_CODES.items())
def test_exit_codes(name: str, code: int) -> None:
    assert getattr(errors, name).exit_code == code


def test_every_error_has_a_frozen_exit_code() -> None:
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, errors.ImprintError):
            assert value.exit_code in (2, 3, 143)


def test_the_exporter_has_the_formats_that_the_command_offers() -> None:
    from imprint.cli.export import FORMATS
    from imprint.export import formats

    assert tuple(formats.FORMATS) == FORMATS
