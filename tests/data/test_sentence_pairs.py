"""Pairs of segments: what a and b are, how they are labelled, and that nothing depends on who asks."""

from __future__ import annotations

import numpy as np
import pytest

from imprint.backbones.text_tokenizer import TextTokenizer, train_tokenizer
from imprint.core.errors import DataError
from imprint.data.corpus import Corpus
from imprint.data.loader import Loader
from imprint.data.sentence_pairs import SentencePairs
from imprint.data.sentences import sentences_of
from imprint.data.texts import Texts
from imprint.data.token_rows import open_rows

WORDS = ("a", "dog", "cat", "red", "car", "on", "the", "grass", "sky", "runs", "sits", "blue", "tree", "near")


def documents(count: int, sentences: tuple[int, int], seed: int = 0) -> Corpus:
    rng = np.random.default_rng(seed)

    def sentence() -> str:
        return " ".join(rng.choice(WORDS, rng.integers(3, 9))) + "."

    return Corpus.of(" ".join(sentence() for _ in range(rng.integers(*sentences))) for _ in range(count))


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return documents(200, (1, 40))


@pytest.fixture(scope="module")
def tokenizer(corpus: Corpus) -> TextTokenizer:
    return train_tokenizer(corpus.documents(), vocabulary=300)


def made(corpus: Corpus, tokenizer: TextTokenizer, packing: str, length: int = 48, **more: float) -> SentencePairs:
    rows = open_rows(corpus, tokenizer, Texts(length=length, packing=packing, **more), seed=5)
    assert isinstance(rows, SentencePairs)
    return rows


def document_of(rows: SentencePairs, place: np.ndarray) -> np.ndarray:
    return np.searchsorted(rows.stream.document_starts, place, side="right") - 1


@pytest.mark.parametrize("packing", ["next", "order"])
def test_segments_and_labels(corpus: Corpus, tokenizer: TextTokenizer, packing: str) -> None:
    rows = made(corpus, tokenizer, packing)
    for copy in (0, 7):
        span, label = rows.pairs(copy)
        a0, a1, b0, b1 = span.T
        assert (a1 > a0).all() and (b1 > b0).all() and (a1 - a0 + b1 - b0 <= 45).all()
        of_a, of_b = document_of(rows, a0), document_of(rows, b0)
        assert (of_a == document_of(rows, a1 - 1)).all() and (of_b == document_of(rows, b1 - 1)).all()
        if packing == "next":
            assert (of_a[~label] == of_b[~label]).all() and (of_a[label] != of_b[label]).all()
            assert (b0 >= a1)[~label].all()
        else:
            assert (of_a == of_b).all()
            assert (b0 >= a1)[~label].all() and (b1 <= a0)[label].all()
        # What lies between the two was cut off their ends: a sentence has at most 60 tokens here.
        apart = np.where(label, a0 - b1, b0 - a1)[(of_a == of_b)]
        assert apart.min() == 0 and apart.max() < 60 and np.mean(apart == 0) > 0.2


def test_labels_are_even(tokenizer: TextTokenizer) -> None:
    corpus = documents(300, (20, 30), seed=1)
    label = np.concatenate([made(corpus, tokenizer, "order").pairs(c)[1] for c in range(4)])
    assert abs(label.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(label))
    span, label = made(corpus, tokenizer, "next", length=128).pairs(0)
    assert 0.45 < label.mean() < 0.62  # rows of a single sentence, the last of a document, have no b of their own


@pytest.mark.parametrize("packing", ["next", "order"])
def test_what_another_document_pushed_out_is_put_back(tokenizer: TextTokenizer, packing: str) -> None:
    """Documents shorter than a row: a and the b that follow it are the whole of each document, each token once."""
    corpus = documents(100, (2, 6), seed=2)
    rows = made(corpus, tokenizer, packing, length=512, short=0.0)
    span, label = rows.pairs(3)
    count = np.zeros(len(rows.stream_T), dtype=int)
    own = np.ones(len(label), bool) if packing == "order" else ~label
    for a0, a1, b0, b1 in span[own]:
        count[a0:a1] += 1
        count[b0:b1] += 1
    for a0, a1, *_ in span[~own]:
        count[a0:a1] += 1
    sizes = np.diff(rows.stream.document_starts)
    if packing == "order":
        assert len(span) == len(sizes) and (count == 1).all()
    else:
        assert len(span) > len(sizes) and (count == 1).all()


def test_some_rows_are_shorter(corpus: Corpus, tokenizer: TextTokenizer) -> None:
    sizes = {}
    for short in (0.0, 0.1, 1.0):
        span, _ = made(documents(300, (30, 31)), tokenizer, "next", length=128, short=short).pairs(0)
        sizes[short] = (span[:, 1] - span[:, 0] + span[:, 3] - span[:, 2]).mean()
    assert sizes[1.0] < 0.75 * sizes[0.0] and sizes[1.0] < sizes[0.1] < sizes[0.0]


