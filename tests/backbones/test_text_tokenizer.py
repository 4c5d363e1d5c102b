"""Tokenizers: learned alike from the same texts, whole on any text, and read from the files of others."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from imprint.backbones.text_tokenizer import SPECIAL, TextTokenizer, read_tokenizer, train_tokenizer
from imprint.core.errors import CheckpointError, ConfigError, DataError

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Pack my box with five dozen liquor jugs!",
    "ab ac ad bc bd",
] * 3
KINDS = ("bpe", "wordpiece", "unigram")
STRANGE = [
    "",
    "héllo e\u0301",
    "😀 漢字\n\n two  spaces\t\x00",
    "[MASK] <unk> [PAD]",
    "\ud7ff\uffff",
    "ﬁ ① Å",
    "the end ",
]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_come_first_and_ids_are_in_range(kind: str) -> None:
    tokenizer = train_tokenizer(TEXTS, kind, vocabulary=290)
    assert [tokenizer.token(i) for i in range(5)] == list(SPECIAL)
    s = tokenizer.special
    assert (s.padding, s.unknown, s.start, s.end, s.mask) == (0, 1, 2, 3, 4)
    ids = np.concatenate(tokenizer.ids([*TEXTS, *STRANGE]))
    assert ids.dtype == np.int32 and ids.max() < tokenizer.vocabulary <= 290
    assert not np.isin(ids, [0, 2, 3, 4]).any(), "no text makes a special token"
    assert tokenizer.ordinary.tolist() == list(range(5, tokenizer.vocabulary))
    assert tokenizer.ids([]) == []


LEARN = """
import sys
from imprint.backbones.text_tokenizer import train_tokenizer
print(train_tokenizer(open(sys.argv[1]).read().split(chr(10)), sys.argv[2], vocabulary=400).fingerprint)
"""


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_the_same_texts_give_the_same_tokenizer_in_every_process(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyzäöüß漢字")
    words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(400)]
    texts = [" ".join(rng.choice(words, 30)) for _ in range(40)]
    (tmp_path / "a.txt").write_text("\n".join(texts), encoding="utf-8")
    here = {train_tokenizer(texts, kind, vocabulary=400).fingerprint for _ in range(3)}
    command = [sys.executable, "-c", LEARN, str(tmp_path / "a.txt"), kind]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert here == {there}


def test_unigram_numbers_its_tokens_alike() -> None:
    first, second = (json.loads(train_tokenizer(TEXTS, "unigram", vocabulary=60).json)["model"] for _ in range(2))
    assert [token for token, _ in first["vocab"]] == [token for token, _ in second["vocab"]]
    assert np.allclose(*([score for _, score in model["vocab"]] for model in (first, second)), atol=1e-3)


def test_bytes_give_every_text_back() -> None:
    tokenizer = train_tokenizer(TEXTS, vocabulary=300)
    rng = np.random.default_rng(0)
    points = rng.integers(1, 0x110000, 3000)
    random = "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)
    for text in (*STRANGE, random, *TEXTS):
        (ids,) = tokenizer.ids([text])
        assert tokenizer.decode(ids) == text and tokenizer.special.unknown not in ids
    folded = train_tokenizer(TEXTS, vocabulary=300, lowercase=True)
    assert folded.decode(folded.ids(["The ÉCOLE"])[0]) == unicodedata.normalize("NFC", "the école")


def test_what_is_not_known_becomes_the_unknown_token() -> None:
    for kind in ("wordpiece", "unigram"):
        tokenizer = train_tokenizer(TEXTS, kind, vocabulary=100)
        ids = tokenizer.ids(["fox 漢"])[0]
        assert tokenizer.special.unknown in ids and "fox" in tokenizer.decode(ids)
    # Letters that are too rare for the vocabulary are unknown, too; the frequent ones stay.
    many = ["".join(chr(0x4E00 + i) for i in range(300)), "common words " * 50]
    rare = train_tokenizer(many, "wordpiece", vocabulary=60)
    assert rare.vocabulary <= 60 and rare.special.unknown not in rare.ids(["common"])[0]
    with pytest.raises(ConfigError, match="unigram tokenizer of 60 tokens cannot be learned.*use bpe"):
        train_tokenizer(many, "unigram", vocabulary=60)


def test_what_cannot_be_learned_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 261 tokens, got 100"):
        train_tokenizer(TEXTS, vocabulary=100)
    with pytest.raises(DataError, match="no text to learn"):
        train_tokenizer([" ", "\n"])


def written(folder: Path, style: str) -> Path:
    """A tokenizer.json as transformers writes it for GPT-2, RoBERTa, BERT, ALBERT, T5."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    names = {
        "gpt2": ["<|endoftext|>"], "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        "bert": list(SPECIAL), "albert": ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"],
        "t5": ["<pad>", "</s>", "<unk>"], "llama": ["<unk>", "<s>", "</s>"],
    }[style]  # fmt: skip
    if style == "bert":
        vocabulary = {word: i for i, word in enumerate([*names, "the", "fox", "##es", "!"])}
        inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    else:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {word: i for i, word in enumerate([*names, *letters])}
        inner = Tokenizer(models.BPE(vocabulary, []))
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(name, special=True) for name in names])
    inner.enable_truncation(4)
    inner.enable_padding(length=16)
    folder.mkdir(exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(
    ("style", "special"),
    [
        ("gpt2", (0, 0, 0, 0, None)), ("roberta", (1, 3, 0, 2, 4)), ("bert", (0, 1, 2, 3, 4)),
        ("albert", (0, 1, 2, 3, 4)), ("t5", (0, 2, 1, 1, None)), ("llama", (2, 0, 1, 2, None)),
    ],
)  # fmt: skip
def test_tokenizers_of_others(style: str, special: tuple, tmp_path: Path) -> None:
    tokenizer = read_tokenizer(written(tmp_path / style, style))
    s = tokenizer.special
    assert (s.padding, s.unknown, s.start, s.end, s.mask) == special
    (ids,) = tokenizer.ids(["the foxes!" * 3])
    assert len(ids) > 4 and (ids >= len(set(special) - {None})).any(), "neither cut nor filled up"
    if style != "bert":
        assert tokenizer.decode(tokenizer.ids(["the <s> foxes"])[0]) == "the <s> foxes"
    again = read_tokenizer(tmp_path / style / "tokenizer.json")
    assert again.fingerprint == tokenizer.fingerprint == TextTokenizer(tokenizer.json).fingerprint


def test_folders_of_older_models(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "fox", "##es"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.ids(["The foxes"])[0].tolist() == [5, 6, 7] and tokenizer.special.mask == 4


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no tokenizer.json"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{cut")
    with pytest.raises(CheckpointError, match="cannot be read as a tokenizer"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="tokenizer.json' cannot be read as a tokenizer"):
        read_tokenizer(tmp_path)
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="no token for the start and end"):
        read_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tokenizer(tmp_path / "absent.json")
