"""iGPT: generative pretraining from pixels.

Chen, Radford, Child, Wu, Jun, Luan, Sutskever 2020 (Chen 2020; ICML, no arXiv number). A GPT-2 over small images whose
pixels are one of 512 colours: it predicts each pixel from those before it (autoregressive), or hidden ones from all
others (BERT). Middle blocks hold the best features for a linear probe; full fine-tuning keeps the generative loss
beside the classifier's. Where paper and public code (openai/image-gpt) differ the code is followed (see
`backbones.pixel_transformer`), except that BERT hides exactly 15 % of each image's pixels, drawn in the data path as
all masks are, where the code draws for every pixel by itself.

To draw images from a run: `encoder = imprint.load_encoder(RUN)`, then
`encoder.pictures(encoder.generate(16, temperature=1.0, seed=0))` are 16 normalised images; a prompt of the first
`encoder.tokens(images)[:, :n]` is completed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder
from imprint.backbones.pixel_transformer import PixelTransformer
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.data.mask_kinds import Mask, RandomMask
from imprint.data.views import Crop, Look, View
from imprint.losses.token_prediction import token_cross_entropy
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.ops.palette import kmeans_colours

FITTED_PIXELS = 2**17
"""Pixels that the palette is fitted to; many more than colours, and seconds on one core."""

SHOWN = 8
"""Pictures drawn for the report: as many as a row has."""


@dataclass(frozen=True, kw_only=True)
class IGPTConfig(MethodConfig):
    """iGPT's choices; colours, size and feature layer are the encoder's (`arch.clusters`, `arch.layer`).

    Attributes:
        stage: `pretrain`, or `finetune` on labels from a pretrained run (Sec. 2.3).
        objective: predict the next pixel, or hidden ones (Sec. 2.1).
        mask_ratio: share of pixels that BERT hides (Sec. 2.1: 15 %).
        generative: weight of the generative loss beside the classifier's in fine-tuning (Sec. 2.3: 1; 0 drops it).
        classes: number of classes; 0 takes the labels' or the previous stage's.
        crop_scale: area share of the square crop (Sec. 3.2: 224 pixels of an image whose shorter side is 256 to 384).
        temperature: of the images drawn for the report (public code: 1).
    """

    stage: Literal["pretrain", "finetune"] = "pretrain"
    objective: Literal["autoregressive", "bert"] = "autoregressive"
    mask_ratio: float = 0.15
    generative: float = 1.0
    classes: int = 0
    crop_scale: tuple[float, float] = (0.34, 0.77)
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Check what no single type can say."""
        if not 0.0 < self.mask_ratio < 1.0:
            raise ConfigError(f"mask_ratio {self.mask_ratio} must lie in (0, 1).")
        if self.generative < 0:
            raise ConfigError(f"generative {self.generative} must not be negative; 0 drops the generative loss.")


