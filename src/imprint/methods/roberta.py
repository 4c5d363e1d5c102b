"""RoBERTa: BERT trained longer on whole rows of text, with new masks every time and without the next sentence.

Liu, Ott, Goyal, Du, Joshi, Chen, Levy, Lewis, Zettlemoyer, Stoyanov 2019, arXiv 1907.11692. Masks are drawn anew
whenever a row is seen (Sec. 4.1); rows are full of text that may cross from one document into the next (FULL-SENTENCES,
Sec. 4.2); tokens are byte-level BPE (Sec. 4.4).

Deviations from the public code (fairseq): the number of tokens to predict is rounded to the nearest, where the code
rounds up or down at random; rows are cut every `length` tokens and not at ends of sentences; positions count from 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.backbones.language_model import require_language
from imprint.backbones.text_tokenizer import TextTokenizer
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.core.rng import seed_of
from imprint.data.batch import Batch
from imprint.data.texts import Texts
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.nn.masked_language_head import (
    MaskedLanguageHead,
    TokenMasker,
    judge_masked,
    judged_places,
    predict_masked,
)


@dataclass(frozen=True, kw_only=True)
class RoBERTaConfig(MethodConfig):
    """RoBERTa's choices; depth, width and dropout are the encoder's (`arch`).

    Attributes:
        vocabulary: tokens that are known; 0 takes the tokenizer's (Sec. 4.4: 50,000 byte-level BPE units).
        length: tokens of a row (Sec. 2.4 and 3.1: 512).
        rows: `packed` crosses from one document into the next (FULL-SENTENCES), `documents` does not (DOC-SENTENCES);
            Sec. 4.2.
        mask_share: share of the tokens to predict (Sec. 2.3: 15 %).
        replaced: share of these that become a random token (Sec. 2.3: 10 %).
        kept: share of these that stay (Sec. 2.3: 10 %).
        masks: `dynamic` draws them at every step, `static` keeps those of each of `copies` (Sec. 4.1, Table 1).
        copies: number of static masks of a row, by turns from epoch to epoch (Sec. 4.1: 10).
    """

    vocabulary: int = 0
    length: int = 512
    rows: Literal["packed", "documents"] = "packed"
    mask_share: float = 0.15
    replaced: float = 0.1
    kept: float = 0.1
    masks: Literal["dynamic", "static"] = "dynamic"
    copies: int = 10

    def __post_init__(self) -> None:
        """Check what no single type can say."""
        if self.copies < 1:
            raise ConfigError(f"copies {self.copies} must be at least 1.")


class RoBERTa(Method):
    """Cross entropy of the hidden tokens (Sec. 2.3)."""

    Config: ClassVar[type[MethodConfig]] = RoBERTaConfig

    def __init__(self, cfg: RoBERTaConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        self.backbone = require_language(encoder, "roberta", causal=False)
        self.masker = TokenMasker(self.backbone.vocabulary, share=cfg.mask_share, replaced=cfg.replaced, kept=cfg.kept)
        self.head = MaskedLanguageHead(self.backbone)

    @classmethod
    def texts(cls, cfg: MethodConfig) -> Texts:
        """Rows full of text, begun by the start token (Sec. 4.2)."""
        assert isinstance(cfg, RoBERTaConfig)
        return Texts(length=cfg.length, packing=cfg.rows, start=True)

    def tokenized_by(self, tokenizer: TextTokenizer) -> None:
        """Take the tokenizer's special tokens."""
        self.masker.tokenized_by(tokenizer)
        self.backbone.tokenizer = tokenizer

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Return the loss, in nats."""
        moment = t.step if self.cfg.masks == "dynamic" else t.epoch % self.cfg.copies
        masked = self.masker(batch.tokens["text"], batch.index_B, seed_of("roberta", self.cfg.masks, moment))
        found = predict_masked(self.backbone, self.head, masked)
        return StepOutput(found.loss, {"roberta/accuracy": found.accuracy})

    def judge(self, batch: Batch, t: Progress) -> tuple[Tensor, Tensor]:
        """Return nats of the hidden tokens, under masks of their own, and these tokens."""
        return judge_masked(self.backbone, self.head, self.masker, batch)

    def judged_places(self, batch: Batch) -> Tensor:
        """Return bool (B, L): which tokens `judge` predicts, from left to right and row by row."""
        return judged_places(self.masker, batch)

    @property
    def encoder(self) -> Encoder:
        """The network without its head."""
        return self.backbone
