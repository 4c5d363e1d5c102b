"""The thread that makes batches of text: in order, ahead of time, and closed when it is done."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import pytest

from imprint.backbones.text_tokenizer import train_tokenizer
from imprint.core.errors import ConfigError
from imprint.data.assembly import Request
from imprint.data.corpus import Corpus
from imprint.data.text_assembly import TextAssembly
from imprint.data.texts import Texts
from imprint.data.token_rows import TokenRows


@pytest.fixture(scope="module")
def rows() -> TokenRows:
    corpus = Corpus.of(f"document number {i} of a few" for i in range(40))
    return TokenRows(corpus, train_tokenizer(corpus.documents(), vocabulary=300), Texts(length=8, packing="documents"))


def requests(count: int) -> list[Request]:
    return [Request(np.arange(4) + 4 * i, seed=0, epoch=0) for i in range(count)]


def test_batches_come_in_order(rows: TokenRows) -> None:
    assembly = TextAssembly(rows)
    batches = list(assembly.serve(requests(6)))
    assert [batch.index_B.tolist() for batch in batches] == [list(range(4 * i, 4 * i + 4)) for i in range(6)]
    for batch in batches:
        assert (batch.tokens["text"].numpy() == rows.tokens(0, 0, batch.index_B.numpy())["text"]).all()
        assert batch.labels_B is None and not batch.views and len(batch) == 4
    assembly.close()


def test_no_more_than_prefetch_is_asked_ahead(rows: TokenRows) -> None:
    asked = []

    def counted():
        for request in requests(9):
            asked.append(request)
            yield request

    assembly = TextAssembly(rows, prefetch=2)
    served = assembly.serve(counted())
    next(served)
    assert len(asked) == 3
    served.close()
    assembly.close()


def test_a_closed_assembly_leaves_no_thread_and_refuses(rows: TokenRows) -> None:
    assembly = TextAssembly(rows)
    list(assembly.serve(requests(1)))
    assembly.close()
    assert not any(thread.name.startswith("imprint-text") for thread in threading.enumerate())
    with pytest.raises(ConfigError, match="closed"):
        next(assembly.serve(requests(1)))


def test_errors_reach_whoever_waits(rows: TokenRows, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(seed: int, epoch: int, index_B: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
        raise OSError("the disk is gone")

    monkeypatch.setattr(rows, "tokens", broken)
    assembly = TextAssembly(rows)
    with pytest.raises(OSError, match="the disk is gone"):
        next(assembly.serve(requests(1)))
    assembly.close()
