"""Every error Imprint raises on purpose: what was wrong, where, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ImprintError(Exception):
    """An error with a message written for the user; the command line prints it without a traceback."""

    exit_code: int = 2


class ConfigError(ImprintError):
    """An option, a name or a combination of options that cannot work."""


class DataError(ImprintError):
    """Input data that cannot be used: missing, unreadable, or too much of it damaged."""


class BadImage(DataError):
    """One sample that cannot be decoded; the loader quarantines it and goes on.

    `reason` is one of `corrupt`, `truncated`, `empty`, `not-an-image`, `too-large`, `unsupported`, `unreadable`.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[BadImage], tuple[str, str]]:
        return type(self), (self.reason, self.detail)


class CheckpointError(ImprintError):
    """A checkpoint that is missing, damaged, or of another model."""


class HealthError(ImprintError):
    """A run stopped because its numbers stopped making sense (non-finite loss, collapse on request)."""

    exit_code = 3


class Preempted(ImprintError):
    """The run was asked to stop (SIGTERM, Ctrl-C), wrote a checkpoint and left."""

    exit_code = 143


class MissingExtra(ImprintError):
    """An optional dependency is absent; the message names the extra that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}'. Install it with: pip install 'imprint[{extra}]'")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `name`, or None when nothing is close."""
    known = list(known)
    folded = {k.lower().replace("-", "_"): k for k in known}
    hits = difflib.get_close_matches(name.lower().replace("-", "_"), list(folded), n=1, cutoff=0.5)
    return folded[hits[0]] if hits else None


def unknown(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """Build the error for an unknown name: it names the nearest known one, and all of them when they are few."""
    known = sorted(known)
    near = nearest(name, known)
    message = f"unknown {kind} '{name}'."
    if near is not None:
        message += f" Did you mean '{near}'?"
    if len(known) <= 40:
        message += f" Known: {', '.join(known)}."
    return ConfigError(message)
