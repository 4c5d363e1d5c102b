"""Rows of packed text: no token is lost, no document crossed where that is forbidden, and tokens are made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imprint.backbones.text_tokenizer import TextTokenizer, train_tokenizer
from imprint.core.errors import ConfigError
from imprint.data import token_stream as streams
from imprint.data.corpus import Corpus
from imprint.data.loader import Loader
from imprint.data.texts import Texts
from imprint.data.token_rows import TokenRows, open_rows
from imprint.data.token_stream import pieces_of, token_stream

TEXTS = ("one two three", "a", "The quick brown fox.\nJumps over  the lazy dog 😀 漢字.", "x " * 60)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    rng = np.random.default_rng(0)
    return Corpus.of([*TEXTS, *(" ".join(rng.choice(TEXTS[2].split(), rng.integers(1, 90))) for _ in range(60))])


@pytest.fixture(scope="module", params=["bpe", "wordpiece", "unigram"])
def tokenizer(corpus: Corpus, request: pytest.FixtureRequest) -> TextTokenizer:
    return train_tokenizer(corpus.documents(), request.param, vocabulary=290)


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("packing", ["packed", "documents"])
@pytest.mark.parametrize("length", [8, 31])
def test_packing_loses_no_token(
    corpus: Corpus, tokenizer: TextTokenizer, packing: str, length: int, start: bool
) -> None:
    rows = open_rows(corpus, tokenizer, Texts(length=length, packing=packing, start=start), seed=0)
    found = rows.tokens(0, 3, np.arange(len(rows)))["text"]
    assert found.dtype == np.int64 and found.shape == (len(rows), length) and found.max() < tokenizer.vocabulary
    special = tokenizer.special
    if start:
        assert (found[:, 0] == special.start).all()
        found = found[:, 1:]
    wanted = [np.append(ids, special.end) for ids in tokenizer.ids(list(corpus.documents()))]
    assert found[found >= 0].tolist() == np.concatenate(wanted).tolist() == rows.stream_T.tolist()
    # No token stands after a place without one, and no row is empty.
    assert (np.diff((found >= 0).astype(int), axis=1) <= 0).all() and (found[:, 0] >= 0).all()
    if packing == "packed":
        assert (found[:-1] >= 0).all(), "only the last row is short"
    else:
        ends = found == special.end
        assert (ends.sum(1) <= 1).all() and ends.sum() == len(corpus)
        last = (found >= 0).sum(1) - 1
        assert (last[ends.any(1)] == ends.argmax(1)[ends.any(1)]).all(), "an end token is the last of its row"


def test_rows_read_as_text(corpus: Corpus) -> None:
    rows = open_rows(
        corpus, train_tokenizer(corpus.documents(), vocabulary=290), Texts(length=256, packing="documents"), seed=0
    )
    assert rows.read(2).decode() == TEXTS[2] and rows.name(2) == "texts@2" and not rows.pixels and rows.channels == 3
    assert (
        rows.subset([2, 0]).tokens(0, 0, np.array([0]))["text"].tolist()
        == rows.tokens(0, 0, np.array([2]))["text"].tolist()
    )


def test_equal_for_any_number_of_processes(corpus: Corpus) -> None:
    rows = open_rows(
        corpus, train_tokenizer(corpus.documents(), vocabulary=290), Texts(length=8, packing="packed"), seed=0
    )

    def batches(rank: int, world: int, workers: int) -> list:
        with Loader(rows, (), batch_size=8, seed=1, workers=workers, rank=rank, world=world) as loader:
            return list(loader.batches(0, 6))

    whole, other = batches(0, 1, 1), batches(0, 1, 3)
    parts = [batches(rank, 2, 1) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert (batch.tokens["text"] == other[step].tokens["text"]).all()
        rank_rows = {
            int(i): row.tolist()
            for part in parts
            for i, row in zip(part[step].index_B, part[step].tokens["text"], strict=True)
        }
        assert rank_rows == {int(i): row.tolist() for i, row in zip(batch.index_B, batch.tokens["text"], strict=True)}


def test_parts_of_a_split_share_no_document(corpus: Corpus) -> None:
    tokenizer = train_tokenizer(corpus.documents(), vocabulary=290)
    whole, *parts = (
        open_rows(part, tokenizer, Texts(length=8, packing="packed"), seed=0) for part in (corpus, *corpus.split(0.25))
    )
    counts = [np.bincount(rows.stream_T, minlength=290) for rows in (whole, *parts)]
    assert (counts[0] == counts[1] + counts[2]).all()


@pytest.mark.parametrize("sentences", [False, True])
def test_tokens_of_a_large_corpus_are_made_once(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sentences: bool
) -> None:
    tokenizer = train_tokenizer(corpus.documents(), vocabulary=290)
    plain = token_stream(corpus, tokenizer, sentences=sentences)
    assert plain.ids_T.dtype == np.uint16 and len(plain.documents) == len(corpus) + 1
    monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path))
    monkeypatch.setattr(streams, "KEPT_FROM", 0)
    monkeypatch.setattr(streams, "_AT_ONCE", 64)  # many blocks
    first = token_stream(corpus, tokenizer, sentences=sentences)
    assert len(list(tmp_path.rglob("*.bin"))) == 1

    def never(*args: object) -> None:
        raise AssertionError("the tokens were made again")

    monkeypatch.setattr(streams, "_made", never)
    second = token_stream(corpus, tokenizer, sentences=sentences)
    for a, b, c in zip(*((s.ids_T, s.units, s.documents) for s in (plain, first, second)), strict=True):
        assert a.tolist() == b.tolist() == c.tolist()
    assert isinstance(second.ids_T.base, np.ndarray) and not second.ids_T.flags.owndata, "mapped, not read"
    with pytest.raises(AssertionError, match="made again"):  # another tokenizer, other tokens
        token_stream(corpus, train_tokenizer(corpus.documents(), vocabulary=280), sentences=sentences)
    (kept,) = tmp_path.rglob("*.bin")
    kept.write_bytes(kept.read_bytes()[:-8])
    with pytest.raises(AssertionError, match="made again"):
        token_stream(corpus, tokenizer, sentences=sentences)


def test_a_document_of_any_length_is_cut_without_a_trace(tokenizer: TextTokenizer) -> None:
    text = "\n".join("The quick brown fox, jumps;  over the lazy dog." for _ in range(40))
    pieces = list(pieces_of(text, longest=50))
    assert "".join(pieces) == text and len(pieces) > 10 and max(map(len, pieces)) < 80
    assert np.concatenate(tokenizer.ids(pieces)).tolist() == tokenizer.ids([text])[0].tolist()
    solid = "x" * 200
    assert "".join(pieces_of(solid, longest=50)) == solid and max(map(len, pieces_of(solid, longest=50))) <= 100


def test_long_documents_are_whole_in_the_stream(
    corpus: Corpus, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = token_stream(corpus, tokenizer, sentences=False)
    monkeypatch.setattr(streams, "pieces_of", lambda text: pieces_of(text, 40))
    parted = token_stream(corpus, tokenizer, sentences=False)
    assert parted.ids_T.tolist() == plain.ids_T.tolist() and parted.units.tolist() == plain.units.tolist()


def test_other_packings_are_refused(corpus: Corpus) -> None:
    tokenizer = train_tokenizer(corpus.documents(), vocabulary=290)
    with pytest.raises(ConfigError, match="packing 'next' are made by open_rows"):
        TokenRows(corpus, tokenizer, Texts(length=8, packing="next"))
    with pytest.raises(ConfigError, match="too short"):
        Texts(length=4, packing="packed")
