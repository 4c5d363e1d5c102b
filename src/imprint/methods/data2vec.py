"""data2vec: a general framework for self-supervised learning in speech, vision and language.

Baevski, Hsu, Xu, Babu, Gu, Auli 2022, arXiv 2202.03555. A student sees a masked input and predicts, at the masked
places, what a slow average of itself makes of the whole input: the mean of its last layers' normalised outputs.

This method trains on images or, with `modality` text and the encoder `text:bert`, on text (recipe `text_small`). The
objective (`nn.data2vec.Data2VecObjective`) is the same for speech, whose front end `nn.waveform_front.WaveformFrontEnd`
trains from your own loop, but not from the command line, which has no sources of sound.

Text: tokens are hidden as BERT hides them (Sec. 4.3); the public code's recipe hides runs of four (Table 3, last row).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder, require_tokens
from imprint.backbones.language_model import LanguageModel, require_language
from imprint.backbones.text_tokenizer import TextTokenizer
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.core.rng import seed_of
from imprint.core.schedules import Schedule, constant
from imprint.data.batch import Batch
from imprint.data.mask_kinds import BlockMask, Mask
from imprint.data.texts import Texts
from imprint.data.views import Crop, Look, View
from imprint.dist.collectives import all_reduce_mean, all_reduce_sum_with_grad
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.nn.data2vec import Data2VecObjective, FrontEnd, Targets
from imprint.nn.language_front import LanguageFrontEnd
from imprint.nn.masked_language_head import TokenMasker


@dataclass(frozen=True, kw_only=True)
class Data2VecConfig(MethodConfig):
    """data2vec's choices for images; the last ones are those for text.

    Attributes:
        top_layers: K, blocks from the end whose outputs are averaged (Sec. 4.1, Fig. 2; 1 is the ablation).
        target_norm: of each block's output before averaging: `layer`, over the width (Sec. 3.3), `instance`, over the
            patches (speech), or `none`.
        post_norm: layer norm of the average (public code, --post_target_layer_norm).
        beta: where the smooth L1 turns from a square into a line; 0 is the squared error (Sec. 4.1: 2).
        var_weight: of a term that keeps the predictions' standard deviation up (public code; its recipes leave it off).
        var_margin: standard deviation below which that term acts.
        loss_scale: factor on the loss.
        mask_ratio: share of patches that are masked (Sec. 4.1: 120 of 196).
        min_block: smallest area of a block of masked patches (public code), at most a quarter of what is masked.
        momentum: tau of the teacher (Sec. 4.1: 0.9998 for ViT-B).
        export: which weights are evaluated and exported; the public code fine-tunes the student.
        crop_scale: area share of the crop; student and teacher see the same one.
        jitter: strength of the changes of brightness, contrast and saturation (public code: 0.4).
        modality: `images`, or `text` for rows of tokens.
        vocabulary: tokens that are known; 0 takes the tokenizer's (Sec. 4.3: 50,000 of byte-level BPE).
        length: tokens of a row (Sec. 4.3: 512).
        rows: how text is packed; the public code crosses no document (`documents`).
        token_share: share of the tokens that is predicted, 80 % of them hidden and 10 % replaced (Sec. 4.3: 15 %).
    """

    top_layers: int = 6
    target_norm: Literal["layer", "instance", "none"] = "layer"
    post_norm: bool = True
    beta: float = 2.0
    var_weight: float = 0.0
    var_margin: float = 0.5
    loss_scale: float = 1.0
    mask_ratio: float = 120 / 196
    min_block: int = 16
    momentum: Schedule = field(default_factory=lambda: constant(0.9998))
    export: Literal["student", "teacher"] = "student"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    jitter: float = 0.4
    modality: Literal["images", "text"] = "images"
    vocabulary: int = 0
    length: int = 512
    rows: Literal["packed", "documents"] = "documents"
    token_share: float = 0.15


class ImageFrontEnd(FrontEnd):
    """An encoder of the catalogue: targets are what its blocks put out (Sec. 3.3: images take the block's output)."""

    def __init__(self, backbone: Encoder) -> None:
        super().__init__()
        self.backbone = backbone
        self.width, self.depth = backbone.embed_dim, backbone.depth

    def predict(self, inputs: Tensor, mask_BN: Tensor) -> Tensor:
        """Return the patches (B, N, D) after the final norm, masked ones replaced by the mask token at the input."""
        patches: Tensor = self.backbone(inputs, mask_BN=mask_BN).patches_BND
        return patches

    def layers(self, inputs: Tensor, top: int) -> list[Tensor]:
        """Return the patches after each of the last blocks, without the final norm."""
        wanted = range(self.depth - top, self.depth)
        return [features.patches_BND for features in self.backbone.encode_layers(inputs, wanted, norm=False)]


class Data2Vec(Method):
    """A student of masked images regresses its own slow average's view of whole ones (Sec. 3)."""

    Config: ClassVar[type[MethodConfig]] = Data2VecConfig
    needs_tokens: ClassVar[bool] = True

    def __init__(self, cfg: Data2VecConfig, encoder: Encoder) -> None:
        super().__init__()
        if cfg.modality == "images" and not isinstance(encoder, LanguageModel):
            require_tokens(encoder, "data2vec", ("simclr", "byol"))
        elif cfg.modality == "images":
            raise ConfigError(f"'{encoder.name}' reads text: data2vec learns from it with --method.modality text.")
        if cfg.loss_scale <= 0 or cfg.beta < 0 or cfg.var_weight < 0:
            raise ConfigError(
                f"data2vec: loss_scale must be above 0 and beta and var_weight not below, got {cfg.loss_scale:g}, "
                f"{cfg.beta:g} and {cfg.var_weight:g}."
            )
        self.cfg = cfg
        front, head, self.masker = self._parts(cfg, encoder)
        for layer in (part for part in head.modules() if isinstance(part, nn.Linear)):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        targets = Targets(
            top=cfg.top_layers,
            layer_norm=cfg.target_norm == "layer",
            instance_norm=cfg.target_norm == "instance",
            post_layer_norm=cfg.post_norm,
            beta=cfg.beta,
            width="mean" if cfg.modality == "images" else "sqrt",  # the two public codes
            var_weight=cfg.var_weight,
            var_margin=cfg.var_margin,
            scale=cfg.loss_scale,
        )
        self.objective = Data2VecObjective(front, head, targets)

    @staticmethod
    def _parts(cfg: Data2VecConfig, encoder: Encoder) -> tuple[FrontEnd, nn.Module, TokenMasker | None]:
        """Return the student, its head (text: two layers, public code) and what hides tokens."""
        width = encoder.embed_dim
        if cfg.modality == "images":
            encoder.enable_mask_token()
            return ImageFrontEnd(encoder), nn.Linear(width, width), None
        if cfg.var_weight > 0:
            raise ConfigError("data2vec has no variance term for text; set --method.var-weight 0.")
        network = require_language(encoder, "data2vec", causal=False)
        head = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        return LanguageFrontEnd(network), head, TokenMasker(network.vocabulary, share=cfg.token_share)

    @classmethod
    def texts(cls, cfg: MethodConfig) -> Texts | None:
        """Rows of text within a document, where it learns from text."""
        assert isinstance(cfg, Data2VecConfig)
        return None if cfg.modality == "images" else Texts(length=cfg.length, packing=cfg.rows, start=True)

    def tokenized_by(self, tokenizer: TextTokenizer) -> None:
        """Take the tokenizer's special tokens."""
        assert self.masker is not None
        self.masker.tokenized_by(tokenizer)
        for side in (self.objective.student, self.objective.teacher):
            assert isinstance(side, LanguageFrontEnd)
            side.backbone.tokenizer = tokenizer

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """One crop for both sides, as BEiT's: flip and mild colours."""
        assert isinstance(cfg, Data2VecConfig)
        if cfg.modality == "text":
            return ()
        crop = Crop(size=image_size, scale=cfg.crop_scale, interpolation="bicubic")
        strength = cfg.jitter
        look = Look(flip=0.5, brightness=strength, contrast=strength, saturation=strength, jitter=float(strength > 0))
        return (View(name="global", crop=crop, look=look),)

    @classmethod
    def masks(cls, cfg: MethodConfig, image_size: int, patch_size: int) -> tuple[Mask, ...]:
        """BEiT's blocks, more of them."""
        assert isinstance(cfg, Data2VecConfig)
        if cfg.modality == "text":
            return ()
        side = image_size // patch_size
        patches = round(side * side * cfg.mask_ratio)
        smallest = min(cfg.min_block, max(1, patches // 4))  # for coarse grids
        return (BlockMask(name="global", grid=(side, side), patches=patches, min_block=smallest),)

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Name what invites constant targets (Sec. 5: collapse)."""
        assert isinstance(cfg, Data2VecConfig)
        found = []
        least = 0.9 if cfg.modality == "images" else 0.995  # at 0.99 a small network for text falls to a point
        if cfg.momentum.start < least:
            found.append(
                f"the teacher follows the student too fast (method.momentum.start is {cfg.momentum.start:g}): both may "
                "agree on a constant; raise it to 0.999 or more."
            )
        if cfg.target_norm == "none" and not cfg.post_norm:
            found.append("targets are not normalised (method.target_norm none, post_norm off); set target_norm layer.")
        return tuple(found)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Predict the teacher's averaged layers of the whole image at the masked patches (Eq. 2)."""
        if self.masker is not None:
            return self._forward_text(self.masker, batch, t)
        images, mask_BN = batch.views["global"][0], batch.masks["global"][0]
        rows = all_reduce_mean(mask_BN.sum().float())  # blocks leave each image a few patches more or less
        loss, metrics = self.objective(
            images, mask_BN, batch.places["global"], rows=rows, reduce=all_reduce_sum_with_grad
        )
        return StepOutput(loss, {f"data2vec/{name}": value for name, value in metrics.items()})

    def _forward_text(self, masker: TokenMasker, batch: Batch, t: Progress) -> StepOutput:
        """Predict the teacher's averaged feed-forward layers of the whole row at the tokens chosen (Sec. 4.3)."""
        ids_BL = batch.tokens["text"]
        masked = masker(ids_BL, batch.index_B, seed_of("data2vec", t.step))
        places_BP, valid_BP = masked.places_BP, masked.valid_BP
        first_B1 = torch.arange(len(ids_BL), device=ids_BL.device)[:, None] * ids_BL.shape[1]
        loss, metrics = self.objective(
            torch.stack([ids_BL, masked.ids_BL]),
            torch.zeros_like(ids_BL, dtype=torch.bool).scatter(1, places_BP, valid_BP),
            (first_B1 + places_BP).flatten(),
            rows=all_reduce_mean(valid_BP.sum().float()),
            reduce=all_reduce_sum_with_grad,
            valid_M=valid_BP.flatten(),
        )
        return StepOutput(loss, {f"data2vec/{name}": value for name, value in metrics.items()})

    def after_optimizer_step(self, t: Progress) -> None:
        """Move the teacher (Sec. 3.2)."""
        self.objective.move_teacher(self.cfg.momentum(t))

    @property
    def encoder(self) -> Encoder:
        """The student's or the teacher's encoder, as `export` says."""
        chosen = self.objective.student if self.cfg.export == "student" else self.objective.teacher
        assert isinstance(chosen, (ImageFrontEnd, LanguageFrontEnd))
        return chosen.backbone