class IGPT(Method):
    """Fit the palette; then the cross entropy of colours, with a classifier's in the second stage (Sec. 2)."""

    Config: ClassVar[type[MethodConfig]] = IGPTConfig
    fit_images: ClassVar[int] = 2048
    needs_tokens: ClassVar[bool] = True

    def __init__(self, cfg: IGPTConfig, encoder: Encoder) -> None:
        super().__init__()
        if not isinstance(encoder, PixelTransformer):
            raise ConfigError(
                f"igpt reads single pixels and '{encoder.name}' does not; leave --encoder out, or give image_gpt_s, "
                "image_gpt_m or image_gpt_l (smaller by --encoder.arch.depth and the like)."
            )
        self.cfg = cfg
        self.backbone = encoder
        if cfg.objective == "bert":
            encoder.see_both_sides()
        elif not encoder.causal:
            raise ConfigError(f"'{encoder.name}' was trained with the BERT objective; set --method.objective bert.")
        self.classifier: nn.Linear | None = None
        if cfg.stage == "finetune":
            if cfg.classes < 1:
                raise ConfigError(
                    "the number of classes is not known: the images have no labels, and no earlier stage says it. "
                    "Give labelled images, or set --method.classes."
                )
            self.classifier = nn.Linear(encoder.embed_dim, cfg.classes, bias=False)
            nn.init.zeros_(self.classifier.weight)  # the public code's
            if cfg.generative == 0:
                encoder.model.head.requires_grad_(False)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """One square crop, scaled down to the model's size, and, to fine-tune, a flip (Sec. 3.2)."""
        assert isinstance(cfg, IGPTConfig)
        crop = Crop(size=image_size, scale=cfg.crop_scale, ratio=(1.0, 1.0), interpolation="bicubic")
        return (View(name="global", crop=crop, look=Look(flip=0.5 if cfg.stage == "finetune" else 0.0)),)

    @classmethod
    def masks(cls, cfg: MethodConfig, image_size: int, patch_size: int) -> tuple[Mask, ...]:
        """Random pixels for BERT; none to predict the next pixel, nor where nothing is generated."""
        assert isinstance(cfg, IGPTConfig)
        if cfg.objective != "bert" or (cfg.stage == "finetune" and cfg.generative == 0):
            return ()
        return (RandomMask(name="global", grid=(image_size, image_size), ratio=cfg.mask_ratio),)

    @classmethod
    def wants_classes(cls, cfg: MethodConfig) -> bool:
        """Fine-tuning has a classifier."""
        assert isinstance(cfg, IGPTConfig)
        return cfg.stage == "finetune" and cfg.classes == 0

    def fit(self, images_BCHW: Tensor) -> None:
        """Fit the palette by k-means on the images' pixels (Sec. 3.2), unless the encoder brings a fitted one."""
        if bool(self.backbone.model.fitted):
            return
        pixels_PC = images_BCHW.permute(0, 2, 3, 1).reshape(-1, images_BCHW.shape[1])
        chosen = torch.randperm(len(pixels_PC))[:FITTED_PIXELS].to(pixels_PC.device)
        self.backbone.set_palette(kmeans_colours(pixels_PC[chosen], self.backbone.clusters))

    def inherit(self, previous: Method) -> None:
        """Fine-tune the pretrained network, palette included."""
        if not isinstance(previous, IGPT) or self.cfg.stage == previous.cfg.stage == "pretrain":
            return super().inherit(previous)
        if self.cfg.stage == "pretrain" or previous.cfg.objective != self.cfg.objective:
            raise ConfigError(
                f"a '{self.cfg.stage}' stage with the {self.cfg.objective} objective cannot start from a "
                f"'{previous.cfg.stage}' stage with {previous.cfg.objective}; fine-tune with the pretraining objective."
            )
        try:
            self.backbone.load_state_dict(previous.backbone.state_dict())
        except RuntimeError as error:
            raise ConfigError(
                "fine-tuning goes on with the pretrained network, so the encoders of both stages must be equal "
                f"({str(error).splitlines()[-1].strip()})."
            ) from error
        return None

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Return L_gen (Sec. 2.1), or L_gen + L_clf (Sec. 2.3), each a mean over images, in nats."""
        tokens_BN = self.backbone.tokens(batch.views["global"][0])
        mask_BN = batch.masks["global"][0] if "global" in batch.masks else None
        states_BND = self.backbone.states(tokens_BN, mask_BN)
        loss = states_BND.new_zeros(())
        metrics: dict[str, Tensor] = {}
        if self.classifier is None or self.cfg.generative:
            loss, metrics = self._generative(batch, tokens_BN, states_BND)
        if self.classifier is None:
            return StepOutput(loss, metrics)
        if batch.labels_B is None:
            raise ConfigError("fine-tuning learns from labels, and the images have none: use one folder per class.")
        # The same pass serves both; with BERT it lacks the hidden pixels, as in the public code.
        logits_BK = self.classifier(states_BND.mean(1))
        classification = nn.functional.cross_entropy(logits_BK.float(), batch.labels_B)
        metrics["igpt/classification"] = classification.detach()
        metrics["igpt/accuracy"] = (logits_BK.detach().argmax(1) == batch.labels_B).float().mean()
        return StepOutput(self.cfg.generative * loss + classification, metrics)

    def _generative(self, batch: Batch, tokens_BN: Tensor, states_BND: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy of every next pixel, or of the hidden ones; images weigh the same, having as many of either."""
        hidden_TD, target_T = states_BND.flatten(0, 1), tokens_BN.flatten()
        if self.cfg.objective == "bert":
            places_T = batch.places["global"]
            hidden_TD, target_T = hidden_TD.index_select(0, places_T), target_T.index_select(0, places_T)
        loss, right = token_cross_entropy(hidden_TD, self.backbone.model.head.weight, target_T)
        return loss, {"igpt/generative": loss.detach(), "igpt/colours_right": right.detach()}

    def classify(self, images_BCHW: Tensor) -> Tensor | None:
        """Return class logits from the mean of the last block's states; None while pretraining."""
        if self.classifier is None:
            return None
        logits_BK: Tensor = self.classifier(self.backbone.states(self.backbone.tokens(images_BCHW)).mean(1))
        return logits_BK

    @property
    def encoder(self) -> Encoder:
        """The transformer, whose features are a middle block's."""
        return self.backbone

    @torch.no_grad()
    def reconstruct(self, batch: Batch, t: Progress) -> dict[str, Tensor]:
        """Return drawn pictures: lower halves completed and images from nothing, or BERT's guess at hidden pixels."""
        images = batch.views["global"][0, :SHOWN]
        tokens_BN = self.backbone.tokens(images)
        colours = self.backbone.pictures(tokens_BN)
        if self.cfg.objective == "bert":
            mask_BN = batch.masks["global"][0, :SHOWN] if "global" in batch.masks else None
            if mask_BN is None:
                return {"image": images, "colours": colours}
            guess_BN = self.backbone.logits(tokens_BN, mask_BN).argmax(-1)
            hidden = mask_BN.view(-1, 1, *images.shape[2:])
            found = torch.where(hidden, self.backbone.pictures(guess_BN), colours)
            return {"image": images, "visible": colours.masked_fill(hidden, 0.0), "reconstruction": found}
        known = tokens_BN.shape[1] // images.shape[3] // 2 * images.shape[3]
        warmth = self.cfg.temperature
        completed = self.backbone.generate(prompt_BT=tokens_BN[:, :known], temperature=warmth)
        visible = colours.clone()
        visible.flatten(2)[:, :, known:] = 0.0
        sample = self.backbone.generate(len(images), temperature=warmth, seed=1)
        return {
            "image": images,
            "visible": visible,
            "completed": self.backbone.pictures(completed),
            "sample": self.backbone.pictures(sample),
        }
