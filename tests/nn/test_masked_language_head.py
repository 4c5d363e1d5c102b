"""Heads of masked language models and what knows their tokens."""

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.backbones.text_tokenizer import train_tokenizer
from imprint.core.errors import ConfigError
from imprint.nn.masked_language_head import MaskedLanguageHead, PairHead, TokenMasker, word_beginnings


def test_words_begin_where_the_kind_of_vocabulary_says():
    assert word_beginnings(["[CLS]", "▁the", "s", "▁", ",", "re"]) == [False, True, False, True, True, False]
    assert word_beginnings(["[CLS]", "the", "##s", ",", "##re"]) == [True, True, False, True, False]
    assert word_beginnings(["<s>", "Ġthe", "s", "."]) == [False, True, False, True]
    assert word_beginnings(["a", "b"]) == [True, True]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_words_of_a_learned_tokenizer_begin_once_each(kind):
    texts = ["reading writing running singing the sky and the trees of spring"] * 5
    tokenizer = train_tokenizer(texts, kind, vocabulary=275 if kind == "bpe" else 45)
    masker = TokenMasker(tokenizer.vocabulary, share=0.15, ngram=3)
    masker.tokenized_by(tokenizer)
    ids = tokenizer.ids([texts[0]])[0]
    assert len(ids) > 11 and masker.begins_K[torch.from_numpy(ids).long()].sum() == 11
    assert masker.mask_id == tokenizer.special.mask and not masker.ordinary_K[masker.mask_id]
    assert not masker.state_dict()  # it follows from the tokenizer, which is stored with the run


def test_without_a_tokenizer_the_ids_are_those_of_one_learned_here():
    masker = TokenMasker(12, share=0.5)
    assert masker.mask_id == 4 and masker.random_R.tolist() == list(range(5, 12))
    made = masker(torch.tensor([[2, 5, 6, 7, 8, 3, -1, -1]]), torch.zeros(1, dtype=torch.int64), 1)
    assert made.valid_BP.sum() == 2 and made.ids_BL[0, [0, 5, 6, 7]].tolist() == [2, 3, -1, -1]


def test_too_small_a_vocabulary_is_refused():
    tokenizer = train_tokenizer(["a b c d e f g h"] * 3, "wordpiece", vocabulary=40)
    with pytest.raises(ConfigError, match="vocabulary"):
        TokenMasker(8, share=0.15).tokenized_by(tokenizer)
    with pytest.raises(ConfigError, match="special ones"):
        TokenMasker(5, share=0.15)


@pytest.mark.parametrize(("kind", "width"), [("bert", 32), ("albert", 8)])
def test_the_head_ends_in_the_width_of_the_embeddings_and_holds_none(kind, width):
    arch = {"embed_dim": 32, "depth": 1, "num_heads": 2} | ({"embedding": 8} if kind == "albert" else {})
    head = MaskedLanguageHead(build_encoder(f"text:{kind}", image_size=32, vocabulary=50, context=16, arch=arch))
    made = head(torch.randn(7, 32))
    assert made.shape == (7, width) and head.bias.shape == (50,)
    torch.testing.assert_close(made.mean(1), torch.zeros(7), atol=1e-5, rtol=0)
    assert sum(p.numel() for p in head.parameters()) == 32 * width + width + 2 * width + 50


def test_the_pair_head_reads_the_first_token_alone():
    head, hidden = PairHead(16), torch.randn(4, 9, 16)
    other = hidden.clone()
    other[:, 1:] = 0
    assert torch.equal(head(hidden), head(other)) and head(hidden).shape == (4, 2)
    label = head(hidden).argmax(1)
    loss, right = head.loss(hidden, label)
    assert right == 1.0 and loss < torch.log(torch.tensor(2.0))
    with torch.autocast("cpu", torch.bfloat16):
        assert head.loss(hidden, label)[0].dtype == torch.float32
