"""The list of bad samples."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from imprint.core.errors import BadImage, DataError
from imprint.data.arrays import ArraySource
from imprint.data.quarantine import Quarantine


def source(size: int = 100) -> ArraySource:
    return ArraySource(np.zeros((size, 2, 2, 3), np.uint8), name="set")


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(source(), path)
    for _ in range(3):
        quarantine.add(7, BadImage("truncated", "ends early"))
    quarantine.add(3, BadImage("empty"))
    assert lines(path) == [
        {"name": "set[7]", "reason": "truncated", "detail": "ends early", "index": 7},
        {"name": "set[3]", "reason": "empty", "detail": "", "index": 3},
    ]
    assert len(quarantine) == 2 and 7 in quarantine and quarantine.found(7) and not quarantine.found(8)
    assert [entry["index"] for entry in quarantine.entries()] == [3, 7]


def test_a_resumed_run_goes_on_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    Quarantine(source(), path).add(7, BadImage("empty"))
    with open(path, "a") as file:
        file.write('{"name": "of another set", "reason": "empty", "detail": "", "index": 5}\n{"name": "set[9]", "rea')
    again = Quarantine(source(), path)
    assert 7 in again and 5 not in again and len(again) == 1
    assert not again.found(7)  # it may have been repaired: worth one more try
    again.add(7, BadImage("empty"))
    again.add(9, BadImage("empty"))
    whole = [line for line in path.read_text().splitlines() if line.endswith("}")]
    assert len(whole) == 3 and json.loads(whole[-1])["index"] == 9


@pytest.mark.parametrize(
    ("size", "limit", "allowed"),
    [(1000, 0.05, 50), (100, 0.05, 5), (10, 0.05, 2), (2, 0.05, 1), (1, 0.5, 0), (9, 0, 0)],
)
def test_the_limit_and_its_slack(size: int, limit: float, allowed: int) -> None:
    quarantine = Quarantine(source(size), None, limit)
    for i in range(allowed):
        quarantine.add(i, BadImage("corrupt"))
    with pytest.raises(DataError, match=f"{allowed + 1} of {size} samples"):
        quarantine.add(allowed, BadImage("corrupt"))


def test_the_error_says_count_share_file_and_first_names(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(source(40), path, 0.05)
    with pytest.raises(DataError) as caught:
        for i in (31, 5, 8, 9):
            quarantine.add(i, BadImage("not-an-image"))
    message = str(caught.value)
    for part in ("3 of 40", "7.5%", "limit of 5.0%", str(path), "set[31] (not-an-image)", "bad-limit"):
        assert part in message
    assert len(lines(path)) == 3


def test_threads_name_it_once(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(source(), path, 0.5)
    threads = [
        threading.Thread(target=lambda: [quarantine.add(i, BadImage("empty")) for i in range(20)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(str(line["index"])) for line in lines(path)) == list(range(20))


def _add(path: str) -> None:
    quarantine = Quarantine(source(), path, 0.5)
    for i in range(25):
        quarantine.add(i, BadImage("empty"))
    assert len(quarantine) == 25


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs file locks")
def test_processes_share_the_file_and_the_count(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    workers = [multiprocessing.get_context("fork").Process(target=_add, args=(str(path),)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert sorted(int(str(line["index"])) for line in lines(path)) == list(range(25))


def test_what_another_process_found_counts(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    here, there = Quarantine(source(), path, 0.05), Quarantine(source(), path, 0.05)
    for i in range(3):
        here.add(i, BadImage("empty"))
        there.add(10 + i, BadImage("empty")) if i < 2 else None
    with pytest.raises(DataError, match="6 of 100"):
        there.add(20, BadImage("empty"))


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    quarantine = Quarantine(source(), tmp_path / "missing" / "quarantine.jsonl")
    with pytest.raises(DataError, match="cannot be written"):
        quarantine.add(1, BadImage("empty"))
