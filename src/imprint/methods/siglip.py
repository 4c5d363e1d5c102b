"""SigLIP: sigmoid loss for language-image pre-training.

Zhai, Mustafa, Kolesnikov, Beyer 2023, arXiv 2303.15343. CLIP's two towers, but each image asks of each caption whether
the two belong together, a question of its own; nothing is normalised over the batch. The paper's image tower, a ViT
with attention pooling, is timm's `vit_base_patch16_siglip_224`; images are not projected any further where its width is
that of the shared space. Towers and initialisation follow google-research/big_vision (two_towers.py,
text_transformer.py), where a text is filled up to the context with end tokens and its last place is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from imprint.backbones.dual_build import build_dual
from imprint.backbones.encoder import Encoder
from imprint.backbones.text_tokenizer import SPECIAL, TextTokenizer
from imprint.backbones.text_tower import TextTower, TowerShape
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.data.texts import Texts
from imprint.data.view_recipes import caption_views
from imprint.data.views import View
from imprint.dist.collectives import gather_with_grad
from imprint.losses.image_text import matched, sigmoid_loss
from imprint.methods.base import Method, MethodConfig, ParamGroup, StepOutput, split_decay

NAME = "caption"


@dataclass(frozen=True, kw_only=True)
class SigLIPConfig(MethodConfig):
    """SigLIP's choices; those of the image tower are the encoder's.

    Attributes:
        vocabulary: tokens of the text tower; 0 takes the tokenizer's (Sec. 4: 32,000).
        context: most tokens of a caption, start and end included (released models: 64).
        text_width: width of the text tower (Sec. 4: B-sized, 768).
        text_layers: its blocks (B-sized: 12).
        text_heads: its attention heads (B-sized: 12).
        text_pool: what stands for a caption: the last place of the full context (text_transformer.py), its end token,
            or the mean of its tokens.
        dropout: of the text tower (text_transformer.py: none).
        projection: dimensions of the shared space; 0 takes the image tower's, which then needs no projection
            (two_towers.py).
        scale: first factor t of the similarities (Sec. 3.2: 10).
        bias: first summand b of the similarities (Sec. 3.2: -10, so that training begins near the prior of few pairs).
        crop_scale: area share of the random crop; (1, 1) squeezes the whole image into the square (big_vision).
        flip: probability of a flip (released models: none).
        colour: strength of a colour jitter (the paper: none).
    """

    vocabulary: int = 0
    context: int = 64
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_pool: Literal["last", "end", "mean"] = "last"
    dropout: float = 0.0
    projection: int = 0
    scale: float = 10.0
    bias: float = -10.0
    crop_scale: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    colour: float = 0.0

    def __post_init__(self) -> None:
        """Check what no single type can say."""
        if not self.scale > 0.0:
            raise ConfigError(f"scale {self.scale} must be positive.")


class SigLIP(Method):
    """The pairwise sigmoid loss of images and captions over the whole batch (Eq. 1, Alg. 1)."""

    Config: ClassVar[type[MethodConfig]] = SigLIPConfig

    def __init__(self, cfg: SigLIPConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        shape = TowerShape(
            kind="siglip",
            vocabulary=cfg.vocabulary or len(SPECIAL),
            context=cfg.context,
            width=cfg.text_width,
            layers=cfg.text_layers,
            heads=cfg.text_heads,
            joint=cfg.projection or encoder.embed_dim,
            pool=cfg.text_pool,
            dropout=cfg.dropout,
        )
        self.towers = build_dual(encoder, shape, scale=cfg.scale, bias=cfg.bias)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """The whole image in a square (big_vision)."""
        assert isinstance(cfg, SigLIPConfig)
        return caption_views(image_size, scale=cfg.crop_scale, flip=cfg.flip, strength=cfg.colour)

    @classmethod
    def texts(cls, cfg: MethodConfig) -> Texts:
        """One caption of every image, another one each epoch."""
        assert isinstance(cfg, SigLIPConfig)
        return Texts(name=NAME, length=cfg.context, packing="captions")

    def tokenized_by(self, tokenizer: TextTokenizer) -> None:
        """Keep the tokenizer with the text tower."""
        self.towers.tokenizer = tokenizer

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Embed both sides, and ask of every image and every caption whether they are a pair (Alg. 1).

        The captions of all processes are gathered, where the paper hands them round (Sec. 3.3): the sums are the same.
        """
        image_BE = self.towers.projection(self.towers.vision(batch.views["global"][0]).pooled_BD)
        tower, bias = self.towers.text, self.towers.bias
        assert isinstance(tower, TextTower) and bias is not None
        text_BE = tower.rows(batch.tokens[NAME])
        text_AE, offset = gather_with_grad(text_BE)
        scale = self.towers.log_scale
        loss = sigmoid_loss(image_BE, text_BE, scale, bias, text_all=text_AE, offset=offset)
        return StepOutput(
            loss,
            {
                "siglip/accuracy": matched(image_BE, text_AE, offset),
                "siglip/scale": scale.detach().exp(),
                "siglip/bias": bias.detach(),
            },
        )

    def param_groups(self) -> list[ParamGroup]:
        """Decay on kernels alone, as in big_vision: none on scale, bias, gains, positions and token embeddings."""
        embedding = "towers.text.token_embedding.weight"
        groups = split_decay((name, p) for name, p in self.named_parameters() if name != embedding)
        plain = next(group for group in groups if not group.decay)
        plain.params.append(self.get_parameter(embedding))
        plain.names.append(embedding)
        return groups

    @property
    def encoder(self) -> Encoder:
        """Both towers; as an encoder of images it is the image tower."""
        return self.towers
