"""Dotted options: every field of a run's typed configuration, set from the command line or from Python."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from imprint.cli.fields import Field
from imprint.cli.parser import unknown_option
from imprint.core.errors import ConfigError, unknown
from imprint.core.progress import Epochs, Steps, parse_duration

if TYPE_CHECKING:
    from tyro.constructors import PrimitiveConstructorSpec, PrimitiveTypeInfo

    from imprint.train.config import RunConfig

Config = TypeVar("Config")
Pair = tuple[str, tuple[str, ...]]
"""A dotted name with hyphens and the words given for it."""


def split(argv: Sequence[str], short: Sequence[str]) -> tuple[list[str], list[Pair]]:
    """Part the words behind a command into those of its short options and dotted options with their values.

    An option that is not in `short` takes all words up to the next option.
    """
    rest: list[str] = []
    pairs: list[Pair] = []
    position = 0
    while position < len(argv):
        word = argv[position]
        name, equals, value = word.partition("=")
        position += 1
        if not name.startswith("--") or name in short or len(name) == 2:
            rest.append(word)
            continue
        values = [value] if equals else []
        while position < len(argv) and not argv[position].startswith("--"):
            values.append(argv[position])
            position += 1
        pairs.append((name.removeprefix("--").replace("_", "-"), tuple(values)))
    return rest, pairs


def check_names(pairs: Sequence[Pair], known: Sequence[Field], short: Sequence[str], prog: str) -> None:
    """Refuse names that are none of the known fields (`no-NAME` switches a boolean off).

    Raises:
        ConfigError: naming the nearest option, short or dotted.
    """
    names = {field.name: field for field in known}
    for name, _ in pairs:
        if name not in names and not _is_negated(name, names):
            raise unknown_option(f"--{name}", (*short, *(f"--{k}" for k in names)), prog)


def apply_words(config: Config, pairs: Sequence[Pair], known: Sequence[Field]) -> Config:
    """Return the configuration with fields set from words; types are those of the dataclasses, read by tyro.

    Args:
        config: a frozen dataclass; its values are the defaults.
        pairs: what was asked for.
        known: the fields of `config`, for messages.

    Raises:
        ConfigError: for a value that does not fit its field, naming the option and its type.
    """
    if not pairs:
        return config
    config = opened(config, [name for name, _ in pairs])
    changed = _parse(config, pairs, known)
    if changed is not None:
        return changed
    kinds = {field.name: field.kind for field in known}
    for name, values in pairs:
        if _parse(config, [(name, values)], known) is None:
            given = f"'{' '.join(values)}'" if values else "no value"
            wanted = kinds.get(name, "another type")
            hint = " (30ep is in epochs, 500st in optimizer steps)" if "duration" in wanted else ""
            raise ConfigError(f"--{name}: {given} does not fit; expected {wanted}{hint}.")
    raise ConfigError(f"these options do not go together: {', '.join(f'--{name}' for name, _ in pairs)}.")


def opened(config: Config, names: Sequence[str]) -> Config:
    """Return the configuration with the defaults of every absent group (None) that one of the names reaches into."""
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        inner = [n.partition(".")[2] for n in names if n.replace("-", "_").startswith(f"{field.name}.")]
        if not inner:
            continue
        value = getattr(config, field.name)
        if value is None:
            members = typing.get_args(typing.get_type_hints(type(config))[field.name])
            group = next((m for m in members if dataclasses.is_dataclass(m) and m not in (Epochs, Steps)), None)
            value = group() if isinstance(group, type) else None
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            config = dataclasses.replace(config, **{field.name: opened(value, inner)})  # type: ignore[type-var]
    return config


def reaches(config: Any, name: str) -> bool:
    """Tell whether a dotted name is a field of this configuration, in groups that are not absent."""
    value = config
    *groups, last = name.replace("-", "_").split(".")
    for group in groups:
        value = getattr(value, group, None)
    return dataclasses.is_dataclass(value) and last in {field.name for field in dataclasses.fields(value)}


def apply_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Return the configuration with fields set from Python values.

    Keys are field names, dotted (`"optim.lr.base"`) or with a nested mapping as value (`optim={"lr": {"base": 1e-3}}`).

    Raises:
        ConfigError: for an unknown key (naming the nearest) or a value of another type.
    """
    from imprint.core.codec import from_json, to_json

    data = to_json(config)
    for key, value in values.items():
        _set(data, key.replace("-", "_").split("."), to_json(value), key)
    return from_json(type(config), data, types_of={"method": type(config.method)})


def _set(data: dict[str, Any], path: list[str], value: Any, key: str) -> None:
    *parents, last = path
    for parent in parents:
        inner = data.get(parent)
        if not isinstance(inner, dict):
            raise unknown(f"group of fields in '{key}'", parent, [k for k in data if isinstance(data[k], dict)])
        data = inner
    if isinstance(value, Mapping) and isinstance(data.get(last), dict):
        for name, item in value.items():
            _set(data[last], [str(name)], item, f"{key}.{name}")
    else:
        data[last] = value


def _is_negated(name: str, known: Mapping[str, Field]) -> bool:
    field = known.get(name.removeprefix("no-"))
    return name.startswith("no-") and field is not None and field.kind == "bool"


def _words(pairs: Sequence[Pair], known: Sequence[Field]) -> list[str]:
    """Return the words for tyro: a bare switch means True, `no-` in front of one means False."""
    fields = {field.name: field for field in known}
    words: list[str] = []
    for name, values in pairs:
        if _is_negated(name, fields) and name not in fields:
            words += [f"--{name.removeprefix('no-')}", "False"]
        elif name in fields and "bool" in fields[name].kind:
            words += [f"--{name}", *(tuple(value.capitalize() for value in values) or ("True",))]
        else:
            words += [f"--{name}", *values]
    return words


def _parse(config: Config, pairs: Sequence[Pair], known: Sequence[Field]) -> Config | None:
    import tyro

    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_duration_rule)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # what is wrong is said by us, in one paragraph
            return tyro.cli(
                type(config),
                default=config,
                args=_words(pairs, known),
                console_outputs=False,
                registry=registry,
                config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
            )
    except SystemExit:
        return None


def _duration_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Read durations, which are a union of two classes to tyro, from one word."""
    from tyro.constructors import PrimitiveConstructorSpec

    members = set(typing.get_args(info.type) or (info.type,))
    if not members & {Epochs, Steps} or members - {Epochs, Steps, type(None)}:
        return None

    def read(words: list[str]) -> Epochs | Steps | None:
        if words[0] == "None" and type(None) in members:
            return None
        try:
            return parse_duration(words[0])
        except ConfigError as problem:
            raise ValueError(str(problem)) from None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="DURATION",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, tuple(members)),
        str_from_instance=lambda value: [str(value)],
    )