@pytest.mark.parametrize("packing", ["next", "order"])
def test_rows_are_what_the_spans_say(corpus: Corpus, tokenizer: TextTokenizer, packing: str) -> None:
    rows = made(corpus, tokenizer, packing, copies=3)
    index = np.arange(len(rows))
    special = tokenizer.special
    for epoch in (0, 4):
        found = rows.tokens(0, epoch, index)
        assert {name: part.shape for name, part in found.items()} == {
            "text": (len(rows), 48), "text:segment": (len(rows), 48), "text:label": (len(rows),)
        }  # fmt: skip
        span, label = rows.pairs(epoch % 3)
        picked = index * len(label) // len(rows)
        assert set(picked) == set(range(len(label))), "every row of a copy is shown"
        assert (found["text:label"] == label[picked]).all()
        for row, segment, (a0, a1, b0, b1) in zip(found["text"], found["text:segment"], span[picked], strict=True):
            a, b = rows.stream_T[a0:a1], rows.stream_T[b0:b1]
            wanted = [special.start, *a, special.end, *b, special.end]
            assert row[: len(wanted)].tolist() == wanted and (row[len(wanted) :] == -1).all()
            assert segment.tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1) + [0] * (48 - len(wanted))
        assert found["text"].max() < tokenizer.vocabulary
    assert "\n" in rows.read(3).decode() and rows.name(3).endswith("@3")


def test_epochs_take_copies_by_turns_and_all_is_a_function_of_the_seed(
    corpus: Corpus, tokenizer: TextTokenizer
) -> None:
    texts, index = Texts(length=32, packing="next", copies=3), np.arange(20)
    rows, again = (SentencePairs(corpus, tokenizer, texts, seed=5) for _ in range(2))
    other = SentencePairs(corpus, tokenizer, texts, seed=6)

    def of(source: SentencePairs, epoch: int) -> bytes:
        return b"".join(part.tobytes() for part in source.tokens(0, epoch, index).values())

    assert of(rows, 0) == of(rows, 3) == of(again, 6) and len({of(rows, epoch) for epoch in range(3)}) == 3
    assert of(other, 0) != of(rows, 0) and rows.fingerprint == again.fingerprint != other.fingerprint
    # One by one, in any order, is the same as all at once.
    single = [rows.tokens(0, 1, np.array([i]))["text"][0] for i in index[::-1]]
    assert (np.stack(single)[::-1] == rows.tokens(0, 1, index)["text"]).all()


def test_equal_for_any_number_of_processes(corpus: Corpus, tokenizer: TextTokenizer) -> None:
    rows = made(corpus, tokenizer, "order", copies=2)
    per_epoch = len(rows) // 16

    def batches(rank: int, world: int, first: int) -> list:
        with Loader(rows, (), batch_size=16, seed=1, workers=2, rank=rank, world=world) as loader:
            return list(loader.batches(first, per_epoch + 2))

    whole = batches(0, 1, 0)
    halves = [batches(rank, 2, 0) for rank in range(2)]
    for step, batch in enumerate(whole):
        joined = {int(i): k for k, i in enumerate(batch.index_B)}
        for half in halves:
            order = [joined[int(i)] for i in half[step].index_B]
            for name in ("text", "text:segment", "text:label"):
                assert (half[step].tokens[name] == batch.tokens[name][order]).all()
    resumed = batches(0, 1, per_epoch)
    assert all((a.tokens["text"] == b.tokens["text"]).all() for a, b in zip(whole[per_epoch:], resumed, strict=True))


def test_one_document_has_no_other(tokenizer: TextTokenizer) -> None:
    one = documents(1, (30, 31))
    with pytest.raises(DataError, match="is one document.*data.text.document"):
        made(one, tokenizer, "next")
    assert len(made(one, tokenizer, "order")) > 1
    with pytest.raises(DataError, match="too few for a pair"):
        made(Corpus.of(["\u200b"]), train_tokenizer(["a b"], "wordpiece", vocabulary=20), "order")


def test_sentences() -> None:
    text = 'One line.\nTwo here. "Three!" (Four?) Five costs 3.50 ...  six\n\n 七。八！「九。」十'  # noqa: RUF001
    assert sentences_of(text) == [
        "One line.", "Two here.", '"Three!"', "(Four?)", "Five costs 3.50 ...", "six", "七。", "八！", "「九。」", "十"  # noqa: RUF001
    ]  # fmt: skip
    assert sentences_of(" \n ") == []
