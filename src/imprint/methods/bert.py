"""BERT: a text is read from both sides to predict hidden tokens, and whether one part of it follows the other.

Devlin, Chang, Lee, Toutanova 2019, arXiv 1810.04805. Rows [CLS] a [SEP] b [SEP]; 15 % of their tokens are predicted, of
which 80 % are hidden, 10 % replaced and 10 % left as they are; b follows a or comes from another document. Masks are
static: each of the ten copies of the data has its own, which comes back when the copy does.

Where paper and public code (google-research/bert) differ the code is followed. Deviations: the share is taken of the
ordinary tokens of a row, while the code counts [CLS] and [SEP] too; unknown tokens are never predicted, and a random
token is never a special one.
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
class BERTConfig(MethodConfig):
    """BERT's choices; depth, width and dropout are the encoder's (`arch`).

    Attributes:
        vocabulary: tokens that are known; 0 takes the tokenizer's (Sec. 3: 30,000 WordPieces).
        length: tokens of a row (App. A.2: 128 for nine tenths of the steps, then 512).
        mask_share: share of the tokens to predict (Sec. 3.1: 15 %).
        replaced: share of these that become a random token (App. A.1: 10 %).
        kept: share of these that stay (App. A.1: 10 %).
        max_predictions: most tokens to predict in a row; None sets no limit (public code: 20 at length 128).
        copies: times the data are cut and masked anew, by turns from epoch to epoch (public code: 10).
        short: share of the rows that are made shorter (App. A.2 and public code: 10 %).
        next_sentence: whether it is also predicted if b follows a (Sec. 3.1; Table 5 leaves it out).
        head_dropout: before the classes of that prediction (public code: none).
    """

    vocabulary: int = 0
    length: int = 128
    mask_share: float = 0.15
    replaced: float = 0.1
    kept: float = 0.1
    max_predictions: int | None = None
    copies: int = 10
    short: float = 0.1
    next_sentence: bool = True
    head_dropout: float = 0.0


class BERT(Method):
    """Cross entropy of the hidden tokens plus that of the next-sentence prediction (App. A.2)."""

    Config: ClassVar[type[MethodConfig]] = BERTConfig

    def __init__(self, cfg: BERTConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        self.backbone = require_language(encoder, "bert", causal=False)
        self.masker = TokenMasker(
            self.backbone.vocabulary,
            share=cfg.mask_share,
            most=cfg.max_predictions,
            replaced=cfg.replaced,
            kept=cfg.kept,
        )
        self.head = MaskedLanguageHead(self.backbone)
        self.pair = PairHead(self.backbone.embed_dim, cfg.head_dropout) if cfg.next_sentence else None

    @classmethod
    def texts(cls, cfg: MethodConfig) -> Texts:
        """Pairs of segments (App. A.2)."""
        assert isinstance(cfg, BERTConfig)
        return Texts(length=cfg.length, packing="next", short=cfg.short, copies=cfg.copies)

    def tokenized_by(self, tokenizer: TextTokenizer) -> None:
        """Take the tokenizer's special tokens."""
        self.masker.tokenized_by(tokenizer)
        self.backbone.tokenizer = tokenizer

    def inherit(self, previous: Method) -> None:
        """Go on with longer rows (App. A.2): all weights are taken, positions not seen before are new."""
        if not isinstance(previous, BERT):
            return super().inherit(previous)
        self.backbone.take_weights(previous.backbone)
        self.head.load_state_dict(previous.head.state_dict())
        if self.pair is not None and previous.pair is not None:
            self.pair.load_state_dict(previous.pair.state_dict())
        return None

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Return the sum of both losses, in nats."""
        copy = t.epoch % self.cfg.copies
        masked = self.masker(batch.tokens["text"], batch.index_B, seed_of("bert", copy))
        found = predict_masked(self.backbone, self.head, masked, batch.tokens["text:segment"])
        metrics = {"bert/masked": found.loss.detach(), "bert/accuracy": found.accuracy}
        if self.pair is None:
            return StepOutput(found.loss, metrics)
        pair_loss, metrics["bert/next_accuracy"] = self.pair.loss(found.hidden_BLD, batch.tokens["text:label"])
        metrics["bert/next"] = pair_loss.detach()
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
