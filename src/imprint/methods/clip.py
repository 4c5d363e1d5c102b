"""CLIP: learning transferable visual models from natural language supervision.

Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger, Sutskever 2021, arXiv 2103.00020.
An image tower and a text tower learn which caption belongs to which image of the batch. The image tower is any encoder
of images; the paper's own, with a norm before the blocks and attention pooling, are timm's
`vit_base_patch32_clip_quickgelu_224` and `resnet50_clip`. The training code is not public: initialisation and towers
follow openai/CLIP (model.py), weight decay and the bounds of the scale mlfoundations/open_clip.

A run is a model of both: `imprint evaluate zeroshot` and `retrieval` take it as `--encoder RUN`, and every protocol for
images takes its image tower.
"""

from __future__ import annotations

import math
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
from imprint.losses.image_text import clip_loss, matched
from imprint.methods.base import Method, MethodConfig, ParamGroup, StepOutput, split_decay

NAME = "caption"


@dataclass(frozen=True, kw_only=True)
class CLIPConfig(MethodConfig):
    """CLIP's choices; those of the image tower are the encoder's.

    Attributes:
        vocabulary: tokens of the text tower; 0 takes the tokenizer's (Table 18: 49,408).
        context: most tokens of a caption, start and end included (openai/CLIP: 77).
        text_width: width of the text tower (Sec. 2.4 and Table 20: 512).
        text_layers: its blocks (Sec. 2.4: 12).
        text_heads: its attention heads (Sec. 2.4: 8).
        text_pool: what stands for a caption: its end token (Sec. 2.4), or the mean of its tokens.
        dropout: of the text tower (openai/CLIP: none).
        projection: dimensions of the shared space (Table 20: 512 beside ViT-B, 1024 beside ResNet-50).
        temperature: first temperature of the similarities, 1 / scale (Sec. 2.5: 0.07).
        max_scale: bound of the learned scale (Sec. 2.5: 100).
        label_smoothing: share of the target spread over all captions of the batch (the paper: none).
        crop_scale: area share of the random square crop (Sec. 2.3; open_clip: 0.9 to 1).
        flip: probability of a flip (the paper: none).
        colour: strength of a colour jitter (the paper: none).
    """

    vocabulary: int = 0
    context: int = 77
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    text_pool: Literal["end", "mean"] = "end"
    dropout: float = 0.0
    projection: int = 512
    temperature: float = 0.07
    max_scale: float = 100.0
    label_smoothing: float = 0.0
    crop_scale: tuple[float, float] = (0.9, 1.0)
    flip: float = 0.0
    colour: float = 0.0

    def __post_init__(self) -> None:
        """Check what no single type can say."""
        if not 0.0 < self.temperature or not 1.0 <= self.max_scale:
            raise ConfigError(
                f"temperature {self.temperature} must be positive and max_scale {self.max_scale} at least 1."
            )
        if not 1.0 <= 1.0 / self.temperature <= self.max_scale:
            raise ConfigError(
                f"temperature {self.temperature} is a scale of {1.0 / self.temperature:.3g}, which must lie between 1 "
                f"and max_scale {self.max_scale}."
            )
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ConfigError(f"label_smoothing {self.label_smoothing} must lie in [0, 1).")


class CLIP(Method):
    """The symmetric cross entropy of images and captions over the whole batch (Fig. 3)."""

    Config: ClassVar[type[MethodConfig]] = CLIPConfig

    def __init__(self, cfg: CLIPConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        shape = TowerShape(
            kind="clip",
            vocabulary=cfg.vocabulary or len(SPECIAL),
            context=cfg.context,
            width=cfg.text_width,
            layers=cfg.text_layers,
            heads=cfg.text_heads,
            joint=cfg.projection,
            pool=cfg.text_pool,
            dropout=cfg.dropout,
        )
        self.towers = build_dual(encoder, shape, scale=1.0 / cfg.temperature)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """One random square crop (Sec. 2.3)."""
        assert isinstance(cfg, CLIPConfig)
        return caption_views(image_size, scale=cfg.crop_scale, flip=cfg.flip, strength=cfg.colour)

    @classmethod
    def texts(cls, cfg: MethodConfig) -> Texts:
        """One caption of every image, another one each epoch."""
        assert isinstance(cfg, CLIPConfig)
        return Texts(name=NAME, length=cfg.context, packing="captions")

    def tokenized_by(self, tokenizer: TextTokenizer) -> None:
        """Keep the tokenizer with the text tower."""
        self.towers.tokenizer = tokenizer

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Embed both sides, and tell each image its caption and each caption its image (Fig. 3)."""
        image_BE = self.towers.projection(self.towers.vision(batch.views["global"][0]).pooled_BD)
        tower = self.towers.text
        assert isinstance(tower, TextTower)
        text_BE = tower.rows(batch.tokens[NAME])
        image_AE, offset = gather_with_grad(image_BE)
        text_AE, _ = gather_with_grad(text_BE)
        loss = clip_loss(
            image_BE,
            text_BE,
            self.towers.log_scale,
            image_all=image_AE,
            text_all=text_AE,
            offset=offset,
            label_smoothing=self.cfg.label_smoothing,
        )
        right = matched(image_BE, text_AE, offset)
        return StepOutput(loss, {"clip/accuracy": right, "clip/scale": self.towers.log_scale.detach().exp()})

    def after_optimizer_step(self, t: Progress) -> None:
        """Keep the scale between 1 (open_clip) and 100 (Sec. 2.5)."""
        self.towers.log_scale.clamp_(0.0, math.log(self.cfg.max_scale))

    def param_groups(self) -> list[ParamGroup]:
        """No decay on gains, biases and the scale (Sec. 2.5); tokens and positions decay, as in open_clip."""
        return split_decay(self.named_parameters(), decay_tokens=True)

    @property
    def encoder(self) -> Encoder:
        """Both towers; as an encoder of images it is the image tower."""
        return self.towers
