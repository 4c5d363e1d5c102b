"""Pages that come from the source: one per method, their table, and the Python interface. A hook of mkdocs.

Methods and options are read off syntax trees and the two catalogues; recipes are called, since they compose.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from imprint.cli import fields
from imprint.cli.main import COMMANDS, command_parser
from imprint.cli.methods import stored, worst
from imprint.evals import catalog as protocols
from imprint.methods import catalog
from imprint.recipes.book import stages_of

SOURCE = Path(catalog.__file__).parents[1]
DOCS = Path(__file__).parent
FIRST = ("index.md", "cli.md", "architecture.md")


def on_config(config: Any) -> Any:
    """Order the pages: the guides first, then the methods, then the reference."""
    guides = [path.name for path in sorted(DOCS.glob("*.md")) if path.name not in FIRST]
    methods = [{row.title: f"methods/{row.name}.md"} for row in catalog.CATALOG]
    config["nav"] = [
        *FIRST,
        *guides,
        {"Methods": [{"All methods": "methods/index.md"}, *methods]},
        {"Protocols": "protocols.md"},
        {"Python": "api.md"},
        {"Options": "options.md"},
    ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    pages = {"methods/index.md": methods_index(), "protocols.md": protocols_page(), "api.md": api_page()}
    pages["options.md"] = options_page()
    pages |= {f"methods/{row.name}.md": method_page(row) for row in catalog.CATALOG}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def methods_index() -> str:
    """Return the table of all methods."""
    lines = ["# Methods", "", "| method | family | year | paper | the paper's figure |", "|---|---|---|---|---|"]
    for row in catalog.CATALOG:
        lines.append(f"| [{row.title}]({row.name}.md) | {row.family} | {row.year} | {paper(row)} | {row.figure} |")
    return "\n".join(lines) + "\n"


def paper(row: catalog.Row) -> str:
    """Return a link to the paper, or its authors and year where it has no arXiv number."""
    return f"[arXiv {row.arxiv}](https://arxiv.org/abs/{row.arxiv})" if row.arxiv[0].isdigit() else row.arxiv


def method_page(row: catalog.Row) -> str:
    """Return the page of one method: what its file says, its options, its recipes, its numeric cases."""
    tree = parsed(SOURCE / "methods" / f"{row.name}.py")
    main = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == row.cls)
    found, groups = fields.fields(row.name)
    lines = [f"# {row.title}", "", prose(ast.get_docstring(tree) or ""), "", prose(ast.get_docstring(main) or ""), ""]
    lines += [f"Paper: {paper(row)}. Its figure: {row.figure}.", ""]
    lines += [
        "```",
        f"imprint pretrain {row.name} --data FOLDER --out RUN",
        "```",
        "",
        "## In the order of the code",
        "",
    ]
    for node in main.body:
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            lines.append(f"- `{node.name}`: {prose(ast.get_docstring(node) or '')}")
    lines += ["", "## Options", ""]
    nested = {group.name for group in groups if "." in group.name}
    for group in groups:
        if group.name.startswith("method."):
            lines.append(row_of(f"--{group.name}.*", group.kind, group.default, group.help))
    for field in found:
        if field.name.startswith("method.") and field.group not in nested:
            lines.append(row_of(f"--{field.name}", field.kind, field.default, field.help))
    lines += ["", "## Recipes", ""]
    for name, about in recipes(row.name):
        lines += [f"### `{row.name}/{name}`", "", about, ""]
    cases = stored("fidelity.json")
    if row.parity:
        lines += ["## Numeric cases", "", "| case | worst relative error |", "|---|---|"]
        lines += [f"| `{case}` | {worst(cases.get(case))} |" for case in row.parity]
    return "\n".join(lines) + "\n"


def recipes(method: str) -> list[tuple[str, str]]:
    """Return (name, text) of a method's recipes: the docstring and the provenance."""
    module = importlib.import_module(f"imprint.recipes.{method}")
    result = []
    for name in module.__all__:
        text = prose(inspect.getdoc(getattr(module, name)) or "")
        stages = stages_of(f"{method}/{name}")
        if len(stages) > 1:
            text += f"\n\n*Stages:* {', '.join(stage.stage for stage in stages)}."
        provenance = stages[-1].provenance
        for field in dataclasses.fields(provenance):
            if value := getattr(provenance, field.name):
                text += f"\n\n*{field.name.capitalize()}:* {value}"
        result.append((name, text))
    return result


