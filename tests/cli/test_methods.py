from __future__ import annotations

import json

import pytest

from imprint.cli import main as cli
from imprint.cli import methods
from imprint.methods import catalog


def test_the_table_has_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods"]) == 0
    out = capsys.readouterr().out
    for row in catalog.CATALOG:
        assert row.name in out and row.arxiv in out and row.figure in out


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(catalog.names())
    assert cli.main(["methods", "dino", "--json", "--fidelity"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["class"] == "imprint.methods.dino.DINO" and set(one["fidelity"]) == set(catalog.row("dino").parity)


def test_one_method_in_detail(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods", "mae"]) == 0
    out = capsys.readouterr().out
    assert "arXiv 2111.06377" in out and "--method." in out and "imprint pretrain mae" in out


def test_fidelity_shows_errors_figures_and_dashes_for_what_was_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = {
        "fidelity.json": {
            "nt_xent": {"worst_relative_error": 1.25e-7, "array": "out_loss", "arrays": 5},
            "lars": {"worst_relative_error": 3e-6},
            "knn": {"worst_relative_error": 0.0},
        },
        "results.json": {"simclr": {"figure": "CIFAR-10 kNN 70.1", "command": "imprint pretrain simclr"}},
    }
    monkeypatch.setattr(methods, "stored", lambda name: tables[name])
    assert cli.main(["methods", "--fidelity"]) == 0
    out = capsys.readouterr().out
    lines = {
        line.split()[0] if line.startswith(" (") else tuple(line.split()[:2]): line
        for line in out.splitlines()
        if line.strip()
    }
    assert any("nt_xent" in line and "1.2e-07" in line and "CIFAR-10 kNN 70.1" in line for line in lines.values())
    assert any("lars" in line and "3.0e-06" in line for line in lines.values())
    assert any("(shared)" in line and "knn" in line and "0.0e+00" in line for line in lines.values())
    assert any("sincos_2d" in line and "-" in line for line in lines.values())


def test_tables_that_were_never_measured_are_empty() -> None:
    assert methods.stored("no-such-table.json") == {}
    assert methods.worst(None) == "-" and methods.worst("odd") == "-"


def test_every_row_names_an_importable_class() -> None:
    for row in catalog.CATALOG:
        assert catalog.method_class(row.name).__name__ == row.cls


def test_every_numeric_case_of_every_method_was_measured() -> None:
    cases = methods.stored("fidelity.json")
    for row in catalog.CATALOG:
        for case in row.parity:
            assert methods.worst(cases.get(case)) != "-", (row.name, case)
