"""Frozen dataclasses to JSON values and back, strictly: an unknown key or a wrong type is an error that names it."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from imprint.core.errors import ConfigError, nearest
from imprint.core.progress import Epochs, Steps, parse_duration

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Return `value` as JSON-ready data: dataclasses become objects, durations become `30ep` or `500st`."""
    if isinstance(value, (Epochs, Steps)):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(v) for v in value]
    return value


def from_json(cls: type[T], data: Any, where: str = "config", types_of: Mapping[str, type] | None = None) -> T:
    """Build the dataclass `cls` from JSON data.

    Args:
        cls: a dataclass.
        data: an object with some or all of its fields; missing ones take their defaults.
        where: dotted path used in messages.
        types_of: overrides for declared field types (the method's own config class for `method`).

    Raises:
        ConfigError: for an unknown key (naming the nearest known one), a missing required key, or a wrong type.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected an object, got {type(data).__name__}.")
    hints = {**_hints(typing.cast(Any, cls)), **(types_of or {})}
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, item in data.items():
        if key not in fields:
            near = nearest(key, fields)
            hint = f" Did you mean '{near}'?" if near else f" Known: {', '.join(fields)}."
            raise ConfigError(f"{where}: unknown key '{key}'.{hint}")
        values[key] = _decode(hints[key], item, f"{where}.{key}")
    missing = [
        name
        for name, f in fields.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: missing {', '.join(missing)}.")
    return cls(**values)


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _decode(hint: Any, item: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return item
    if origin in (typing.Union, types.UnionType):
        return _decode_union(args, item, where)
    if origin is typing.Literal:
        if item not in args:
            near = nearest(str(item), [str(a) for a in args])
            hint_text = f" Did you mean '{near}'?" if near else ""
            raise ConfigError(f"{where}: '{item}' is not one of {', '.join(map(str, args))}.{hint_text}")
        return item
    if origin is tuple:
        if not isinstance(item, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {type(item).__name__}.")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_decode(args[0], v, f"{where}[{i}]") for i, v in enumerate(item))
        if len(args) != len(item):
            raise ConfigError(f"{where}: expected {len(args)} values, got {len(item)}.")
        return tuple(_decode(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, item, strict=True)))
    if origin in (dict, Mapping):
        return {k: _decode(args[1], v, f"{where}.{k}") for k, v in item.items()}
    if hint in (Epochs, Steps):
        duration = parse_duration(str(item))
        if not isinstance(duration, hint):
            raise ConfigError(f"{where}: expected {hint.__name__}, got '{item}'.")
        return duration
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), item, where)
    if hint is float and isinstance(item, (int, float)) and not isinstance(item, bool):
        return float(item)
    if isinstance(hint, type) and isinstance(item, hint) and (hint is bool or not isinstance(item, bool)):
        return item
    raise ConfigError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {item!r}.")


def _decode_union(args: tuple[Any, ...], item: Any, where: str) -> Any:
    if item is None and type(None) in args:
        return None
    if {Epochs, Steps} <= set(args) and isinstance(item, str):
        return parse_duration(item)
    reasons: list[str] = []
    for arg in args:
        if arg is type(None):
            continue
        try:
            return _decode(arg, item, where)
        except ConfigError as error:
            reasons.append(str(error))
    raise ConfigError(reasons[0] if len(reasons) == 1 else f"{where}: {item!r} fits none of the accepted types.")
