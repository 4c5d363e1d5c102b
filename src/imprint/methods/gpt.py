"""GPT: each token is predicted from those before it.

Radford, Narasimhan, Salimans, Sutskever 2018 (Radford 2018: Improving Language Understanding by Generative
Pre-Training; no arXiv number), and what Brown et al. 2020 (arXiv 2005.14165) kept of it: the same objective over packed
rows of text, a pre-norm network (GPT-2's) and another optimizer. The network is the encoder: `text:gpt` normalises
after each residual branch as GPT does, `text:gpt2` before it. Rows are cut at fixed places of the text and shuffled
anew each epoch, where GPT draws them at any place; neither separates the documents that share a row
(arXiv 2005.14165, App. B: the token between them tells).

To go on with a text: `imprint.backbones.generation.continued(load_encoder(RUN), ["Once upon a time"], 40)`. What a run
can do without further training is asked by `imprint evaluate incontext`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.backbones.language_model import LanguageModel, require_language
from imprint.backbones.text_tokenizer import TextTokenizer
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.data.texts import Texts
from imprint.dist.collectives import all_reduce_mean
from imprint.losses.token_prediction import token_cross_entropy, token_nats
from imprint.methods.base import Method, MethodConfig, StepOutput


@dataclass(frozen=True, kw_only=True)
class GPTConfig(MethodConfig):
    """GPT's choices; the network's sizes and dropout are the encoder's.

    Attributes:
        vocabulary: tokens that are told apart; 0 takes the tokenizer's (Sec. 4.1: 40,000 merges).
        length: tokens of a row, the most that the network ever sees (Sec. 4.1: 512; arXiv 2005.14165, Sec. 2.1: 2048).
        crossing: go on with the next document where one ends within a row; without it rows end with their document
            and are padded (arXiv 2005.14165, App. B: crossing).
    """

    vocabulary: int = 0
    length: int = 512
    crossing: bool = True


class GPT(Method):
    """The cross entropy of every next token (Radford 2018, Eq. 1), by the token embeddings as classifier (Eq. 2)."""

    Config: ClassVar[type[MethodConfig]] = GPTConfig

    def __init__(self, cfg: GPTConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        self.network = require_language(encoder, "gpt", causal=True)

    @classmethod
    def texts(cls, cfg: MethodConfig) -> Texts:
        """Return rows of running text."""
        assert isinstance(cfg, GPTConfig)
        return Texts(length=cfg.length, packing="packed" if cfg.crossing else "documents")

    def tokenized_by(self, tokenizer: TextTokenizer) -> None:
        """Keep the tokenizer with the encoder."""
        self.network.tokenizer = tokenizer

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        r"""Return L_1 = -mean_i log P(u_i | u_1 ... u_{i-1}) in nats, P = softmax(h_{i-1} W_e^T) (Eq. 1 and 2).

        The mean is over the predicted tokens of all processes; the first token of a row is not predicted.
        """
        ids_BL = batch.tokens["text"]
        states_BLD = self.network(ids_BL, padded=False)  # only what ends a row is missing
        target_T = ids_BL[:, 1:].flatten()
        there_T = (target_T >= 0).float()
        # A row at the end of a text is shorter: a token weighs the same in whichever row and process it stands.
        count = all_reduce_mean(there_T.sum()).clamp(min=1.0)
        loss, right = token_cross_entropy(
            states_BLD[:, :-1].flatten(0, 1),
            self.network.token_embedding,
            target_T.clamp(min=0),
            weight_T=there_T / count,
        )
        return StepOutput(loss, {"gpt/accuracy": right.detach()})

    @torch.no_grad()
    def judge(self, batch: Batch, t: Progress) -> tuple[Tensor, Tensor]:
        """Return the nats (T,) of every token but the first of each row, and these tokens (T,)."""
        ids_BL = batch.tokens["text"]
        states_BLD = self.network(ids_BL, padded=False)
        there_BL = ids_BL[:, 1:] >= 0
        target_T = ids_BL[:, 1:][there_BL]
        return token_nats(states_BLD[:, :-1][there_BL], self.network.token_embedding, target_T), target_T

    def judged_places(self, batch: Batch) -> Tensor:
        """Return bool (B, L): all tokens but the first of each row."""
        there_BL = batch.tokens["text"] >= 0
        there_BL[:, 0] = False
        return there_BL

    @property
    def encoder(self) -> LanguageModel:
        """The network."""
        return self.network
