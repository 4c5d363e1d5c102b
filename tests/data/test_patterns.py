"""Braces and globs."""

from __future__ import annotations

from pathlib import Path

import pytest

from imprint.core.errors import DataError
from imprint.data.patterns import braces, expanded


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{x,y}-{0..1}", ["x-0", "x-1", "y-0", "y-1"]),
        ("odd{name}.tar", ["odd{name}.tar"]),
        ("{name}-{0..1}", ["{name}-0", "{name}-1"]),
        ("{a,}b", ["ab", "b"]),
    ],
)
def test_braces(text: str, words: list[str]) -> None:
    assert braces(text) == words


def test_globs_are_sorted_and_names_with_magic_letters_win(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "c[1].tar", "deep/er/d.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in expanded(f"{tmp_path}/*.tar")] == ["a.tar", "b.tar", "c[1].tar"]
    assert [p.name for p in expanded(f"{tmp_path}/c[1].tar")] == ["c[1].tar"]
    assert len(expanded(f"{tmp_path}/**/*.tar")) == 4
    with pytest.raises(DataError, match="nothing matches"):
        expanded(f"{tmp_path}/*.zip")
    with pytest.raises(DataError, match=r"z-1.tar' \(named by"):
        expanded(f"{tmp_path}/z-{{1..2}}.tar")
