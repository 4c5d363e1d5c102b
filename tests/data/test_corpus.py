"""Documents out of files: every form says the same, and what is broken is named."""

from __future__ import annotations

import gzip
import io
import json
import logging
import tarfile
import zipfile
from pathlib import Path

import pytest

from imprint.core.errors import ConfigError, DataError
from imprint.data.corpus import Corpus, open_corpus
from imprint.data.text_files import is_heading, parted

DOCUMENTS = ["The first, of two\nlines.", 'A second: "quoted", with a\ttab', "Third: ä 漢字 😀"]


def jsonl(texts: list[str], field: str = "text") -> bytes:
    return "".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(texts)).encode()


def table(texts: list[str], mark: str) -> bytes:
    quoted = ('"{}"'.format(text.replace('"', '""')) for text in texts)
    return f"id{mark}Content\n{''.join(f'{i}{mark}{text}{chr(10)}' for i, text in enumerate(quoted))}".encode()


def archive(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as shard:
            for name, content in members.items():
                shard.writestr(name, content)
        return
    with tarfile.open(path, mode) as shard:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))


def parquet(path: Path, texts: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": list(range(len(texts))), "content": texts}), path)


def written(folder: Path, form: str) -> Path:
    path = folder / form
    blank = "\n\n".join(DOCUMENTS).encode()
    members = {"a.txt": DOCUMENTS[0].encode(), "sub/b.jsonl": jsonl(DOCUMENTS[1:]), "c.jpg": b"x", "._d.txt": b"\xff"}
    plain = {
        "blank.txt": blank,
        "dos.txt": b"\xef\xbb\xbf" + blank.replace(b"\n", b"\r\n"),
        "wide.txt": blank.decode().encode("utf-16"),
        "lines.jsonl": jsonl(DOCUMENTS),
        "others.ndjson": jsonl(DOCUMENTS, "content"),
        "list.json": json.dumps(DOCUMENTS).encode(),
        "objects.json": json.dumps([{"text": text} for text in DOCUMENTS], indent=1).encode(),
        "lines.json": jsonl(DOCUMENTS),
        "comma.csv": table(DOCUMENTS, ","),
        "tab.tsv": table(DOCUMENTS, "\t"),
        "packed.txt.gz": gzip.compress(blank),
        "packed.jsonl.gz": gzip.compress(jsonl(DOCUMENTS)),
    }
    if form in plain:
        path.write_bytes(plain[form])
    elif form == "rows.parquet":
        parquet(path, DOCUMENTS)
    elif form == "folder":
        (path / "sub").mkdir(parents=True)
        for name, content in members.items():
            (path / name).write_bytes(content)
    else:
        archive(path, members, "w:gz" if form.endswith("gz") else "w")
    return path


FORMS = (
    "blank.txt", "dos.txt", "wide.txt", "lines.jsonl", "others.ndjson", "list.json", "objects.json", "lines.json",
    "comma.csv", "tab.tsv", "packed.txt.gz", "packed.jsonl.gz", "rows.parquet", "folder", "a.tar", "a.tar.gz", "a.zip",
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert list(open_corpus(written(tmp_path, form)).documents()) == DOCUMENTS
    assert not caplog.records


def test_several_files_and_patterns_keep_their_order(tmp_path: Path) -> None:
    for i in (10, 9, 8):
        (tmp_path / f"part-{i:02}.txt").write_text(f"text {i}")
    assert list(open_corpus(str(tmp_path / "part-{08..10}.txt")).documents()) == ["text 8", "text 9", "text 10"]
    two = open_corpus([tmp_path / "part-10.txt", str(tmp_path / "part-0*.txt")])
    assert list(two.documents()) == ["text 10", "text 8", "text 9"]
    assert open_corpus(two) is two


def test_datasets_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"id": [0, 1, 2], "content": [*DOCUMENTS[:2], None]})
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(str(tmp_path / "set"))
    assert list(open_corpus(tmp_path / "set").documents()) == DOCUMENTS[:2]
    assert list(open_corpus(f"hf:{tmp_path / 'set'}:test", column="content").documents()) == DOCUMENTS[1:2]
    with pytest.raises(ConfigError, match="no column 'contents'.*Did you mean 'content'"):
        open_corpus(tmp_path / "set", column="contents")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("file", ["= A =\nx\n\n = = B = = \ny\n\n = C D = \nz"]),
        ("line", ["= A =", "x", " = = B = = ", "y", " = C D = ", "z"]),
        ("blank", ["= A =\nx", " = = B = = \ny", " = C D = \nz"]),
        ("heading", ["= A =\nx\n\n = = B = = \ny", " = C D = \nz"]),
    ],
)
def test_rules_of_documents(rule: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n= A =\nx\n\n = = B = = \ny\n\n = C D = \nz\n\n\n")
    found = [text.strip("\n") for text in open_corpus(tmp_path / "a.txt", document=rule).documents()]
    assert found == expected
    assert is_heading(" = Robert Boulter = ") and not is_heading(" = = Career = = ") and not is_heading("a = b")
    assert [text for text in parted(iter([]), rule) if text] == []


def test_a_few_broken_lines_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = [json.dumps({"text": f"number {i}"}).encode() for i in range(200)]
    good[20:20] = [b'{"text": "cut o', b'{"text": "\xff"}', b'{"title": "no text"}', b"[1]", b'{"text": null}', b""]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(good))
    with caplog.at_level(logging.WARNING):
        corpus = open_corpus(tmp_path / "a.jsonl")
    assert len(corpus) == 200
    (told,) = [record.getMessage() for record in caplog.records]
    assert "4 of 206 lines" in told and "line 21 of" in told and "no JSON" in told and "no UTF-8" in told
    assert "no field that is known to hold text among title" in told and "and 1 more" in told
    with pytest.raises(DataError, match="4 of 206 lines.*share of 0.01 that data.bad_limit allows.*line 21"):
        open_corpus(tmp_path / "a.jsonl", bad_limit=0.01)


