"""ALBERT: a lite BERT, with small token embeddings, one layer used many times, and the order of two segments to tell.

Lan, Chen, Goodman, Gimpel, Sharma, Soricut 2020, arXiv 1909.11942. The V x E token embeddings are followed by an E x H
matrix (Sec. 3.1, factorized embedding parameterization) and all layers share their weights, so that the network has

    V E + 2 E + L E + 2 E + (E H + H) + 4 (H^2 + H) + 2 H F + F + H + 4 H

parameters for a vocabulary V, rows of L tokens, width H and inner width F, whatever its depth. Runs of up to three
whole words are hidden together (Sec. 4.1), and half of the pairs of segments have changed places (sentence-order
prediction, Sec. 3.1).

Deviations: the paper trains with LAMB, which Imprint does not have; the recipes use AdamW. The public code
(google-research/albert) tries shorter runs where the number of tokens to predict would be exceeded and may stop below
it; here the last run is cut, so that the number is exact. It may hide a run across [SEP]; here none is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.backbones.language_model import require_language
from imprint.backbones.text_tokenizer import TextTokenizer
from imprint.core.progress import Progress
from imprint.core.rng import seed_of
from imprint.data.batch import Batch
from imprint.data.texts import Texts
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.nn.masked_language_head import (
    MaskedLanguageHead,
    PairHead,
    TokenMasker,
    judge_masked,
    judged_places,
    predict_masked,
)


@dataclass(frozen=True, kw_only=True)
class ALBERTConfig(MethodConfig):
    """ALBERT's choices; depth, width, embedding width and dropout are the encoder's (`arch`).

    Attributes:
        vocabulary: tokens that are known; 0 takes the tokenizer's (Sec. 4.1: 30,000 SentencePieces).
        length: tokens of a row (Sec. 4.1: 512).
        mask_share: share of the tokens to predict (public code: 15 %).
        replaced: share of these that become a random token (public code: 10 %).
        kept: share of these that stay (public code: 10 %).
        ngram: most words of a run that is hidden (Sec. 4.1: 3, with p(n) proportional to 1/n; 1 hides single tokens).
        max_predictions: most tokens to predict in a row; None sets no limit (public code: 20, at any length).
        copies: times the data are cut and masked anew, by turns from epoch to epoch (public code: 40).
        short: share of the rows that are made shorter (Sec. 4.1: 10 %).
        sentence_order: whether the order of the segments is predicted, too (Sec. 3.1; Table 5 leaves it out).
        head_dropout: before the classes of that prediction (public code: none).
    """

    vocabulary: int = 0
    length: int = 512
    mask_share: float = 0.15
    replaced: float = 0.1
    kept: float = 0.1
    ngram: int = 3
    max_predictions: int | None = None
    copies: int = 40
    short: float = 0.1
    sentence_order: bool = True
    head_dropout: float = 0.0


class ALBERT(Method):
    """Cross entropy of the hidden tokens plus that of the sentence-order prediction (Sec. 3.1)."""

    Config: ClassVar[type[MethodConfig]] = ALBERTConfig

    def __init__(self, cfg: ALBERTConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        self.backbone = require_language(encoder, "albert", causal=False)
        self.masker = TokenMasker(
            self.backbone.vocabulary,
            share=cfg.mask_share,
            most=cfg.max_predictions,
            replaced=cfg.replaced,
            kept=cfg.kept,
            ngram=cfg.ngram,
        )
        self.head = MaskedLanguageHead(self.backbone)
        self.pair = PairHead(self.backbone.embed_dim, cfg.head_dropout) if cfg.sentence_order else None

    @classmethod
    def texts(cls, cfg: MethodConfig) -> Texts:
        """Pairs of segments, half of them swapped (Sec. 3.1)."""
        assert isinstance(cfg, ALBERTConfig)
        return Texts(length=cfg.length, packing="order", short=cfg.short, copies=cfg.copies)

    def tokenized_by(self, tokenizer: TextTokenizer) -> None:
        """Take the tokenizer's special tokens, and where its words begin."""
        self.masker.tokenized_by(tokenizer)
        self.backbone.tokenizer = tokenizer

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Return the sum of both losses, in nats."""
        copy = t.epoch % self.cfg.copies
        masked = self.masker(batch.tokens["text"], batch.index_B, seed_of("albert", copy))
        found = predict_masked(self.backbone, self.head, masked, batch.tokens["text:segment"])
        metrics = {"albert/masked": found.loss.detach(), "albert/accuracy": found.accuracy}
        if self.pair is None:
            return StepOutput(found.loss, metrics)
        pair_loss, metrics["albert/order_accuracy"] = self.pair.loss(found.hidden_BLD, batch.tokens["text:label"])
        metrics["albert/order"] = pair_loss.detach()
        return StepOutput(found.loss + pair_loss, metrics)

    def judge(self, batch: Batch, t: Progress) -> tuple[Tensor, Tensor]:
        """Return nats of the hidden tokens, under masks of their own, and these tokens."""
        return judge_masked(self.backbone, self.head, self.masker, batch)

    def judged_places(self, batch: Batch) -> Tensor:
        """Return bool (B, L): which tokens `judge` predicts, from left to right and row by row."""
        return judged_places(self.masker, batch)

    @property
    def encoder(self) -> Encoder:
        """The network without its heads."""
        return self.backbone
