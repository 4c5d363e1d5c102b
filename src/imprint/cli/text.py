"""Options of a configuration as help text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from imprint.cli.fields import Field, Group

_COLUMN, _WIDTH = 42, 78


def option_lines(fields: Sequence[Field], groups: Sequence[Group] = ()) -> list[str]:
    """Return one entry per field under the name of its top group; a nested group (a schedule) is one entry."""
    nested = {group.name: group for group in groups if "." in group.name}
    lines: list[str] = []
    shown: set[str] = set()
    heading = ""
    for field in fields:
        top = field.name.split(".", 1)[0] if "." in field.name else "run"
        if groups and top != heading:
            heading = top
            lines += ["", f"{top}:"]
        if field.group not in nested:
            lines += _entry(f"--{field.name} {field.kind}", field.help, field.default)
        elif field.group not in shown:
            shown.add(field.group)
            group = nested[field.group]
            members = ", ".join(f.name.rsplit(".", 1)[-1] for f in fields if f.group == field.group)
            lines += _entry(f"--{group.name}.FIELD {group.kind}", f"{group.help} FIELD: {members}.", group.default)
    return lines


def _entry(option: str, text: str, default: str) -> list[str]:
    body = textwrap.wrap(text + (f" [{default}]" if default else ""), _WIDTH) or [""]
    head = f"  {option}"
    if len(head) < _COLUMN:
        return [f"{head:<{_COLUMN}}{body[0]}", *(" " * _COLUMN + line for line in body[1:])]
    return [head, *(" " * _COLUMN + line for line in body)]
