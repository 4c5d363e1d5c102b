"""Text for data2vec: tokens with learned positions, hidden as BERT hides them.

Shape suffixes: B texts, L tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imprint.core.errors import ConfigError
from imprint.nn.data2vec import FrontEnd
from imprint.nn.sequence import SequenceTransformer


class TextFrontEnd(FrontEnd):
    """Token and position embeddings, then a transformer; targets are what its feed-forward layers put out.

    Of the masked tokens 80 % become the mask token, 10 % a random one and 10 % stay (Devlin et al. 2019, arXiv
    1810.04805, Sec. 3.1; data2vec, Sec. 4.3). Which is drawn from torch's generator.

    Args:
        vocabulary: number of tokens; the mask token is one more, of our own.
        width: D.
        depth: blocks.
        heads: attention heads.
        length: longest text in tokens.
        padding: token that fills short texts up and that nobody looks at, or None.
        first_random: smallest token that may stand in for a masked one (the special ones come before it).
        dropout: in the transformer and after the embeddings.

    Raises:
        ConfigError: for sizes that cannot be.
    """

    shared = ("tokens", "positions", "norm")

    def __init__(
        self,
        vocabulary: int,
        *,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        length: int = 512,
        padding: int | None = None,
        first_random: int = 0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not 0 <= first_random < vocabulary or length < 1 or depth < 1:
            raise ConfigError(
                f"a text front end needs a vocabulary above first_random ({first_random}), got {vocabulary}, and a "
                f"length and depth of at least 1, got {length} and {depth}."
            )
        self.vocabulary, self.padding, self.first_random = vocabulary, padding, first_random
        self.width, self.depth, self.length = width, depth, length
        self.tokens = nn.Embedding(vocabulary + 1, width)
        self.positions = nn.Embedding(length, width)
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(dropout)
        self.transformer = SequenceTransformer(width, depth, heads, dropout=dropout)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def predict(self, inputs: Tensor, mask_BN: Tensor) -> Tensor:
        """Return the tokens (B, L, D) of a text of which the masked ones were replaced."""
        last: Tensor = self.transformer(self._embed(self.replaced(inputs, mask_BN)), self._padding(inputs))
        return last

    def layers(self, inputs: Tensor, top: int) -> list[Tensor]:
        """Return the feed-forward layers' outputs of the whole text."""
        return self.transformer.feed_forward(self._embed(inputs), top, self._padding(inputs))

    def replaced(self, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the tokens with 80 % of the masked ones hidden and 10 % drawn anew."""
        chance_BL = torch.rand(tokens_BL.shape, device=tokens_BL.device)
        other_BL = torch.randint_like(tokens_BL, self.first_random, self.vocabulary)
        shown_BL = torch.where(chance_BL < 0.8, self.vocabulary, torch.where(chance_BL < 0.9, other_BL, tokens_BL))
        return torch.where(mask_BL, shown_BL, tokens_BL)

    def _embed(self, tokens_BL: Tensor) -> Tensor:
        if tokens_BL.shape[1] > self.length:
            raise ConfigError(f"a text of {tokens_BL.shape[1]} tokens is longer than the {self.length} positions.")
        places = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        embedded: Tensor = self.drop(self.norm(self.tokens(tokens_BL) + self.positions(places)))
        return embedded

    def _padding(self, tokens_BL: Tensor) -> Tensor | None:
        return None if self.padding is None else tokens_BL == self.padding
