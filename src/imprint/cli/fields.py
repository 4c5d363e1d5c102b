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

from imprint.evals import catalog as protocols
from imprint.methods import catalog

FIXED = ("name", "recipe", "stage", "provenance")
"""Fields of a run that say where its configuration came from; no option sets them."""

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
def staged_recipes(method: str) -> tuple[str, ...]:
    """Return the recipes of a method that are several stages: functions annotated to return a tuple of RunConfigs."""
    try:
        body = _tree(f"imprint.recipes.{catalog.row(method).name}").body
    except FileNotFoundError:
        return ()
    made = [node for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return tuple(n.name for n in made if n.returns is not None and ast.unparse(n.returns).startswith("tuple[RunConfig"))


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


def fields_of(module: str, name: str) -> tuple[Field, ...]:
    """Return the settable fields of any configuration class, by its module and name."""
    found: list[Field] = []
    _collect(module, name, "", None, found, [])
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
    for own in _own_fields(module, name):
        if name == "RunConfig" and own.name in FIXED:
            continue
        dotted = f"{prefix}{own.name}".replace("_", "-")
        target = method if dotted == "method" else _struct(own.module, own.annotation)
        if target is not None:
            groups.append(Group(dotted, target[1], own.default, own.line))
            _collect(*target, f"{dotted}.", method, found, groups)
        elif dotted != "method":
            kind = _kind(own.module, own.annotation)
            found.append(Field(dotted, kind, own.default, own.line, prefix.removesuffix(".")))


@dataclass(frozen=True)
class _Own:
    """A field as a class writes it, and the module whose names its annotation uses."""

    name: str
    module: str
    annotation: ast.expr
    default: str
    line: str


@functools.cache
def _tree(module: str) -> ast.Module:
    base = Path(__file__).parents[1].joinpath(*module.split(".")[1:])
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def _find_class(module: str, name: str) -> tuple[str, ast.ClassDef] | None:
    """Return where a class is defined, following imports, and its tree."""
    place = _find(module, name)
    return (place[0], place[1]) if place is not None and isinstance(place[1], ast.ClassDef) else None


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
    if isinstance(annotation, ast.BinOp) and ast.unparse(annotation.right) == "None":
        annotation = annotation.left  # a group that may be absent
    if not isinstance(annotation, ast.Name) or annotation.id in _DURATIONS:
        return None
    place = _find_class(module, annotation.id)
    if place is None:
        return None
    is_dataclass = any("dataclass" in ast.unparse(d) for d in place[1].decorator_list)
    return (place[0], place[1].name) if is_dataclass else None


def _own_fields(module: str, name: str) -> list[_Own]:
    """Return the fields of a configuration class, inherited ones first."""
    place = _find_class(module, name)
    if place is None:
        return []
    home, node = place
    result: dict[str, _Own] = {}
    for base in node.bases:
        if isinstance(base, ast.Name):
            result |= {own.name: own for own in _own_fields(home, base.id)}
    lines = _attribute_lines(ast.get_docstring(node) or "")
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            if "ClassVar" not in ast.unparse(item.annotation):
                key = item.target.id
                result[key] = _Own(key, home, item.annotation, _default(item.value), lines.get(key, ""))
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
    """Return a default as text: durations and names as they are typed, anything else as it is written."""
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
        given = {keyword.arg: keyword.value for keyword in value.keywords}
        factory = given.get("default_factory")
        if factory is not None:
            return ast.unparse(factory.body) if isinstance(factory, ast.Lambda) else f"{ast.unparse(factory)}()"
        value = given.get("default")
    if value is None:
        return ""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return value.value
    if isinstance(value, ast.Call) and ast.unparse(value.func) in ("Epochs", "Steps"):
        return f"{ast.unparse(value.args[0])}{'ep' if ast.unparse(value.func) == 'Epochs' else 'st'}"
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Div):  # 75 / 196, as a paper counts
        parts = [side.value for side in (value.left, value.right) if isinstance(side, ast.Constant)]
        if len(parts) == 2 and all(isinstance(part, (int, float)) for part in parts):
            return repr(parts[0] / parts[1])  # type: ignore[operator]
    return ast.unparse(value)


def _kind(module: str, annotation: ast.expr) -> str:
    """Return a short name of a type: Literal['a', 'b'] is `a|b`, an alias is what it stands for."""
    if isinstance(annotation, ast.Name) and annotation.id not in _DURATIONS:
        place = _find(module, annotation.id)
        if place is not None and isinstance(place[1], ast.expr):
            return _kind(place[0], place[1])
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        choices = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        return "|".join(str(ast.literal_eval(choice)) for choice in choices)
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "tuple":
        parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        return f"tuple[{', '.join(_kind(module, part) for part in parts)}]"
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return f"{_kind(module, annotation.left)}|{_kind(module, annotation.right)}"
    return ast.unparse(annotation).replace("Duration", "duration")


def _config_class(module: str, name: str) -> tuple[str, str] | None:
    """Return (module, class) of the configuration that a method's or protocol's class names as its `Config`."""
    place = _find_class(module, name)
    if place is None:
        return None
    for item in place[1].body:
        targets = item.targets if isinstance(item, ast.Assign) else [getattr(item, "target", None)]
        value = getattr(item, "value", None)
        if any(isinstance(t, ast.Name) and t.id == "Config" for t in targets) and value is not None:
            config = _find_class(module, ast.unparse(value))
            if config is not None:
                return config[0], config[1].name
    return None
