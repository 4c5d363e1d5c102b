"""MSN: masked Siamese networks for label-efficient learning.

Assran, Caron, Misra, Bojanowski, Bordes, Vincent, Joulin, Rabbat, Ballas 2022, arXiv 2204.07141. Anchors, large views
of which some patches are dropped and small ones, are assigned to the same learned prototypes as an EMA copy assigns
another whole view; the mean assignment is kept spread.

Where the public code (facebookresearch/msn) says more than the paper, the code is followed: one draw of dropped patches
for the whole batch, BatchNorm in the head over the views of one size at a time, balanced targets (Sinkhorn) in the
released configuration, schedules that would end after 1.25 times the run. The code sums the gradient of the prototypes
over processes and averages all others; here it is averaged, too, which Adam does not tell apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder, require_tokens
from imprint.core.progress import Progress
from imprint.core.schedules import Schedule, constant
from imprint.data.batch import Batch
from imprint.data.mask_kinds import Mask, RandomMask
from imprint.data.view_recipes import swav_views
from imprint.data.views import View
from imprint.dist.collectives import all_reduce_max, all_reduce_mean, all_reduce_sum
from imprint.losses.distillation import entropy
from imprint.losses.msn import msn_loss
from imprint.methods.base import Clipping, Method, MethodConfig, ParamGroup, StepOutput, split_decay
from imprint.nn.branch import Branch
from imprint.nn.ema import ema_update_, frozen_copy
from imprint.ops.masking import keep_from_mask, kept_count
from imprint.ops.spread import agreement


@dataclass(frozen=True, kw_only=True)
class MSNConfig(MethodConfig):
    """MSN's choices.

    Attributes:
        prototypes: K (App. C).
        projection: width of embeddings and prototypes (App. C).
        hidden: width of the head's two hidden layers (public configuration).
        temperature: tau of both sides (App. C).
        sharpening: T, targets are raised to 1 / T (Sec. 3; public configuration, start_sharpen and final_sharpen).
        memax_weight: lambda of the mean-entropy term (Eq. 1); 0 is the ablation that uses few prototypes.
        entropy_weight: weight of the entropy of each prediction (public configuration: computed, weight 0).
        smoothing: label smoothing of the prototypes' labels (public configuration: 0).
        sinkhorn_iterations: rounds of balancing of the targets (public code: 3, on in the released configuration);
            0 switches it off.
        mask_ratio: share of patches that the large anchors lose, not replaced by anything (App. C; more for larger
            models, Sec. 6).
        random_views: large masked anchors per image (App. C).
        focal_views: small anchors per image, not masked (App. C).
        focal_size: their side in pixels, a multiple of the patch size (App. C).
        random_scale: area share of the large views, the target's among them (public code).
        focal_scale: area share of the small views (public code).
        colour: strength s of SimCLR's colour jitter (public configuration).
        blur: probability of the Gaussian blur (0 for images of 32 pixels).
        momentum: EMA momentum of the target network, a straight line (App. C).
    """

    prototypes: int = 1024
    projection: int = 256
    hidden: int = 2048
    temperature: float = 0.1
    sharpening: Schedule = field(default_factory=lambda: constant(0.25))
    memax_weight: float = 1.0
    entropy_weight: float = 0.0
    smoothing: float = 0.0
    sinkhorn_iterations: int = 3
    mask_ratio: float = 0.15
    random_views: int = 1
    focal_views: int = 10
    focal_size: int = 96
    random_scale: tuple[float, float] = (0.3, 1.0)
    focal_scale: tuple[float, float] = (0.05, 0.3)
    colour: float = 0.5
    blur: float = 0.5
    momentum: Schedule = field(default_factory=lambda: Schedule(start=0.996, end=1.0, shape="linear", stretch=1.25))


def head_of(width: int, hidden: int, projection: int) -> nn.Sequential:
    """Return three linear layers with BatchNorm and GELU between them; weights start as a truncated normal of 0.02.

    The public code gives the hidden layers a bias, which the BatchNorm after them cancels; it is left out here.
    """
    layers: list[nn.Module] = []
    for fan_in in (width, hidden):
        layers += [nn.Linear(fan_in, hidden, bias=False), nn.BatchNorm1d(hidden), nn.GELU()]
    layers.append(nn.Linear(hidden, projection))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
    last = layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers)


class MSN(Method):
    """Anchor network, EMA target network, free prototypes (Sec. 3, Algorithm 1)."""

    Config: ClassVar[type[MethodConfig]] = MSNConfig
    needs_tokens: ClassVar[bool] = True
    # The public code clips the anchor network and leaves the prototypes out; by themselves they stay below any limit.
    clipping: ClassVar[Clipping] = "module"

    def __init__(self, cfg: MSNConfig, encoder: Encoder) -> None:
        super().__init__()
        require_tokens(encoder, "msn", ("swav", "dino"), drop=True)
        self.cfg = cfg
        self.student = Branch(encoder, head_of(encoder.embed_dim, cfg.hidden, cfg.projection))
        self.teacher = frozen_copy(self.student)
        # Uniform in +-1 / sqrt(D), as the public code starts them; the loss takes their directions only.
        self.prototypes = nn.Linear(cfg.projection, cfg.prototypes, bias=False)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """The target's view and the large anchors, then the small anchors, all of SimCLR's colours (public code)."""
        assert isinstance(cfg, MSNConfig)
        large, *small = swav_views(
            image_size,
            local_size=cfg.focal_size,
            local_crops=cfg.focal_views,
            global_scale=cfg.random_scale,
            local_scale=cfg.focal_scale,
            strength=cfg.colour,
            blur=cfg.blur,
        )
        return (replace(large, count=1 + cfg.random_views), *small)

    @classmethod
    def masks(cls, cfg: MethodConfig, image_size: int, patch_size: int) -> tuple[Mask, ...]:
        """Dropped patches of the large anchors, the same for all images of a batch (public code)."""
        assert isinstance(cfg, MSNConfig)
        side = image_size // patch_size
        return (RandomMask(name="global", grid=(side, side), ratio=cfg.mask_ratio, shared=True),)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Assign anchors and target to the prototypes and compare (Eq. 1)."""
        target, anchors = batch.views["global"][0], batch.views["global"][1:]
        with torch.no_grad():
            target_BD = self.teacher(target[None])[0]
        embeddings = [self.masked(anchors, batch.masks["global"][0])]
        if "local" in batch.views:
            embeddings.append(self.student(batch.views["local"]).flatten(0, 1))
        anchors_AD = torch.cat(embeddings)
        found = msn_loss(
            anchors_AD,
            target_BD,
            self.prototypes.weight,
            temperature=self.cfg.temperature,
            sharpening=self.cfg.sharpening(t),
            memax_weight=self.cfg.memax_weight,
            entropy_weight=self.cfg.entropy_weight,
            smoothing=self.cfg.smoothing,
            sinkhorn_iterations=self.cfg.sinkhorn_iterations,
            reduce_mean=all_reduce_mean,
            reduce_sum=all_reduce_sum,
            reduce_max=all_reduce_max,
        )
        metrics = {
            "msn/cross_entropy": found.cross_entropy,
            "msn/memax": found.memax,
            # Perplexity of the mean prediction as a share of K: 1 is even use, 1 / K when one takes all.
            "msn/prototypes_used": torch.exp(-found.memax),
            "msn/target_entropy": entropy(found.targets_BK[:64]).mean(),
        }
        return StepOutput(found.loss, metrics | agreement(anchors_AD[: len(target_BD)].detach(), target_BD))

    def masked(self, anchors_VBCHW: Tensor, mask_BN: Tensor) -> Tensor:
        """Return embeddings (V B, D) of the large anchors from the patches that the mask leaves."""
        keep_BM = keep_from_mask(mask_BN, kept_count(mask_BN.shape[1], self.cfg.mask_ratio))
        views = anchors_VBCHW.shape[0]
        features = self.student.backbone(anchors_VBCHW.flatten(0, 1), keep_BM=keep_BM.repeat(views, 1))
        out: Tensor = self.student.head(features.pooled_BD)
        return out

    def after_optimizer_step(self, t: Progress) -> None:
        """Move the target network: theta_t <- m theta_t + (1 - m) theta_s."""
        ema_update_(self.teacher, self.student, self.cfg.momentum(t))

    def param_groups(self) -> list[ParamGroup]:
        """Decay all but biases, norms and prototypes; the public code decays class token and positions."""
        named = [(n, p) for n, p in self.named_parameters() if not n.startswith("prototypes.")]
        free = dict(self.prototypes.named_parameters(prefix="prototypes"))
        group = ParamGroup(name="prototypes", params=[*free.values()], names=[*free], decay=False, adapt=False)
        return [*split_decay(named, decay_tokens=True), group]

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Without me-max few prototypes take all images; without sharpening predictions may become uniform (Sec. 3)."""
        assert isinstance(cfg, MSNConfig)
        found = []
        if cfg.memax_weight == 0:
            found.append(
                "memax_weight is 0: nothing spreads the mean prediction, and MSN may use few prototypes "
                "(arXiv 2204.07141, Sec. 3); set --method.memax-weight 1"
            )
        if cfg.sharpening.start >= 1:
            found.append(
                "sharpening is 1: targets are no sharper than predictions, and all may become uniform "
                "(arXiv 2204.07141, Sec. 3); set --method.sharpening.start 0.25"
            )
        return tuple(found)

    @property
    def encoder(self) -> Encoder:
        """The target network's encoder, which the public evaluations use."""
        return self.teacher.backbone
