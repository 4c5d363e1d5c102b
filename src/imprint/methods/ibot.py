"""iBOT: image BERT pre-training with an online tokenizer.

Zhou, Wei, Wang, Shen, Xie, Yuille, Kong 2021, arXiv 2111.07832. DINO's self-distillation of class tokens across views,
and within a view that of masked patches: the teacher, who sees the whole image, is the tokenizer.

Where the public code (bytedance/ibot) says more than the paper, the code is followed: the student's large crops are
masked for both terms, its small ones never; the patch centre is the mean over all patches, masked or not. Its option of
two heads in the student and one in the teacher is not offered.

Shape suffixes: V student views, W teacher views, B images, R = W B large crops, N patches, M masked patches of all R,
D width, U width before the prototypes, K prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder, Features, require_tokens
from imprint.core.progress import Duration, Epochs, Progress
from imprint.core.schedules import Schedule, cosine
from imprint.data.batch import Batch
from imprint.data.mask_kinds import Mask, ShareMask
from imprint.data.view_recipes import dino_views
from imprint.data.views import View
from imprint.dist.collectives import all_reduce_mean
from imprint.losses.distillation import teacher_entropy, teacher_statistics
from imprint.losses.ibot import ibot_loss
from imprint.methods.base import Clipping, Method, MethodConfig, ParamGroup, StepOutput, split_decay
from imprint.nn.center import RunningMean
from imprint.nn.ema import ema_update_, frozen_copy
from imprint.nn.heads import PrototypeHead
from imprint.nn.prototypes import Prototypes


def _warmed(final: float) -> Schedule:
    return Schedule(
        start=final, shape="constant", warmup=Epochs(30), warmup_from=0.04, warmup_reaches_start=True, per_epoch=True
    )


@dataclass(frozen=True, kw_only=True)
class IBOTConfig(MethodConfig):
    """iBOT's choices.

    Attributes:
        heads: one head for class tokens and patches (`shared`, the best of Sec. 4.3.3 and App. E), one MLP with two
            sets of prototypes (`semi`), or two heads (`separate`, the better one at scale: DINOv2).
        prototypes: K of the class tokens, and of the patches with a shared head (App. E).
        patch_prototypes: K of the patches where they have prototypes of their own.
        hidden: width of the head's hidden layers.
        head_norm: BatchNorm in the head (public code, --norm_in_head; off in the paper's runs).
        bottleneck: width before the prototypes.
        train_gain: train the prototypes' weight-norm gain (the public recipes for ViT-S and Swin).
        student_temp: tau_s of both terms.
        teacher_temp: tau_t of the class tokens, warmed up linearly; constant within an epoch.
        patch_teacher_temp: tau_t of the patches; its clock starts with the masks.
        center_momentum: of the centre of the class tokens.
        patch_center_momentum: of the centre of the patches.
        momentum: EMA momentum of the teacher.
        freeze_prototypes: the last layers learn nothing for this long (public code, --freeze_last_layer).
        cls_weight: lambda_1, weight of the class-token term (Sec. 3.2: 1).
        patch_weight: lambda_2, weight of the masked-patch term (Sec. 3.2: 1).
        mask_shares: mean and half range of the masked share, of which one is drawn per view: none, or U(.1, .5)
            (App. E).
        mask_shape: blocks as in BEiT, or random patches (App. E).
        mask_start: no masks and no patch term before (public code, --pred_start_epoch: 50 epochs for Swin).
        global_scale: area share of the two large crops.
        local_crops: number of small crops (Sec. 4.1: 10).
        local_scale: area share of the small crops.
        local_size: side of the small crops in pixels, a multiple of the patch size.
        colour: factor on the colour jitter.
        blur: factor on the blur probabilities (0 for images of 32 pixels).
    """

    heads: Literal["shared", "semi", "separate"] = "shared"
    prototypes: int = 8192
    patch_prototypes: int = 8192
    hidden: int = 2048
    head_norm: bool = False
    bottleneck: int = 256
    train_gain: bool = False
    student_temp: float = 0.1
    teacher_temp: Schedule = field(default_factory=lambda: _warmed(0.07))
    patch_teacher_temp: Schedule = field(default_factory=lambda: _warmed(0.07))
    center_momentum: float = 0.9
    patch_center_momentum: float = 0.9
    momentum: Schedule = field(default_factory=lambda: cosine(0.996, 1.0))
    freeze_prototypes: Duration = Epochs(1)
    cls_weight: float = 1.0
    patch_weight: float = 1.0
    mask_shares: tuple[tuple[float, float], ...] = ((0.0, 0.0), (0.3, 0.2))
    mask_shape: Literal["block", "random"] = "block"
    mask_start: Duration = Epochs(0)
    global_scale: tuple[float, float] = (0.25, 1.0)
    local_crops: int = 10
    local_scale: tuple[float, float] = (0.05, 0.25)
    local_size: int = 96
    colour: float = 1.0
    blur: float = 1.0


class Network(nn.Module):
    """A backbone with logits for class tokens and for patches; `heads` says what the two have in common."""

    def __init__(self, backbone: Encoder, cfg: IBOTConfig) -> None:
        super().__init__()
        self.backbone = backbone

        def head(prototypes: int) -> PrototypeHead:
            return PrototypeHead(
                backbone.embed_dim,
                cfg.hidden,
                cfg.bottleneck,
                prototypes,
                train_gain=cfg.train_gain,
                norm=cfg.head_norm,
            )

        self.head = head(cfg.prototypes)
        self.patch_head = head(cfg.patch_prototypes) if cfg.heads == "separate" else None
        own = cfg.heads == "semi"
        self.patch_prototypes = (
            Prototypes(cfg.bottleneck, cfg.patch_prototypes, train_gain=cfg.train_gain) if own else None
        )

    def view_logits(self, seen: list[Features]) -> Tensor:
        """Return the logits (crops, K) of the class tokens, or of the pooled vectors of encoders without one."""
        tokens = [f.pooled_BD if f.cls_BD is None else f.cls_BD for f in seen]
        logits: Tensor = self.head(torch.cat(tokens))
        return logits

    def patch_unit(self, patches_MD: Tensor) -> Tensor:
        """Return the unit vectors (M, U) of patches, before the prototypes."""
        return (self.patch_head or self.head).unit(patches_MD)

    def patch_logits(self, unit_MU: Tensor) -> Tensor:
        """Return the logits (M, K) of unit vectors of patches."""
        logits: Tensor = self.patch_layer(unit_MU)
        return logits

    @property
    def patch_layer(self) -> Prototypes:
        """The prototypes of the patches."""
        return self.patch_prototypes or (self.patch_head or self.head).prototypes


class IBOT(Method):
    """Student and teacher, DINO's loss on class tokens and its like on masked patches (Eq. 3 and Algorithm 1)."""

    Config: ClassVar[type[MethodConfig]] = IBOTConfig
    clipping: ClassVar[Clipping] = "tensor"  # utils.clip_gradients of the public code clips every tensor by itself

    def __init__(self, cfg: IBOTConfig, encoder: Encoder) -> None:
        super().__init__()
        require_tokens(encoder, "ibot", ("dino", "esvit", "simclr"), mask=True)
        self.cfg = cfg
        encoder.enable_mask_token()
        self.student = Network(encoder, cfg)
        self.teacher = frozen_copy(self.student)
        self.center = RunningMean(cfg.prototypes, cfg.center_momentum)
        patch_prototypes = cfg.prototypes if cfg.heads == "shared" else cfg.patch_prototypes
        self.patch_center = RunningMean(patch_prototypes, cfg.patch_center_momentum)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """DINO's multi-crop, with more and smaller small crops (Sec. 4.1)."""
        assert isinstance(cfg, IBOTConfig)
        return dino_views(
            image_size,
            local_size=cfg.local_size,
            local_crops=cfg.local_crops,
            global_scale=cfg.global_scale,
            local_scale=cfg.local_scale,
            strength=cfg.colour,
            blur=cfg.blur,
        )

    @classmethod
    def masks(cls, cfg: MethodConfig, image_size: int, patch_size: int) -> tuple[Mask, ...]:
        """A mask for each large crop (App. E)."""
        assert isinstance(cfg, IBOTConfig)
        side = image_size // patch_size
        return (ShareMask(name="global", count=2, grid=(side, side), shares=cfg.mask_shares, shape=cfg.mask_shape),)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Teach the student the teacher's class tokens of other views and its patches under the masks."""
        cfg = self.cfg
        crops = [batch.views[name].flatten(0, 1) for name in ("global", "local") if name in batch.views]
        mask_RN, places_M = batch.masks["global"].flatten(0, 1), batch.places["global"]
        if t.before(cfg.mask_start):
            mask_RN, places_M = torch.zeros_like(mask_RN), places_M[:0]
        rows = batch.views["global"].shape[:2]

        with torch.no_grad():  # the teacher sees the large crops whole
            whole = self.teacher.backbone(crops[0])
            teacher_WBK = self.teacher.view_logits([whole]).unflatten(0, rows)
            unit_U = self.teacher.patch_unit(whole.patches_BND.flatten(0, 1))
            teacher_MK = self.teacher.patch_logits(unit_U.index_select(0, places_M))

        seen = self.student.backbone.encode_many(crops, [mask_RN, *[None] * (len(crops) - 1)])
        student_VBK = self.student.view_logits(seen).unflatten(0, (-1, rows[1]))
        hidden_MD = seen[0].patches_BND.flatten(0, 1).index_select(0, places_M)
        student_MK = self.student.patch_logits(self.student.patch_unit(hidden_MD))

        temps = (cfg.student_temp, cfg.teacher_temp(t))
        patch_temp = cfg.patch_teacher_temp(t.at(max(0, t.step - t.steps(cfg.mask_start))))
        few = slice(0, 16)  # enough rows of a shuffled batch for a monitor
        metrics = teacher_statistics(student_VBK[:, few].detach(), teacher_WBK[:, few], self.center.value, *temps)
        metrics["patch_teacher_entropy"] = self._patch_entropy(unit_U, patch_temp)
        across, within = ibot_loss(
            student_VBK, teacher_WBK, self.center.value,
            student_MK, teacher_MK, self.patch_center.value, mask_RN, places_M,
            student_temp=cfg.student_temp, teacher_temp=temps[1], patch_teacher_temp=patch_temp, overwrite=True,
        )  # fmt: skip
        if self.training:  # after use: this batch is centred by the past
            self.center.update_(teacher_WBK, all_reduce_mean)
            self.patch_center.update_(self._mean_patch_logits(unit_U), all_reduce_mean)
        metrics |= {"cls_loss": across.detach(), "patch_loss": within.detach()}
        return StepOutput(
            cfg.cls_weight * across + cfg.patch_weight * within, {f"ibot/{k}": v for k, v in metrics.items()}
        )

    @torch.no_grad()
    def _mean_patch_logits(self, unit_PU: Tensor) -> Tensor:
        """Return the teacher's mean logits (1, K) over all patches, by the prototypes' linearity from the mean vector.

        So the logits of patches that are not masked, five of six on average, are never computed.
        """
        with torch.autocast(unit_PU.device.type, enabled=False):
            mean_U = unit_PU.mean(dim=0, keepdim=True, dtype=torch.promote_types(unit_PU.dtype, torch.float32))
            return self.teacher.patch_logits(mean_U)

    @torch.no_grad()
    def _patch_entropy(self, unit_PU: Tensor, temperature: float) -> Tensor:
        """Return the mean entropy of the teacher's distributions at 64 patches spread over the batch, in nats."""
        some = unit_PU[:: max(1, unit_PU.shape[0] // 64)]
        return teacher_entropy(self.teacher.patch_logits(some)[None], self.patch_center.value, temperature)

    def before_optimizer_step(self, t: Progress) -> None:
        """Freeze the prototypes early on: no gradient at all, so that weight decay skips them too."""
        if t.before(self.cfg.freeze_prototypes):
            for layer in (self.student.head.prototypes, self.student.patch_layer):
                for parameter in layer.parameters():
                    parameter.grad = None

    def after_optimizer_step(self, t: Progress) -> None:
        """Move the teacher: theta_t <- m theta_t + (1 - m) theta_s."""
        ema_update_(self.teacher, self.student, self.cfg.momentum(t))

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Sharpening is what keeps targets from becoming uniform."""
        assert isinstance(cfg, IBOTConfig)
        if max(cfg.teacher_temp.start, cfg.patch_teacher_temp.start) < cfg.student_temp:
            return ()
        return (
            "the teacher is not sharper than the student; set teacher_temp and patch_teacher_temp below student_temp",
        )

    def param_groups(self) -> list[ParamGroup]:
        """Decay everything but biases and norms; the public code decays class token, mask token and positions."""
        return split_decay(self.named_parameters(), decay_tokens=True)

    @property
    def encoder(self) -> Encoder:
        """The teacher's backbone (the public figures are the teacher's)."""
        return self.teacher.backbone