def protocols_page() -> str:
    """Return the table of protocols and the options of each."""
    lines = ["# Protocols", "", "| protocol | labels | what it measures |", "|---|---|---|"]
    for row in protocols.CATALOG:
        lines.append(f"| [`{row.name}`](#{row.name}) | {'yes' if row.needs_labels else 'no'} | {row.description} |")
    for row in protocols.CATALOG:
        tree = parsed(SOURCE / "evals" / f"{row.name}.py")
        lines += ["", f"## {row.name}", "", prose(ast.get_docstring(tree) or ""), ""]
        lines += [row_of(f"--{f.name}", f.kind, f.default, f.help) for f in fields.protocol_fields(row.name)]
    return "\n".join(lines) + "\n"


def api_page() -> str:
    """Return the public functions and classes with their docstrings."""
    import imprint

    places = {**imprint.PLACES, "methods": "imprint.api"}
    lines = ["# Python", "", prose(ast.get_docstring(parsed(SOURCE / "__init__.py")) or "")]
    for name in imprint.__all__:
        tree = parsed(SOURCE.joinpath(*places[name].split(".")[1:]).with_suffix(".py"))
        node = next(n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == name)
        lines += ["", f"## imprint.{name}", "", "```python", signature(node), "```", "", sections(node)]
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
                    lines += [
                        "",
                        f"### {name}.{item.name}",
                        "",
                        "```python",
                        signature(item),
                        "```",
                        "",
                        sections(item),
                    ]
    return "\n".join(lines) + "\n"


def options_page() -> str:
    """Return the help of every command and all dotted options of a run."""
    lines = ["# Options", "", "Printed by `imprint COMMAND --help`."]
    for name in COMMANDS:
        lines += ["", f"## imprint {name}", "", "```", command_parser(name).format_help().rstrip(), "```"]
    lines += ["", "## Dotted options", "", "Every run has these; each method adds its own (see its page)."]
    lines += [""]
    lines += [row_of(f"--{field.name}", field.kind, field.default, field.help) for field in fields.fields()[0]]
    return "\n".join(lines) + "\n"


def row_of(option: str, kind: str, default: str, text: str) -> str:
    """Return one option as an item of a list."""
    given = f", default `{default}`" if default else ""
    return f"- `{option}` (`{kind}`{given}): {text}"


def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def prose(docstring: str) -> str:
    """Return a docstring up to its first section."""
    return re.split(r"\n\s*(?:Args|Attributes|Returns|Raises):\n", docstring)[0].strip()


def sections(node: ast.FunctionDef | ast.ClassDef) -> str:
    """Return a docstring with its sections as headed lists."""
    lines = []
    for line in (ast.get_docstring(node) or "").splitlines():
        if re.fullmatch(r"(Args|Attributes|Returns|Raises):", line):
            lines += ["", f"**{line[:-1]}**", ""]
        elif match := re.fullmatch(r"    (\w+): (.*)", line):
            lines.append(f"- `{match[1]}`: {match[2]}")
        elif line.startswith("        "):
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line)
    return "\n".join(lines)


def signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    """Return the first line of a definition, one argument a line when it is long."""
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    if any(ast.unparse(decorator) == "property" for decorator in node.decorator_list):
        return f"{node.name}{returns.replace(' ->', ':', 1)}"
    arguments = re.sub(r"^(self|cls)(, )?", "", ast.unparse(node.args))
    one = f"{node.name}({arguments}){returns}"
    if len(one) <= 100:
        return one
    depth, parts, current = 0, [], ""
    for char in arguments:
        depth += (char in "[(") - (char in "])")
        if char == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += char
    return f"{node.name}(\n" + "".join(f"    {part},\n" for part in [*parts, current.strip()]) + f"){returns}"
