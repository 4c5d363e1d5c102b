"""The shape of the house, read off the syntax trees: imports go down, files are small, public names are explained."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "imprint"
FLOORS = {
    "core": 0,
    "dist": 1,
    "losses": 2,
    "ops": 2,
    "nn": 3,
    "backbones": 3,
    "data": 3,
    "methods": 4,
    "train": 5,
    "evals": 5,
    "viz": 5,
    "export": 5,
    "recipes": 6,
    "cli": 6,
    "api": 6,
    "__init__": 7,
    "__main__": 7,
}
DRAWERS = {"utils", "util", "misc", "helpers", "helper", "common", "shared", "tools"}
MOST_LINES = 400
COMPILERS = {"kernel", "njit", "numba.njit", "intrinsic"}
"""Decorators whose functions get their types from the compiler, at the call."""
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
Public = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def package_of(module: str) -> str:
    """`imprint.core.errors` -> `core`; `imprint` -> `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def module_of(path: Path) -> str:
    parts = list(path.relative_to(SOURCE.parent).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """All modules a file imports, wherever in the file, with the line; submodules in `from` forms are resolved."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = full.startswith("imprint.") and (
                    SOURCE.parent.joinpath(*full.split(".")).is_dir()
                    or SOURCE.parent.joinpath(*full.split(".")).with_suffix(".py").is_file()
                )
                yield node.lineno, full if is_module else node.module


def inside(path: Path) -> Iterator[tuple[int, str]]:
    return ((line, name) for line, name in imports(path) if name.split(".")[0] == "imprint")


def outside(path: Path) -> set[str]:
    tops = {name.split(".")[0] for _, name in imports(path)}
    return tops - {"imprint", "__future__"} - set(sys.stdlib_module_names)


def files_of(*packages: str) -> list[Path]:
    return [path for path in FILES if package_of(module_of(path)) in packages]


def where(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_package_has_a_floor() -> None:
    assert {package_of(module_of(path)) for path in FILES} <= set(FLOORS)
    assert len(FILES) > 30  # the tree was found


@pytest.mark.parametrize("path", FILES, ids=where)
def test_imports_go_down_only(path: Path) -> None:
    own = package_of(module_of(path))
    upward = [
        f"{where(path)}:{line} imports {name} (floor {FLOORS[package_of(name)]}) from {own} (floor {FLOORS[own]})"
        for line, name in inside(path)
        if FLOORS[package_of(name)] > FLOORS[own]
    ]
    assert not upward, "\n".join(upward)


def test_core_knows_no_torch() -> None:
    assert {where(path): outside(path) for path in files_of("core") if not outside(path) <= {"numpy"}} == {}


def test_losses_and_ops_import_torch_alone() -> None:
    for path in files_of("losses", "ops"):
        assert outside(path) <= {"torch"}, where(path)
        strangers = [
            name
            for _, name in inside(path)
            if package_of(name) not in ("losses", "ops") and name != "imprint.core.errors"
        ]
        assert not strangers, f"{where(path)} imports {strangers}; make it an argument"


def test_a_method_imports_no_other_method_and_no_library_but_torch() -> None:
    parts = {"imprint.methods", "imprint.methods.base", "imprint.methods.catalog"}
    for path in files_of("methods"):
        if module_of(path) in parts:
            continue
        others = [name for _, name in inside(path) if package_of(name) == "methods" and name not in parts]
        assert not others, f"{where(path)} imports {others}; share a part in nn, losses or ops instead"
        assert outside(path) <= {"torch"}, f"{where(path)} imports {outside(path)}"


def test_methods_do_not_talk_to_torch_distributed() -> None:
    for path in files_of("methods", "losses", "ops", "nn"):
        assert not [name for _, name in imports(path) if name.startswith("torch.distributed")], where(path)


def test_evaluations_know_neither_methods_nor_the_trainer() -> None:
    for path in files_of("evals"):
        assert not [name for _, name in inside(path) if package_of(name) in ("methods", "train", "recipes")], where(
            path
        )


@pytest.mark.parametrize("path", FILES, ids=where)
def test_files_are_small_and_are_no_drawers(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{where(path)} has {lines} lines; split it by what it is about"
    assert path.stem not in DRAWERS and not DRAWERS & set(path.relative_to(SOURCE).parts)


def test_the_loop_is_a_story() -> None:
    loop = SOURCE / "train" / "loop.py"
    assert len(loop.read_text(encoding="utf-8").splitlines()) <= 300


def public_names(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, Public]]:
    for item in node.body:
        if isinstance(item, Public) and not item.name.startswith("_"):
            yield prefix + item.name, item
            if isinstance(item, ast.ClassDef):
                yield from public_names(item, f"{item.name}.")


@pytest.mark.parametrize("path", FILES, ids=where)
def test_public_names_are_explained_and_typed(path: Path) -> None:
    tree = TREES[path]
    assert ast.get_docstring(tree), f"{where(path)} does not say what it is"
    for name, node in public_names(tree):
        place = f"{where(path)}:{node.lineno} {name}"
        overloaded = any("overload" in ast.unparse(d) or ".setter" in ast.unparse(d) for d in node.decorator_list)
        assert overloaded or ast.get_docstring(node), f"{place} has no docstring"
        compiled = any(ast.unparse(d).split("(")[0] in COMPILERS for d in node.decorator_list)
        if isinstance(node, ast.ClassDef) or compiled:
            continue
        assert node.returns is not None, f"{place} has no return type"
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        given += [a for a in (node.args.vararg, node.args.kwarg) if a is not None]
        bare = [a.arg for a in given if a.annotation is None and a.arg not in ("self", "cls")]
        assert not bare, f"{place}: no type on {', '.join(bare)}"


def test_inheritance_below_method_is_one_deep() -> None:
    classes = {
        node.name: node
        for path in files_of("methods")
        for _, node in public_names(TREES[path])
        if isinstance(node, ast.ClassDef)
    }
    for name, node in classes.items():
        for base in node.bases:
            parent = classes.get(ast.unparse(base))
            if parent is not None and parent.name not in ("Method", "MethodConfig"):
                pytest.fail(f"methods: {name} inherits {parent.name}; compose parts instead")


def test_tests_mirror_the_package() -> None:
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    missing = [name for name in sorted(packages) if not list((ROOT / "tests" / name).glob("test_*.py"))]
    assert not missing, f"packages without tests: {missing}"