def test_a_file_of_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\n".join(["Käse und Brötchen"] * 9).encode("latin-1"))
    with pytest.raises(DataError, match=r"9 of 9 lines.*line 1 of '.*a.txt': no UTF-8"):
        open_corpus(tmp_path / "a.txt")


def test_what_cannot_be_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="holds no files of text.*but images such as 'a.jpg'"):
        open_corpus(tmp_path)
    with pytest.raises(ConfigError, match="'.*a.jpg' is no file of text"):
        open_corpus(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="does not exist"):
        open_corpus(tmp_path / "b.txt")
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(DataError, match="holds no text"):
        open_corpus(tmp_path / "empty.txt")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"some text " * 1000)[:40])
    with pytest.raises(DataError, match="cut.txt.gz' cannot be read"):
        open_corpus(tmp_path / "cut.txt.gz")
    archive(tmp_path / "a.zip", {"a.jpg": b"x"})
    with pytest.raises(DataError, match="holds no file of text"):
        open_corpus(tmp_path / "a.zip")
    for name in ("bad.parquet", "bad.tar", "bad.zip"):
        (tmp_path / name).write_bytes(b"no archive at all" * 100)
        with pytest.raises(DataError, match=f"{name}' cannot be read"):
            open_corpus(tmp_path / name)


def test_fields_and_columns_are_found_or_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(DOCUMENTS, "prose"))
    assert list(open_corpus(tmp_path / "a.jsonl", column="prose").documents()) == DOCUMENTS
    with pytest.raises(DataError, match="among id, prose; name it by --data.text.column"):
        open_corpus(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="no field 'pose' among id, prose; did you mean 'prose'"):
        open_corpus(tmp_path / "a.jsonl", column="pose")
    with pytest.raises(DataError, match="'id' is no text"):
        open_corpus(tmp_path / "a.jsonl", column="id")
    (tmp_path / "a.csv").write_text("one,two\n1,x\n")
    with pytest.raises(ConfigError, match="has the columns one, two, and none is known"):
        open_corpus(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("prose\nx\n")
    assert list(open_corpus(tmp_path / "b.csv").documents()) == ["x"]


def test_split_is_disjoint_and_keyed() -> None:
    corpus = Corpus.of(f"document {i}" for i in range(50))
    rest, held = corpus.split(0.2, seed=3)
    assert len(held) == 10 and sorted([*rest.documents(), *held.documents()]) == sorted(corpus.documents())
    assert list(corpus.split(0.2, seed=3)[1].documents()) == list(held.documents())
    assert list(corpus.split(0.2, seed=4)[1].documents()) != list(held.documents())
    assert held.fingerprint != rest.fingerprint != corpus.fingerprint
    assert list(corpus.subset([7, 3]).documents()) == ["document 7", "document 3"]


def test_half_of_a_surrogate_pair_does_no_harm() -> None:
    assert Corpus.of(["a \ud800 b"]).document(0) == "a ? b"
