"""argparse with Imprint's manners: no abbreviations, errors as one paragraph, the nearest option for a typo."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from imprint.core.errors import ConfigError, nearest


class Parser(argparse.ArgumentParser):
    """A parser of one command; what it refuses is a ConfigError, never an exit."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print and exit on."""
        raise ConfigError(f"{message.removesuffix('.')}. See '{self.prog} --help'.")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # The base class turns only its own error types into a message with the option's name.
        try:
            return super()._get_values(action, arg_strings)
        except ConfigError as problem:
            name = action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)
            raise ConfigError(f"{name}: {problem}") from None

    def options(self) -> tuple[str, ...]:
        """Return every long option this parser knows."""
        return tuple(o for a in self._actions for o in a.option_strings if o.startswith("--"))

    def parse(self, argv: Sequence[str], also_known: Iterable[str] = ()) -> argparse.Namespace:
        """Parse all of `argv`.

        Args:
            argv: the words after the command.
            also_known: further options to choose from when a typo is answered.

        Raises:
            ConfigError: for missing, unknown or unreadable arguments.
        """
        for word in argv:
            name = word.split("=", 1)[0]
            if name.startswith("--") and len(name) > 2 and name not in self.options():
                raise unknown_option(name, (*self.options(), *also_known), self.prog)
        args, extra = self.parse_known_args(list(argv))
        if extra:
            raise ConfigError(f"unexpected argument '{extra[0]}'. See '{self.prog} --help'.")
        return args


def unknown_option(name: str, known: Iterable[str], prog: str) -> ConfigError:
    """Build the error for an option nobody knows; it names the nearest one."""
    bare = {k.removeprefix("--"): k for k in known}
    near = nearest(name.removeprefix("--"), bare)
    if near is None:  # a field typed without its group: --student-temp for --method.student-temp
        near = nearest(name.removeprefix("--"), [b.rsplit(".", 1)[-1] for b in bare])
        near = next((b for b in bare if near is not None and b.rsplit(".", 1)[-1] == near), None)
    hint = f" Did you mean '{bare[near]}'?" if near is not None else ""
    return ConfigError(f"unknown option '{name}'.{hint} See '{prog} --help'.")
