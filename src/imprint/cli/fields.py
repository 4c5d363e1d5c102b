"""The dotted options of a run, read from the source of its configuration classes.

`imprint pretrain dino --help` and the answer to a typo need names, types, defaults and one line each of every field.
Importing the classes would import torch, which takes longer than a person waits for help; their syntax trees say the
same in milliseconds. Types are shown here and enforced by `overrides`, which uses the classes themselves.
"""

from __future__ import annotations

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path

import imprint
from imprint.evals import catalog as protocols
from imprint.methods import catalog

FIXED = ("name", "recipe", "provenance")
"""Fields that say where a configuration came from; no option sets them."""

_DURATIONS = ("Duration", "Epochs", "Steps")


@dataclass(frozen=True)
class Field:
    """One settable field.

    Attributes:
        name: dotted, with hyphens, as typed behind `--`.
        kind: its type, as written in the source.
        default: its default as written in the source, or "" where the recipe must say.
        help: its line in the class's docstring.
        group: dotted name of the field that holds it, "" at the top.
    """

    name: str
    kind: str
    default: str
    help: str
    group: str


@dataclass(frozen=True)
class Group:
    """A field that holds fields, such as `optim.lr`; same attributes as Field."""

    name: str
    kind: str
    default: str
    help: str


@functools.cache
def fields(method: str | None = None) -> tuple[tuple[Field, ...], tuple[Group, ...]]:
    """Return all settable fields of a run of `method`, in order, and the groups they stand in.

    Args:
        method: catalogue name; None leaves the method's own fields out.

    Raises:
        ConfigError: for an unknown method.
    """
    own = None
    if method is not None:
        row = catalog.row(method)
        own = _config_class(f"imprint.methods.{row.name}", row.cls) or ("imprint.methods.base", "MethodConfig")
    found: list[Field] = []
    groups: list[Group] = []
    _collect("imprint.train.config", "RunConfig", "", own, found, groups)
    return tuple(found), tuple(groups)


@functools.cache
def protocol_fields(protocol: str) -> tuple[Field, ...]:
    """Return the settable fields of an evaluation protocol.

    Raises:
        ConfigError: for an unknown protocol.
    """
    row = protocols.row(protocol)
    module, name = _config_class(f"imprint.evals.{row.name}", row.cls) or ("imprint.evals.protocol", "ProtocolConfig")
    found: list[Field] = []
    _collect(module, name, "", None, found, [])
    return tuple(found)


def embedding_fields() -> tuple[Field, ...]:
    """Return the settable fields of `imprint embed`: what all protocols share."""
    found: list[Field] = []
    _collect("imprint.evals.protocol", "ProtocolConfig", "", None, found, [])
    return tuple(found)


def names(method: str | None = None) -> tuple[str, ...]:
    """Return the dotted names of all settable fields of a run of `method`."""
    return tuple(field.name for field in fields(method)[0])


def _collect(
    module: str,
    name: str,
    prefix: str,
    method: tuple[str, str] | None,
    found: list[Field],
    groups: list[Group],
) -> None:
    for field_name, annotation, default, line in _own_fields(module, name):
        if not prefix and field_name in FIXED:
            continue
        dotted = f"{prefix}{field_name}".replace("_", "-")
        target = method if dotted == "method" else _struct(module, annotation)
        if target is not None:
            groups.append(Group(dotted, target[1], default, line))
            _collect(*target, f"{dotted}.", method, found, groups)
        elif dotted != "method":
            kind = _kind(module, annotation)
            found.append(Field(dotted, kind, default, line, prefix.removesuffix(".")))


@functools.cache
def _tree(module: str) -> ast.Module:
    base = Path(imprint.__file__).parent.joinpath(*module.split(".")[1:])
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def _find(module: str, name: str) -> tuple[str, ast.ClassDef | ast.expr] | None:
    """Return where `name` is defined and what it is: a class, or the right side of an alias."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return module, node.value
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("imprint"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(node.module, alias.name)
    return None


def _struct(module: str, annotation: ast.expr) -> tuple[str, str] | None:
    """Return (module, class) when the annotation is a configuration class, else None."""
    if not isinstance(annotation, ast.Name) or annotation.id in _DURATIONS:
        return None
    place = _find(module, annotation.id)
    if place is None or not isinstance(place[1], ast.ClassDef):
        return None
    is_dataclass = any("dataclass" in ast.unparse(d) for d in place[1].decorator_list)
    return (place[0], place[1].name) if is_dataclass else None


def _own_fields(module: str, name: str) -> list[tuple[str, ast.expr, str, str]]:
    """Return (name, annotation, default, docstring line) of a configuration class, inherited fields first."""
    place = _find(module, name)
    if place is None or not isinstance(place[1], ast.ClassDef):
        return []
    home, node = place
    result: dict[str, tuple[str, ast.expr, str, str]] = {}
    for base in node.bases:
        if isinstance(base, ast.Name):
            result |= {row[0]: row for row in _own_fields(home, base.id)}
    lines = _attribute_lines(ast.get_docstring(node) or "")
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            if "ClassVar" not in ast.unparse(item.annotation):
                key = item.target.id
                result[key] = (key, item.annotation, _default(item.value), lines.get(key, ""))
    return list(result.values())


def _attribute_lines(docstring: str) -> dict[str, str]:
    """Return the text of each entry under `Attributes:`."""
    _, _, section = docstring.partition("Attributes:\n")
    entries: dict[str, str] = {}
    current = ""
    for line in section.splitlines():
        match = re.match(r"    (\w+): (.*)", line)
        if match:
            current = match[1]
            entries[current] = match[2]
        elif current and line.startswith("     "):
            entries[current] += " " + line.strip()
        else:
            current = ""
    return entries


def _default(value: ast.expr | None) -> str:
    if value is None:
        return ""
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
        for keyword in value.keywords:
            if keyword.arg == "default":
                return ast.unparse(keyword.value)
            if keyword.arg == "default_factory":
                factory = keyword.value
                return ast.unparse(factory.body) if isinstance(factory, ast.Lambda) else f"{ast.unparse(factory)}()"
        return ""
    return ast.unparse(value)


def _kind(module: str, annotation: ast.expr) -> str:
    """Return a short name of a type: Literal['a', 'b'] is `a|b`, an alias is what it stands for."""
    if isinstance(annotation, ast.Name) and annotation.id not in _DURATIONS:
        place = _find(module, annotation.id)
        if place is not None and not isinstance(place[1], ast.ClassDef):
            return _kind(*place)
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        choices = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        return "|".join(str(ast.literal_eval(choice)) for choice in choices)
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return f"{_kind(module, annotation.left)}|{_kind(module, annotation.right)}"
    return ast.unparse(annotation).replace("Duration", "duration")


def _config_class(module: str, name: str) -> tuple[str, str] | None:
    """Return (module, class) of the configuration that a method's or protocol's class names as its `Config`."""
    place = _find(module, name)
    if place is None or not isinstance(place[1], ast.ClassDef):
        return None
    for item in place[1].body:
        targets = item.targets if isinstance(item, ast.Assign) else [getattr(item, "target", None)]
        value = getattr(item, "value", None)
        if any(isinstance(t, ast.Name) and t.id == "Config" for t in targets) and value is not None:
            config = _find(module, ast.unparse(value))
            if config is not None and isinstance(config[1], ast.ClassDef):
                return config[0], config[1].name
    return None
