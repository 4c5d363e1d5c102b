"""Text towers that are trained here: CLIP's causal transformer and SigLIP's, which sees both sides.

Shapes: B texts, L tokens of the longest of them, W width, H heads, E width of the space shared with images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from imprint.backbones.text_encoder import TextBatch, TextEncoder, pad, require_texts
from imprint.backbones.text_tokenizer import TextTokenizer
from imprint.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """All that a text tower is built from; JSON-ready by `dataclasses.asdict`.

    Attributes:
        kind: `clip`: a token sees those before it, QuickGELU, a projection without bias (openai/CLIP, model.py);
            `siglip`: a token sees all, GELU, a last layer with bias (google-research/big_vision, text_transformer.py).
        vocabulary: number of tokens.
        context: most tokens of a text, start and end included.
        width: W.
        layers: number of blocks; 0 leaves the tokens' own vectors.
        heads: H, a divisor of the width.
        joint: E.
        pool: what stands for a text: `end` its end token (CLIP), `last` the last place of a text that is filled up to
            the context with its end token (SigLIP), `mean` the mean of its tokens.
        dropout: after embeddings and in every branch; both papers have none.
    """

    kind: Literal["clip", "siglip"]
    vocabulary: int
    context: int
    width: int
    layers: int
    heads: int
    joint: int
    pool: Literal["end", "last", "mean"]
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.heads < 1 or self.width % self.heads:
            raise ConfigError(
                f"a text tower of width {self.width} cannot have {self.heads} heads; use a divisor of the width."
            )
        if min(self.vocabulary, self.joint) < 1 or self.context < 3 or self.layers < 0:
            raise ConfigError(
                f"a text tower needs tokens, a context of at least 3 and a space to map to; got vocabulary "
                f"{self.vocabulary}, context {self.context}, {self.layers} layers and {self.joint} dimensions."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout {self.dropout} of the text tower must lie in [0, 1).")


class TowerTokenizer:
    """A run's tokenizer as a text tower wants it: start, ids, end.

    Args:
        inner: makes the ids.
        context: most tokens of a text, start and end included.
    """

    def __init__(self, inner: TextTokenizer, context: int) -> None:
        self.inner, self.context, self.vocabulary = inner, context, inner.vocabulary
        self.fingerprint = hashlib.blake2b(f"{context}|{inner.fingerprint}".encode(), digest_size=16).hexdigest()

    def __call__(self, texts: Sequence[str]) -> TextBatch:
        """Return the ids of texts; what exceeds the context is cut before the end token.

        Raises:
            DataError: for an empty text.
        """
        require_texts(texts)
        special, room = self.inner.special, self.context - 2
        found = self.inner.ids([" ".join(text.split()) for text in texts])  # white space as captions have it
        rows = [[special.start, *ids[:room].tolist(), special.end] for ids in found]
        return pad(rows, [len(ids) > room for ids in found], special.padding)


class _NoTokenizer:
    """Stands where a tokenizer will be; says so to whoever asks for tokens before."""

    context, vocabulary, fingerprint = 0, 0, ""

    def __call__(self, texts: Sequence[str]) -> TextBatch:
        raise ConfigError("this text tower has no tokenizer yet; give it one by `tokenized_by`.")


class _Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), (B, L, W) -> (B, L, W)."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        width, eps = shape.width, _eps(shape)
        self.heads, self.causal, self.quick = shape.heads, shape.kind == "clip", shape.kind == "clip"
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(shape.dropout)

    def forward(self, x_BLW: Tensor, seen_B11L: Tensor | None) -> Tensor:
        """Return the tokens after the block; `seen_B11L` is True for tokens that may be looked at, None for all."""
        q, k, v = self.qkv(self.norm1(x_BLW)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_B11L, is_causal=self.causal)
        x_BLW = x_BLW + self.drop(self.out(mixed.transpose(1, 2).flatten(2)))
        hidden = self.fc1(self.norm2(x_BLW))
        hidden = hidden * torch.sigmoid(1.702 * hidden) if self.quick else F.gelu(hidden, approximate="tanh")
        return x_BLW + self.drop(self.fc2(hidden))


class TextTower(TextEncoder):
    """A transformer over tokens with learned positions, pooled and mapped to the shared space.

    Args:
        shape: its sizes.

    Attributes:
        shape: see above.
    """

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.shape, self.joint_dim = shape, shape.joint
        self.tokenizer = _NoTokenizer()
        self.token_embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.pos_embed = nn.Parameter(torch.empty(shape.context, shape.width))
        self.drop = nn.Dropout(shape.dropout)
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width, eps=_eps(shape))
        self.head = nn.Linear(shape.width, shape.joint, bias=shape.kind == "siglip")
        _init_clip(self) if shape.kind == "clip" else _init_siglip(self)

    @property
    def learned(self) -> TextTokenizer | None:
        """The tokenizer it was given, or None before."""
        return self.tokenizer.inner if isinstance(self.tokenizer, TowerTokenizer) else None

    def tokenized_by(self, tokenizer: TextTokenizer) -> None:
        """Take a tokenizer.

        Raises:
            ConfigError: for one with more tokens than the tower has vectors.
        """
        if tokenizer.vocabulary > self.shape.vocabulary:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocabulary} tokens and the text tower {self.shape.vocabulary} vectors; "
                "they do not belong together."
            )
        self.tokenizer = TowerTokenizer(tokenizer, self.shape.context)

    def forward(self, batch: TextBatch) -> Tensor:
        """Return vectors (B, E), not normalised."""
        return self.rows(batch.ids_BL.masked_fill(~batch.mask_BL, -1))

    def rows(self, ids_BL: Tensor) -> Tensor:
        """Return vectors (B, E), not normalised, of rows as `Batch.tokens` holds them.

        Args:
            ids_BL: int64, start token, ids, end token, then -1.

        Raises:
            ConfigError: for rows longer than the context.
        """
        if ids_BL.shape[1] > self.shape.context:
            raise ConfigError(
                f"rows of {ids_BL.shape[1]} tokens are longer than the {self.shape.context} that this text tower takes."
            )
        pool, there_BL = self.shape.pool, ids_BL >= 0
        last_B1 = there_BL.sum(1, keepdim=True) - 1
        if pool == "last":
            ids_BL = F.pad(ids_BL, (0, self.shape.context - ids_BL.shape[1]), value=-1)
            ids_BL = torch.where(ids_BL >= 0, ids_BL, ids_BL.gather(1, last_B1))
        x_BLW = self.drop(self.token_embedding(ids_BL.clamp(min=0)) + self.pos_embed[: ids_BL.shape[1]])
        # Behind the end token there is nothing that a causal tower looks at; a full context is looked at as a whole.
        seen = None if self.shape.kind == "clip" or pool == "last" else there_BL[:, None, None, :]
        for block in self.blocks:
            x_BLW = checkpoint(block, x_BLW, seen, use_reentrant=False) if self._again else block(x_BLW, seen)
        if pool == "mean":
            weight_BL1 = (there_BL / there_BL.sum(1, keepdim=True)).to(x_BLW.dtype)[:, :, None]
            pooled_BW = (self.norm(x_BLW) * weight_BL1).sum(1)
        elif pool == "end":
            pooled_BW = self.norm(x_BLW.take_along_dim(last_B1[:, :, None], dim=1).squeeze(1))
        else:
            pooled_BW = self.norm(x_BLW[:, -1])
        vectors_BE: Tensor = self.head(pooled_BW)
        return vectors_BE

    @property
    def _again(self) -> bool:
        return self.recompute and self.training and torch.is_grad_enabled()


def _eps(shape: TowerShape) -> float:
    return 1e-5 if shape.kind == "clip" else 1e-6  # torch's and flax's own


def _init_clip(tower: TextTower) -> None:
    """Initialise as openai/CLIP does (model.py, initialize_parameters); biases of the MLPs stay torch's own."""
    width, layers = tower.shape.width, max(1, tower.shape.layers)
    nn.init.normal_(tower.token_embedding.weight, std=0.02)
    nn.init.normal_(tower.pos_embed, std=0.01)
    for block in tower.blocks:
        assert isinstance(block, _Block)
        nn.init.normal_(block.qkv.weight, std=width**-0.5)
        nn.init.normal_(block.fc1.weight, std=(2 * width) ** -0.5)
        for last in (block.out, block.fc2):
            nn.init.normal_(last.weight, std=width**-0.5 * (2 * layers) ** -0.5)
        nn.init.zeros_(block.qkv.bias)
        nn.init.zeros_(block.out.bias)
    nn.init.normal_(tower.head.weight, std=width**-0.5)


def _init_siglip(tower: TextTower) -> None:
    """Initialise as big_vision does: Xavier-uniform blocks, N(0, 1 / W) embeddings, positions and last layer."""
    std = tower.shape.width**-0.5
    for weight in (tower.token_embedding.weight, tower.pos_embed, tower.head.weight):
        nn.init.normal_(weight, std=std)
    for block in tower.blocks:
        assert isinstance(block, _Block)
        for weight in (*block.qkv.weight.chunk(3), block.out.weight, block.fc1.weight, block.fc2.weight):
            nn.init.xavier_uniform_(weight)
        for linear in (block.qkv, block.out):
            nn.init.zeros_(linear.bias)
        for linear in (block.fc1, block.fc2):
            nn.init.normal_(linear.bias, std=1e-6)
    assert tower.head.bias is not None
    nn.init.zeros_(tower.head.bias)
