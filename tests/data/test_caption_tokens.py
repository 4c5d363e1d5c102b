"""Captions as rows of tokens, another one each epoch; and pairs out of shards that hold both."""

from __future__ import annotations

import io
import json
import logging
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from imprint.backbones.text_tokenizer import TextTokenizer, train_tokenizer
from imprint.core.errors import ConfigError, DataError
from imprint.data.arrays import ArraySource
from imprint.data.caption_tokens import TokenizedPairs
from imprint.data.compact import Names
from imprint.data.pairs import Captions, PairSource, names_pairs, open_pairs
from imprint.data.texts import Texts

CAPTIONS = ["a dog", "a dog runs on the green grass near a tree", "two cats", "é 漢字 😀", "a red car", "\u200b"]


@pytest.fixture
def pairs() -> PairSource:
    images = ArraySource(np.zeros((3, 8, 8, 3), dtype=np.uint8))
    packed = Names.of(caption.encode() for caption in CAPTIONS)
    return PairSource(images, Captions(packed), np.array([0, 2, 5, 6]), "pairs")


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer(CAPTIONS, vocabulary=280)


def test_rows_hold_start_caption_end(pairs: PairSource, tokenizer: TextTokenizer) -> None:
    source = TokenizedPairs(pairs, tokenizer, Texts(name="caption", length=64, packing="captions"))
    rows = source.rows(np.arange(6))
    for row, caption in zip(rows, CAPTIONS, strict=True):
        ids = [tokenizer.special.start, *tokenizer.ids([caption])[0], tokenizer.special.end]
        assert row[: len(ids)].tolist() == ids and (row[len(ids) :] == -1).all()
        assert tokenizer.decode(row[row >= 0]) == caption
    assert rows.shape[1] == max((row >= 0).sum() for row in rows) and source.cut == 0
    assert len(source) == 3 and source.read(1) is not None and source.pixels


def test_long_captions_keep_their_end_token(
    pairs: PairSource, tokenizer: TextTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        source = TokenizedPairs(pairs, tokenizer, Texts(length=8, packing="captions"))
    rows = source.rows(np.arange(6))
    whole = tokenizer.ids([CAPTIONS[1]])[0]
    assert rows.shape == (6, 8) and rows[1].tolist() == [tokenizer.special.start, *whole[:6], tokenizer.special.end]
    assert source.cut == sum(len(ids) > 6 for ids in tokenizer.ids(CAPTIONS)) > 0
    assert f"{source.cut} of 6 captions" in caplog.records[0].getMessage()


def test_each_epoch_draws_a_caption_of_the_image(pairs: PairSource, tokenizer: TextTokenizer) -> None:
    source = TokenizedPairs(pairs, tokenizer, Texts(name="caption", length=64, packing="captions"))
    seen: dict[int, set[str]] = {0: set(), 1: set(), 2: set()}
    for epoch in range(40):
        rows = source.tokens(3, epoch, np.array([2, 0, 1]))["caption"]
        for image, row in zip((2, 0, 1), rows, strict=True):
            seen[image].add(tokenizer.decode(row[row >= 0]))
        alone = source.tokens(3, epoch, np.array([0]))["caption"][0]
        assert alone[alone >= 0].tolist() == rows[1][rows[1] >= 0].tolist()
    assert seen == {0: set(CAPTIONS[:2]), 1: set(CAPTIONS[2:5]), 2: {CAPTIONS[5]}}
    part = source.subset([1])
    assert (
        part.tokens(3, 0, np.array([0]))["caption"].tolist() == source.tokens(3, 0, np.array([1]))["caption"].tolist()
    )


def image(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return bytes(cv2.imencode(".png", pixels)[1])


def shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members:
                archive.writestr(name, content)
        return
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def told(**entries: object) -> bytes:
    return json.dumps(entries).encode()


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_shards_with_captions_inside(kind: str, tmp_path: Path) -> None:
    shard(
        tmp_path / f"00000.{kind}",
        [
            ("000.png", image(0)), ("000.txt", b"a  dog\n"), ("000.json", told(caption="not this", key="000")),
            ("001.json", told(caption=["two cats", "", "cats"])), ("001.png", image(1)), ("001.mask.png", image(9)),
            ("002.png", image(2)),
        ],
    )  # fmt: skip
    shard(
        tmp_path / f"00001.{kind}",
        [
            ("sub/000.png", image(3)), ("sub/000.json", told(url="x", alt="other", caption="again 000")),
            ("sub/001.png", image(4)), ("sub/001.txt", b" "), ("sub/002.png", image(5)), ("sub/002.json", b"{cut"),
            ("sub/003.png", image(6)), ("sub/003.txt", b"\xff"), ("sub/004.txt", b"no image"),
        ],
    )  # fmt: skip
    for _ in range(2):  # the second time from the cache
        pairs = open_pairs(str(tmp_path / f"{{00000..00001}}.{kind}"))
        assert [pairs.captions_of(i) for i in range(len(pairs))] == [["a dog"], ["two cats", "cats"], ["again 000"]]
        assert [pairs.read(i) for i in range(3)] == [image(0), image(1), image(3)]
        assert (pairs.counted.empty, pairs.counted.bare) == (2, 4)
    assert names_pairs(str(tmp_path / f"00000.{kind}"))
    alt = open_pairs(str(tmp_path / f"00001.{kind}"), caption_column="alt")
    assert [alt.captions_of(i) for i in range(len(alt))] == [["other"]]


def test_shards_without_captions_are_refused(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", [("000.png", image(0)), ("000.json", told(label=3))])
    with pytest.raises(DataError, match="none of the 1 images in .* has a caption beside it: NAME.txt"):
        open_pairs(tmp_path / "a.tar")
    assert not names_pairs(tmp_path / "a.tar")
    with pytest.raises(DataError, match="does not exist"):
        open_pairs(str(tmp_path / "b.tar"))
    (tmp_path / "captions.csv").write_text("image,caption\n000.png,a dog\n")
    assert open_pairs(f"{tmp_path / 'captions.csv'}:{tmp_path / 'a.tar'}").captions_of(0) == ["a dog"]
    with pytest.raises(ConfigError, match="captions beside images"):
        open_pairs("words")
