"""CAPI: cluster and predict latent patches for improved masked image modeling.

Darcet, Baldassarre, Oquab, Mairal, Bojanowski 2025, arXiv 2502.08769. An EMA teacher's patches are assigned to online
clusters; the student encodes a third of the patches, and a predictor tells the clusters of those it did not see.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder, Features
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress, Steps
from imprint.core.rng import seed_of
from imprint.core.schedules import Schedule
from imprint.data.batch import Batch
from imprint.data.mask_kinds import InverseBlockMask, Mask
from imprint.data.view_recipes import mae_views
from imprint.data.views import View
from imprint.dist.collectives import all_reduce_max, all_reduce_sum
from imprint.losses.capi import streamed_clustering
from imprint.losses.distillation import entropy
from imprint.losses.streamed import streamed_cross_entropy
from imprint.methods.base import Method, MethodConfig, ParamGroup, StepOutput
from imprint.nn.clustering_head import ClusteringHead
from imprint.nn.cross_predictor import CrossPredictor
from imprint.nn.ema import ema_update_, frozen_copy
from imprint.nn.prototypes import Prototypes
from imprint.ops.keyed import keyed_uniforms
from imprint.ops.masking import by_row, order_from_mask


def _momentum() -> Schedule:
    # The public cosine stops at 0.8 of its half period: 1.25 times as long after the warm-up, of 500,000 steps in all.
    return Schedule(start=0.999, end=1.0, warmup=Steps(50_000), warmup_from=1.0, stretch=1.225)


@dataclass(frozen=True, kw_only=True)
class CAPIConfig(MethodConfig):
    """CAPI's choices.

    Attributes:
        clusters: K (Sec. 4, Table 1; public configuration).
        target_temp: temperature of the assignments (public configuration).
        clustering_temp: temperature of the clustering head's own predictions (public configuration, pred_temp).
        student_temp: temperature of the student's predictions (public configuration).
        sinkhorn_iterations: rounds of balancing (public configuration, n_sk_iter).
        positionwise: balance clusters at each position by itself (Sec. 3.2); off: over all patches of the batch.
        clustering_bias: the clustering head has a bias (public configuration).
        clustering_lr: the clustering optimizer's rate as a share of the student's (public configuration: 5e-4 of 1e-3).
        clustering_decay: its weight decay as a share of the student's (public code: torch's 0.01 of 0.1).
        mask_ratio: share of patches that the student never sees (Sec. 4, Table 1).
        roll: move the visible block over the edges (Sec. 3.3, Table 1).
        predict_share: share of the masked patches that are predicted (public configuration, prediction_subsampling).
        predictor_width: width of the predictor (public configuration: the encoder's, 1024 for ViT-L).
        predictor_depth: its blocks (public configuration).
        predictor_heads: its attention heads (public configuration).
        predictor_drop_path: its stochastic depth, the same in every block (public configuration).
        patch_embed_lr: rate of the patch embedding as a share of the others (public configuration).
        norm_decay: weight decay of the norms' gains as a share of the others (public configuration).
        momentum: EMA momentum of the teacher (public configuration).
        crop_scale: area share of the crop (public configuration; crop and flip are the only augmentation).
    """

    clusters: int = 16_384
    target_temp: float = 0.06
    clustering_temp: float = 0.12
    student_temp: float = 0.12
    sinkhorn_iterations: int = 3
    positionwise: bool = True
    clustering_bias: bool = True
    clustering_lr: float = 0.5
    clustering_decay: float = 0.1
    mask_ratio: float = 0.65
    roll: bool = True
    predict_share: float = 0.05
    predictor_width: int = 1024
    predictor_depth: int = 12
    predictor_heads: int = 16
    predictor_drop_path: float = 0.2
    patch_embed_lr: float = 0.2
    norm_decay: float = 0.1
    momentum: Schedule = field(default_factory=_momentum)
    crop_scale: tuple[float, float] = (0.6, 1.0)


class CAPI(Method):
    """Student with predictor and head, EMA teacher of the encoder, and clusters trained on the teacher's patches.

    The public code trains the clusters by an AdamW of their own. They share no parameter with the student, so one AdamW
    with a group of their own (rate and decay scaled, the same betas) takes the same steps.
    """

    Config: ClassVar[type[MethodConfig]] = CAPIConfig
    needs_tokens: ClassVar[bool] = True

    def __init__(self, cfg: CAPIConfig, encoder: Encoder) -> None:
        super().__init__()
        if not encoder.can_drop:
            raise ConfigError(
                f"capi encodes the visible patches alone and '{encoder.name}' cannot drop patches. "
                "Choose a ViT (for example --encoder vit_small_patch16_224), or a method for CNNs: simclr, dino."
            )
        self.cfg = cfg
        self.student = encoder
        self.teacher = frozen_copy(encoder)
        side = encoder.image_size // encoder.patch_size
        self.predictor = CrossPredictor(
            encoder.embed_dim,
            cfg.predictor_width,
            cfg.predictor_depth,
            cfg.predictor_heads,
            (side, side),
            drop_path=cfg.predictor_drop_path,
        )
        self.head = Prototypes(cfg.predictor_width, cfg.clusters, train_gain=True)
        nn.init.trunc_normal_(self.head.direction, std=0.02)
        self.clustering = ClusteringHead(encoder.embed_dim, cfg.clusters, bias=cfg.clustering_bias)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """One random resized crop with a flip."""
        assert isinstance(cfg, CAPIConfig)
        return mae_views(image_size, scale=cfg.crop_scale)

    @classmethod
    def masks(cls, cfg: MethodConfig, image_size: int, patch_size: int) -> tuple[Mask, ...]:
        """All but one block, rolled over the edges (Sec. 3.3)."""
        assert isinstance(cfg, CAPIConfig)
        side = image_size // patch_size
        return (InverseBlockMask(name="global", grid=(side, side), ratio=cfg.mask_ratio, roll=cfg.roll),)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Assign the teacher's patches, train the clusters on them, predict them where the student is blind."""
        images, mask_BN = batch.views["global"][0], batch.masks["global"][0]
        masked_BM = by_row(batch.places["global"], batch.masks["global"])[0]
        places_BP = self.chosen(masked_BM, batch.index_B, t)
        clustering, targets_LK = self.assigned(images, places_BP)
        keep_BM, _ = order_from_mask(mask_BN, mask_BN.shape[1] - masked_BM.shape[1])
        seen = self.student(images, keep_BM=keep_BM)
        z_LD = F.normalize(self.predictor(_tokens(seen), keep_BM, places_BP).flatten(0, 1), dim=-1)
        weight_L = torch.full((z_LD.shape[0],), 1.0 / z_LD.shape[0], device=z_LD.device)
        loss = streamed_cross_entropy(
            z_LD, self.head.normalised(), targets_LK.__getitem__, weight_L, self.cfg.student_temp
        )
        few = targets_LK[:64]  # enough for a monitor
        metrics = {
            "capi/prediction": loss.detach(),
            "capi/clustering": clustering.detach(),
            "capi/target_entropy": entropy(few).mean(),
        }
        return StepOutput(loss + clustering, metrics)

    def chosen(self, masked_BM: Tensor, index_B: Tensor, t: Progress) -> Tensor:
        """Return the masked places (B, P) that are predicted in this step, a random share of each image's."""
        count = max(1, int(masked_BM.shape[1] * self.cfg.predict_share))
        if count == masked_BM.shape[1]:
            return masked_BM
        noise_BM = keyed_uniforms(seed_of("capi", t.step), index_B, masked_BM.shape[1])
        return masked_BM.gather(1, noise_BM.argsort(dim=1)[:, :count])

    def assigned(self, images: Tensor, places_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Return the clustering loss over all patches, and the assignments (B P, K) of the places to predict."""
        with torch.no_grad():
            patches_NBD = self.teacher(images).patches_BND.transpose(0, 1)
        return streamed_clustering(
            self.clustering.unit(patches_NBD),
            self.clustering.layer.weight,
            self.clustering.layer.bias,
            places_BP,
            target_temp=self.cfg.target_temp,
            prediction_temp=self.cfg.clustering_temp,
            iterations=self.cfg.sinkhorn_iterations,
            positionwise=self.cfg.positionwise,
            reduce=all_reduce_sum,
            reduce_max=all_reduce_max,
        )

    def after_optimizer_step(self, t: Progress) -> None:
        """Move the teacher: theta_t <- m theta_t + (1 - m) theta_s."""
        ema_update_(self.teacher, self.student, self.cfg.momentum(t))

    def param_groups(self) -> list[ParamGroup]:
        """Groups of the public code: clusters, patch embedding, norms, biases, the rest; tokens decay."""
        groups: dict[str, ParamGroup] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            bias, norm = name.endswith(".bias"), "norm" in name
            if name.startswith("clustering."):
                kind = ("clustering", self.cfg.clustering_lr, self.cfg.clustering_decay)
            else:
                scale = self.cfg.patch_embed_lr if "patch_embed" in name else 1.0
                decay = 0.0 if bias else self.cfg.norm_decay if norm else 1.0
                kind = (
                    "patch_embed_" * (scale != 1.0) + ("bias" if bias else "norm" if norm else "rest"),
                    scale,
                    decay,
                )
            group = groups.setdefault(
                kind[0],
                ParamGroup(name=kind[0], params=[], names=[], lr_scale=kind[1], decay=kind[2] > 0, decay_scale=kind[2]),
            )
            group.params.append(parameter)
            group.names.append(name)
        return list(groups.values())

    @property
    def encoder(self) -> Encoder:
        """The teacher's encoder, which the paper evaluates."""
        return self.teacher


def _tokens(features: Features) -> Tensor:
    """Return all tokens (B, T, D) of an encoder, those without a place first."""
    parts = [] if features.cls_BD is None else [features.cls_BD[:, None]]
    parts += [] if features.registers_BRD is None else [features.registers_BRD]
    return torch.cat([*parts, features.patches_BND], dim=1)
