"""`imprint methods`: the catalogue, and how closely each method follows its reference."""

from __future__ import annotations

import argparse
import json
from importlib import resources
from typing import Any

from imprint.cli import fields
from imprint.cli.parser import Parser
from imprint.cli.text import option_lines
from imprint.methods import catalog


def arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="one method in detail")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--fidelity", action="store_true", help="numeric cases, paper figure, our figure")


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    rows = (catalog.row(args.name),) if args.name is not None else catalog.CATALOG
    described = [describe(row, fidelity=args.fidelity) for row in rows]
    if args.json:
        print(json.dumps(described[0] if args.name is not None else described, indent=2))
    elif args.fidelity:
        print_fidelity(described)
    elif args.name is not None:
        print_one(described[0])
    else:
        print_all(described)
    return 0


def describe(row: catalog.Row, *, fidelity: bool = False) -> dict[str, Any]:
    """Return what is known of a method as JSON-ready data."""
    described: dict[str, Any] = {
        "name": row.name,
        "title": row.title,
        "family": row.family,
        "year": row.year,
        "arxiv": row.arxiv,
        "class": f"imprint.methods.{row.name}.{row.cls}",
        "parity": list(row.parity),
        "paper_figure": row.figure,
    }
    if fidelity:
        cases, figures = stored("fidelity.json"), stored("results.json")
        described["fidelity"] = {case: cases.get(case) for case in row.parity}
        described["our_figure"] = figures.get(row.name)
    return described


def stored(name: str) -> dict[str, Any]:
    """Return a table that lies beside the methods as JSON; empty when it was never measured."""
    file = resources.files("imprint.methods").joinpath(name)
    if not file.is_file():
        return {}
    data = json.loads(file.read_text(encoding="utf-8"))
    return data if isinstance(data, dict) else {}


def print_all(described: list[dict[str, Any]]) -> None:
    """Print one line per method."""
    table = _table("name", "method", "family", "year", "paper", "the paper's figure")
    for one in described:
        table.add_row(
            one["name"], one["title"], one["family"], str(one["year"]), paper(one["arxiv"]), one["paper_figure"]
        )
    _print(table)
    print("'imprint methods NAME' shows one in detail; 'imprint pretrain NAME --help' lists its options.")


def print_one(one: dict[str, Any]) -> None:
    """Print one method with its own options."""
    lines = [
        f"{one['title']} ({one['year']}), {paper(one['arxiv'])}",
        f"family         {one['family']}",
        f"class          {one['class']}",
        f"numeric cases  {', '.join(one['parity']) or '-'}",
        f"paper's figure {one['paper_figure']}",
        f"pretrain       imprint pretrain {one['name']} --data FOLDER --out RUN",
        "",
        "options:",
    ]
    found, groups = fields.fields(one["name"])
    own = [field for field in found if field.name.startswith("method.")]
    print("\n".join([*lines, *option_lines(own, groups)[2:]]))


def print_fidelity(described: list[dict[str, Any]]) -> None:
    """Print, per method and numeric case, the worst relative error; then the paper's figure and ours."""
    table = _table("name", "case", "worst relative error", "the paper's figure", "our figure", "command")
    for one in described:
        ours = one["our_figure"] or {}
        tail = (one["paper_figure"], str(ours.get("figure", "-")), str(ours.get("command", "-")))
        cases = one["fidelity"] or {"-": None}
        for position, (case, error) in enumerate(cases.items()):
            first = position == 0
            table.add_row(one["name"] if first else "", case, worst(error), *(tail if first else ("", "", "")))
    named = {case for one in described for case in one["parity"]}
    if len(described) == len(catalog.CATALOG):  # cases of parts that no single method owns: ranks, kNN, positions
        for case, error in stored("fidelity.json").items():
            if case not in named:
                table.add_row("(shared)", case, worst(error), "", "", "")
    _print(table)


def paper(number: str) -> str:
    """Return an arXiv number as one, and the authors and year of a paper that has none as they are."""
    return f"arXiv {number}" if number[0].isdigit() else number


def worst(error: Any) -> str:
    """Return the worst error of a case's entry as text; `-` when it was never measured.

    It is relative, or for a random generator in standard errors of the compared statistics.
    """
    if isinstance(error, dict) and "worst_standard_errors" in error:
        return f"{error['worst_standard_errors']:.1f} standard errors"
    value = error.get("worst_relative_error") if isinstance(error, dict) else None
    return f"{value:.1e}" if isinstance(value, (int, float)) else "-"


def _table(*columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(table: Any) -> None:
    import sys

    from rich.console import Console

    # A pipe has no width; a wide one keeps every row on its line.
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(table)
