"""Heads of a masked language model, and what knows its tokens: those of BERT, RoBERTa and ALBERT.

Shapes: B rows, L tokens of a row, P tokens of a row to predict, T = B P, D width of the network, E width of the token
embeddings, K tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from imprint.backbones.language_model import LanguageModel
from imprint.backbones.text_tokenizer import SPECIAL, TextTokenizer
from imprint.core.errors import ConfigError
from imprint.core.rng import seed_of
from imprint.data.batch import Batch
from imprint.dist.collectives import all_reduce_mean
from imprint.losses.token_prediction import token_cross_entropy, token_nats
from imprint.ops.token_masking import MaskedTokens, mask_tokens

SPREAD = 0.02
"""Standard deviation of new matrices (BERT's public code)."""

_WORD_MARKS = ("▁", "Ġ")
"""What SentencePiece and byte-level BPE put before a token that begins a word."""


class Prediction(NamedTuple):
    """What a forward pass gives.

    Attributes:
        loss: mean cross entropy of the hidden tokens of all processes' rows, in nats.
        accuracy: share of them that is found.
        hidden_BLD: the network's last layer, for further heads.
    """

    loss: Tensor
    accuracy: Tensor
    hidden_BLD: Tensor


class TokenMasker(nn.Module):
    """Knows which tokens may be hidden and what takes their place.

    Args:
        vocabulary: K.
        share: of the ordinary tokens of a row to predict.
        most: limit of their number in a row, or None.
        replaced: share of the chosen tokens that become a random one.
        kept: share of the chosen tokens that stay.
        ngram: most words of a run of tokens hidden together.

    Raises:
        ConfigError: for numbers out of range.

    Attributes:
        mask_id: id of the mask token.
        ordinary_K: bool, tokens that stand for text: not special, not unknown.
        random_R: their ids.
        begins_K: bool, tokens that begin a word.
    """

    ordinary_K: Tensor
    random_R: Tensor
    begins_K: Tensor

    def __init__(
        self,
        vocabulary: int,
        *,
        share: float,
        most: int | None = None,
        replaced: float = 0.1,
        kept: float = 0.1,
        ngram: int = 1,
    ) -> None:
        super().__init__()
        if vocabulary <= len(SPECIAL):
            raise ConfigError(f"a vocabulary of {vocabulary} tokens has none but special ones.")
        if not 0.0 < share < 1.0 or replaced < 0.0 or kept < 0.0 or replaced + kept > 1.0:
            raise ConfigError(
                f"mask_share {share} must lie in (0, 1), and replaced {replaced} and kept {kept} must be shares that "
                "sum to at most 1."
            )
        if ngram < 1 or (most is not None and most < 1):
            raise ConfigError(f"ngram {ngram} and max_predictions {most} must be at least 1.")
        self.vocabulary, self.share, self.most, self.ngram = vocabulary, share, most, ngram
        self.replaced, self.kept = replaced, kept
        # They follow from the tokenizer, which is stored with the run.
        for name in ("ordinary_K", "random_R", "begins_K"):
            self.register_buffer(name, None, persistent=False)
        self._know(range(len(SPECIAL), vocabulary), range(vocabulary), SPECIAL.index("[MASK]"))

    def tokenized_by(self, tokenizer: TextTokenizer) -> None:
        """Take a tokenizer's special tokens and its beginnings of words.

        Raises:
            ConfigError: when it has no mask token, or more tokens than the vocabulary.
        """
        if tokenizer.special.mask is None:
            raise ConfigError(
                "the tokenizer has no mask token ([MASK] or <mask>), which a masked language model needs: add one, or "
                "leave --data.text.tokenizer out, and one is learned."
            )
        if tokenizer.vocabulary > self.vocabulary:
            raise ConfigError(f"the tokenizer has {tokenizer.vocabulary} tokens, the vocabulary {self.vocabulary}.")
        begins = word_beginnings([tokenizer.token(i) for i in range(tokenizer.vocabulary)])
        self._know(tokenizer.ordinary.tolist(), (i for i, first in enumerate(begins) if first), tokenizer.special.mask)

    def _know(self, ordinary: Iterable[int], begins: Iterable[int], mask: int) -> None:
        self.mask_id = mask
        device = None if self.random_R is None else self.random_R.device
        self.random_R = torch.tensor(list(ordinary), dtype=torch.int64, device=device)
        self.ordinary_K = torch.zeros(self.vocabulary, dtype=torch.bool, device=device)
        self.ordinary_K[self.random_R] = True
        self.begins_K = torch.zeros(self.vocabulary, dtype=torch.bool, device=device)
        self.begins_K[torch.tensor(list(begins), dtype=torch.int64, device=device)] = True

    def forward(self, ids_BL: Tensor, index_B: Tensor, key: int) -> MaskedTokens:
        """Return the rows with some tokens hidden, a function of the key and the rows' indices (`mask_tokens`)."""
        real_BL = ids_BL.clamp(min=0)
        return mask_tokens(
            ids_BL,
            self.ordinary_K[real_BL] & (ids_BL >= 0),
            key,
            index_B,
            mask_id=self.mask_id,
            random_R=self.random_R,
            share=self.share,
            most=self.most,
            replaced=self.replaced,
            kept=self.kept,
            begins_BL=self.begins_K[real_BL] if self.ngram > 1 else None,
            ngram=self.ngram,
        )

    def held_out(self, ids_BL: Tensor, index_B: Tensor) -> MaskedTokens:
        """Return the rows as they are judged: masks of a key of their own, the same at every step."""
        return self(ids_BL, index_B, seed_of("judged"))


def word_beginnings(tokens: list[str]) -> list[bool]:
    """Tell which tokens of a vocabulary begin a word, by the marks of its kind.

    A vocabulary with the marks of SentencePiece or byte-level BPE begins words where they stand, and at every token
    without letters or digits; one with WordPiece's `##` begins words where it does not stand; any other everywhere.
    """
    for mark in _WORD_MARKS:
        if any(token.startswith(mark) and token != mark for token in tokens):
            return [token.startswith(mark) or not any(c.isalnum() for c in token) for token in tokens]
    return [not token.startswith("##") for token in tokens]


class MaskedLanguageHead(nn.Module):
    """Predicts tokens: h -> norm(gelu(A h + a)), then the token embeddings and a bias of its own.

    BERT's public code (get_masked_lm_output); the embeddings are the network's, one parameter for both. ALBERT's
    transform leads down to E.

    Args:
        network: whose tokens are predicted.
    """

    def __init__(self, network: LanguageModel) -> None:
        super().__init__()
        vocabulary, width = network.token_embedding.shape
        self.dense = nn.Linear(network.embed_dim, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        nn.init.normal_(self.dense.weight, std=SPREAD)
        nn.init.zeros_(self.dense.bias)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """Return what the embeddings are multiplied with, (T, E)."""
        made: Tensor = self.norm(nn.functional.gelu(self.dense(hidden_TD)))
        return made


class PairHead(nn.Module):
    """Says whether the second part of a row belongs behind the first: tanh(A h_[CLS] + a), then two classes.

    Args:
        width: D.
        dropout: before the classes.
    """

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.pooler, self.dropout, self.linear = nn.Linear(width, width), nn.Dropout(dropout), nn.Linear(width, 2)
        for layer in (self.pooler, self.linear):
            nn.init.normal_(layer.weight, std=SPREAD)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Return logits (B, 2): as in the text, or not so."""
        logits_B2: Tensor = self.linear(self.dropout(torch.tanh(self.pooler(hidden_BLD[:, 0]))))
        return logits_B2

    def loss(self, hidden_BLD: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean cross entropy over rows, in float32, and the share of rows that is right."""
        logits_B2 = self(hidden_BLD)
        right = (logits_B2.detach().argmax(1) == label_B).float().mean()
        with torch.autocast(logits_B2.device.type, enabled=False):
            wide_B2 = logits_B2 if logits_B2.dtype == torch.float64 else logits_B2.float()
            return nn.functional.cross_entropy(wide_B2, label_B), right


def predict_masked(
    network: LanguageModel, head: MaskedLanguageHead, masked: MaskedTokens, segment_BL: Tensor | None = None
) -> Prediction:
    """Return the loss over the hidden tokens of all processes together, so that each of them weighs the same.

    Args:
        network: reads the rows.
        head: predicts the tokens.
        masked: rows with tokens to predict.
        segment_BL: which of two parts a token belongs to, or None.
    """
    hidden_BLD = network(masked.ids_BL, segment_BL)
    # The head sees the hidden tokens only: 15 % of what it would cost over all.
    hidden_BPD = hidden_BLD.gather(1, masked.places_BP[:, :, None].expand(-1, -1, hidden_BLD.shape[2]))
    count = all_reduce_mean(masked.valid_BP.sum().float())  # rows hide different numbers, so processes do
    loss, accuracy = token_cross_entropy(
        head(hidden_BPD.flatten(0, 1)),
        network.token_embedding,
        masked.targets_BP.flatten(),
        head.bias,
        masked.valid_BP.flatten() / count.clamp(min=1.0),
    )
    return Prediction(loss, accuracy, hidden_BLD)


@torch.no_grad()
def judge_masked(
    network: LanguageModel, head: MaskedLanguageHead, masker: TokenMasker, batch: Batch, *, name: str = "text"
) -> tuple[Tensor, Tensor]:
    """Return (nats of each token that is hidden, these tokens), row by row and from left to right.

    What is hidden depends on the rows and their indices only; see `judged_places`.
    """
    ids_BL = batch.tokens[name]
    masked = masker.held_out(ids_BL, batch.index_B)
    chosen_BL = _places(masked)
    hidden_TD = network(masked.ids_BL, batch.tokens.get(f"{name}:segment"))[chosen_BL]
    tokens_T = ids_BL[chosen_BL]
    return token_nats(head(hidden_TD), network.token_embedding, tokens_T, head.bias), tokens_T


def judged_places(masker: TokenMasker, batch: Batch, *, name: str = "text") -> Tensor:
    """Return bool (B, L): which tokens `judge_masked` predicts, `batch.tokens[name][places]` in its order."""
    return _places(masker.held_out(batch.tokens[name], batch.index_B))


def _places(masked: MaskedTokens) -> Tensor:
    chosen_BL = torch.zeros_like(masked.ids_BL, dtype=torch.bool)
    return chosen_BL.scatter(1, masked.places_BP, masked.valid_BP)
