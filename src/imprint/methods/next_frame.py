"""Next-frame prediction, in pixels or in features.

Pixels: Mathieu, Couprie, LeCun 2015, arXiv 1511.05440 ("Deep multi-scale video prediction beyond mean square error").
From a few past frames networks at several scales paint the next one; L_p on pixels and on the size of their gradients.
Here every past frame passes the encoder, and the networks read its maps instead of the frames: what is exported has to
know what moves. The paper's adversarial term is left out.

Features: V-JEPA, Bardes, Garrido, Ponce, Chen, Rabbat, LeCun, Assran, Ballas 2024, arXiv 2404.08471. The encoder sees
the past frames with tubes cut out (the same places in every frame); a narrow predictor says what a slow average of the
encoder, which sees everything, has there and in the next frame; L1. V-JEPA's encoder is a transformer over space and
time; here it is an image encoder that takes frame by frame, and time is the predictor's, so any backbone will do.

Shape suffixes: B clips, T frames (the last is the next one), C channels, H x W pixels, N places of a frame's grid,
M seen and P hidden places of a past frame, S = (T - 1) M seen and K asked places of a clip, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError, unknown
from imprint.core.progress import Progress
from imprint.core.schedules import Schedule
from imprint.data.batch import Batch, Normalise
from imprint.data.mask_kinds import BlockMask, Mask
from imprint.data.views import Clip, Crop, Look
from imprint.losses.frame_prediction import (
    gradient_difference,
    lp_error,
    normalised_tokens,
    psnr,
    sharpness,
    token_l1,
)
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.nn.ema import ema_update_, frozen_copy
from imprint.nn.frame_decoder import FrameDecoder, shrunk
from imprint.nn.predictor import Predictor
from imprint.ops.masking import by_row, keep_from_mask, take_tokens
from imprint.ops.positions import sincos_3d

Space = Literal["pixel", "latent"]
BLOCK = (0.15, 0.7)
"""Share of the patches in one of V-JEPA's short-range and one of its long-range blocks (Sec. 3.2)."""


@dataclass(frozen=True, kw_only=True)
class NextFrameConfig(MethodConfig):
    """Choices for both spaces; what comes from V-JEPA is marked, the rest is of arXiv 1511.05440.

    Attributes:
        space: predict the `pixel`s of the next frame, or its features (`latent`).
        past: frames that are seen (4).
        stride: frames from one to the next (V-JEPA: 4).
        crop_scale: area share of the crop of a clip, the same for all its frames (V-JEPA, App.: 0.3 to 1).
        flip: probability of a flip of the whole clip (V-JEPA).
        scales: pixel: number of scales (4).
        width: pixel: channels per past frame that enter the networks.
        hidden: pixel: channels within each network (the paper's two coarse ones; its two fine ones are deeper).
        predict: pixel: the `frame` (the paper), or its `change` since the last one, which starts as none: no worse than
            copying from the first step on.
        p: pixel: exponent of the error on pixels, 1 or 2 (Table 1: 1 is sharper).
        lp_weight: pixel: its weight.
        alpha: pixel: exponent of the gradient difference (1).
        gradient_weight: pixel: its weight (1).
        mask_ratio: latent: share of a past frame's places in the hidden tubes, 0 for none (V-JEPA, Sec. 3.2: about .9).
        predictor_width: latent: width of the predictor (V-JEPA, App.).
        predictor_depth: latent: its blocks (V-JEPA, App.).
        predictor_heads: latent: its heads, as many as the encoder's (V-JEPA, App.).
        momentum: latent: of the teacher, a straight line (V-JEPA, App.: .998 to 1).
        stop_gradient: latent: False lets the targets be the encoder's own features and take gradients (an ablation).
    """

    space: Space = "pixel"
    past: int = 4
    stride: int = 1
    crop_scale: tuple[float, float] = (0.3, 1.0)
    flip: float = 0.5
    scales: int = 4
    width: int = 32
    hidden: tuple[int, ...] = (128, 256, 128)
    predict: Literal["frame", "change"] = "frame"
    p: int = 1
    lp_weight: float = 1.0
    alpha: float = 1.0
    gradient_weight: float = 1.0
    mask_ratio: float = 0.9
    predictor_width: int = 384
    predictor_depth: int = 12
    predictor_heads: int = 12
    momentum: Schedule = field(default_factory=lambda: Schedule(start=0.998, end=1.0, shape="linear", stretch=1.25))
    stop_gradient: bool = True


class NextFrame(Method):
    """Past frames to the next one: its pixels (arXiv 1511.05440), or its features (arXiv 2404.08471)."""

    Config: ClassVar[type[MethodConfig]] = NextFrameConfig
    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, cfg: NextFrameConfig, encoder: Encoder) -> None:
        super().__init__()
        _check(cfg)
        self.cfg = cfg
        self.backbone = encoder
        for name in ("mean_C11", "std_C11"):
            self.register_buffer(name, torch.ones(encoder.channels, 1, 1), persistent=False)
        self.normalised_by(Normalise())
        if cfg.space == "pixel":
            self.decoder = FrameDecoder(
                encoder.map_shapes,
                encoder.image_size,
                encoder.channels,
                cfg.past,
                scales=cfg.scales,
                width=cfg.width,
                hidden=cfg.hidden,
                zero=cfg.predict == "change",
            )
            return
        side = _side(encoder.image_size, encoder.patch_size)
        width = int(getattr(encoder, "patch_dim", encoder.embed_dim))  # a few CNNs pool into another width
        self.teacher = frozen_copy(encoder)
        self.predictor = Predictor(
            width,
            cfg.predictor_width,
            cfg.predictor_depth,
            cfg.predictor_heads,
            (side, side),
            width,
            sincos_3d(cfg.predictor_width, (cfg.past + 1, side, side)),
        )

    @classmethod
    def clips(cls, cfg: MethodConfig, image_size: int) -> tuple[Clip, ...]:
        """One run of past frames and the next, cut alike."""
        assert isinstance(cfg, NextFrameConfig)
        crop = Crop(size=image_size, scale=cfg.crop_scale)
        return (Clip(name="clip", frames=cfg.past + 1, stride=cfg.stride, crop=crop, look=Look(flip=cfg.flip)),)

    @classmethod
    def masks(cls, cfg: MethodConfig, image_size: int, patch_size: int) -> tuple[Mask, ...]:
        """Tubes: blocks of places, the same in every past frame of a clip; exactly their share is hidden."""
        assert isinstance(cfg, NextFrameConfig)
        if cfg.space == "pixel" or cfg.mask_ratio == 0:
            return ()
        side = _side(image_size, patch_size)
        places = side * side
        hidden = min(places - 1, max(1, round(cfg.mask_ratio * places)))
        least, most = (max(1, int(share * places)) for share in BLOCK)
        least = min(least, hidden, max(1, (side - 1) ** 2))
        mask = BlockMask(
            name="tubes",
            grid=(side, side),
            patches=hidden,
            min_block=least,
            max_block=max(least, most),
            min_aspect=0.75,
            exact=True,
        )
        return (mask,)

    def normalised_by(self, normalise: Normalise) -> None:
        """Learn what undoes the normalisation: PSNR and sharpness are of pixels in [0, 1]."""
        mean, std = normalise.per_channel(len(self.mean_C11))
        self.mean_C11.copy_(torch.tensor(mean)[:, None, None])
        self.std_C11.copy_(torch.tensor(std)[:, None, None])

    def unit(self, frames: Tensor) -> Tensor:
        """Return normalised frames (..., C, H, W) as values in [0, 1], float32."""
        return torch.addcmul(self.mean_C11, frames.float(), self.std_C11).clamp(0, 1)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Predict the next frame of every clip."""
        frames_BTCHW = batch.clips["clip"][0]
        return self._pixels(frames_BTCHW) if self.cfg.space == "pixel" else self._features(frames_BTCHW, batch)

    # Pixels (arXiv 1511.05440)

    def predict(self, past_BTCHW: Tensor) -> list[Tensor]:
        """Return the predicted frame (B, C, s, s) at every scale, coarsest first."""
        maps = self.backbone.encode_maps(past_BTCHW.flatten(0, 1))
        predicted: list[Tensor] = self.decoder(maps, past_BTCHW[:, -1] if self.cfg.predict == "change" else None)
        return predicted

    def _pixels(self, frames_BTCHW: Tensor) -> StepOutput:
        """Sum over the scales of L_p and gradient difference; every scale has its target."""
        cfg, true_BCHW = self.cfg, frames_BTCHW[:, -1]
        predicted = self.predict(frames_BTCHW[:, :-1])
        loss = true_BCHW.new_zeros((), dtype=torch.float32)
        for pred_BCss in predicted:
            target_BCss = shrunk(true_BCHW, pred_BCss.shape[-1])
            loss = loss + cfg.lp_weight * lp_error(pred_BCss, target_BCss, cfg.p)
            if cfg.gradient_weight:
                loss = loss + cfg.gradient_weight * gradient_difference(pred_BCss, target_BCss, cfg.alpha)
        return StepOutput(loss, self._measures(predicted[-1].detach(), frames_BTCHW))

    @torch.no_grad()
    def _measures(self, pred_BCHW: Tensor, frames_BTCHW: Tensor) -> dict[str, Tensor]:
        """Return PSNR and sharpness of the prediction and of a copy of the last frame, whole frames."""
        pred, last, true = (self.unit(x) for x in (pred_BCHW, frames_BTCHW[:, -2], frames_BTCHW[:, -1]))
        return {
            "next_frame/psnr": psnr(pred, true).mean(),
            "next_frame/psnr_copy": psnr(last, true).mean(),
            "next_frame/sharpness": sharpness(pred, true).mean(),
            "next_frame/sharpness_copy": sharpness(last, true).mean(),
        }

    # Features (arXiv 2404.08471)

    def _features(self, frames_BTCHW: Tensor, batch: Batch) -> StepOutput:
        """L1 between predicted and true features of hidden tubes and of the next frame (V-JEPA, Eq. 1)."""
        seen_BM, hidden_BP = self.places(batch)
        pred_BKD, asked_BK = self.foresee(frames_BTCHW[:, :-1], seen_BM, hidden_BP)
        first = 0 if self.cfg.mask_ratio else self.cfg.past - 1  # the last frame is for comparison
        targets_BTND = self.targets(frames_BTCHW[:, first:])
        every_BKD = targets_BTND.flatten(1, 2)
        loss = token_l1(pred_BKD, take_tokens(every_BKD, asked_BK - first * targets_BTND.shape[2]))
        with torch.no_grad():
            last_BND, next_BND = targets_BTND[:, -2], targets_BTND[:, -1]
            few = next_BND[:16].flatten(0, 1)  # enough for a monitor
            metrics = {
                "next_frame/l1": token_l1(pred_BKD[:, -next_BND.shape[1] :], next_BND),
                "next_frame/l1_copy": token_l1(last_BND, next_BND),
                # Of normalised tokens: 1 is spread, 0 when all tokens are the same.
                "next_frame/target_std": few.std(dim=0).mean() if len(few) > 1 else few.new_zeros(()),
            }
        return StepOutput(loss, metrics)

    def places(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return which places of every past frame are seen (B, M) and which hidden (B, P), int64."""
        if self.cfg.mask_ratio:
            mask_BN = batch.masks["tubes"][0]
            hidden_BP = by_row(batch.places["tubes"], batch.masks["tubes"])[0]
            return keep_from_mask(mask_BN, mask_BN.shape[1] - hidden_BP.shape[1]), hidden_BP
        frames_BTCHW = batch.clips["clip"][0]
        every_N = torch.arange(_places(self.backbone), device=frames_BTCHW.device)
        every_BN = every_N.expand(len(frames_BTCHW), -1)
        return every_BN, every_BN[:, :0]

    def foresee(self, past_BTCHW: Tensor, seen_BM: Tensor, hidden_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Return predicted features (B, K, D) and where they lie, (B, K): hidden tubes, then the whole next frame."""
        past, every = past_BTCHW.shape[1], _places(self.backbone)
        starts_T1 = torch.arange(past + 1, device=seen_BM.device)[:, None] * every
        seen_BTM, hidden_BTP = (x[:, None] + starts_T1[:past] for x in (seen_BM, hidden_BP))
        next_N = starts_T1[past] + torch.arange(every, device=seen_BM.device)
        asked_BK = torch.cat([hidden_BTP.flatten(1), next_N.expand(len(seen_BM), -1)], dim=1)
        tokens_BSD = self._visible(past_BTCHW.flatten(0, 1), seen_BM.repeat_interleave(past, 0)).unflatten(
            0, (-1, past)
        )
        pred_BKD: Tensor = self.predictor(tokens_BSD.flatten(1, 2), seen_BTM.flatten(1), asked_BK[None])
        return pred_BKD, asked_BK

    def _visible(self, images: Tensor, keep_BM: Tensor) -> Tensor:
        """Return the encoder's tokens of the seen places; what cannot leave places out sees the mean colour there."""
        if keep_BM.shape[1] == _places(self.backbone):
            every: Tensor = self.backbone(images).patches_BND
            return every
        if self.backbone.can_drop:
            kept: Tensor = self.backbone(images, keep_BM=keep_BM).patches_BND
            return kept
        return take_tokens(self.backbone(blanked(images, keep_BM, self.backbone.patch_size)).patches_BND, keep_BM)

    def targets(self, frames_BTCHW: Tensor) -> Tensor:
        """Return the teacher's features of whole frames, normalised token by token, (B, T, N, D)."""
        judge = self.teacher if self.cfg.stop_gradient else self.backbone
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.cfg.stop_gradient):
            tokens = normalised_tokens(judge(frames_BTCHW.flatten(0, 1)).patches_BND)
            return tokens.unflatten(0, (-1, frames_BTCHW.shape[1]))

    def after_optimizer_step(self, t: Progress) -> None:
        """Move the teacher."""
        if self.cfg.space == "latent":
            ema_update_(self.teacher, self.backbone, self.cfg.momentum(t))

    @property
    def encoder(self) -> Encoder:
        """The encoder; in feature space the teacher, which V-JEPA evaluates."""
        return self.backbone if self.cfg.space == "pixel" else self.teacher

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Features that predict themselves may all become the same."""
        assert isinstance(cfg, NextFrameConfig)
        found = []
        if cfg.space == "latent" and not cfg.stop_gradient:
            found.append(
                "the targets take gradients (method.stop_gradient is off), so equal tokens everywhere are the easiest "
                "answer: leave it on."
            )
        if cfg.space == "latent" and cfg.momentum.start < 0.9:
            found.append(
                f"the teacher follows the encoder too fast (method.momentum.start is {cfg.momentum.start:g}), and both "
                "may agree on equal tokens everywhere: set --method.momentum.start 0.99 or more."
            )
        return tuple(found)

    @torch.no_grad()
    def reconstruct(self, batch: Batch, t: Progress) -> dict[str, Tensor]:
        """Return the last frame, the prediction and the truth; in feature space what was seen, and how far off it was.

        The error of the next frame's features is grey, from black (none) to white (2 deviations of a
        normalised feature on average).
        """
        frames_BTCHW = batch.clips["clip"][0]
        last, true = frames_BTCHW[:, -2], frames_BTCHW[:, -1]
        if self.cfg.space == "pixel":
            return {"last frame": last, "prediction": self.predict(frames_BTCHW[:, :-1])[-1].float(), "truth": true}
        seen_BM, hidden_BP = self.places(batch)
        pred_BKD, _ = self.foresee(frames_BTCHW[:, :-1], seen_BM, hidden_BP)
        side, stride = true.shape[-1] // self.backbone.patch_size, self.backbone.patch_size
        off_BN = (pred_BKD[:, -side * side :].float() - self.targets(frames_BTCHW[:, -1:])[:, 0]).abs().mean(-1)
        off_B1HW = off_BN.unflatten(1, (1, side, side)).repeat_interleave(stride, 2).repeat_interleave(stride, 3)
        return {
            "last frame as seen": blanked(last, seen_BM, stride),
            "truth": true,
            "truth: error of its features": ((off_B1HW / 2).clamp(0, 1) - self.mean_C11) / self.std_C11,
        }


def blanked(images_BCHW: Tensor, keep_BM: Tensor, patch: int) -> Tensor:
    """Return images with the mean colour (0, as they are normalised) at all patches but the kept ones."""
    rows, columns = (side // patch for side in images_BCHW.shape[-2:])
    kept_BN = keep_BM.new_zeros(len(keep_BM), rows * columns).scatter_(1, keep_BM, 1)
    kept_B1HW = kept_BN.unflatten(1, (1, rows, columns)).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    return images_BCHW * kept_B1HW.to(images_BCHW.dtype)


def _places(encoder: Encoder) -> int:
    return _side(encoder.image_size, encoder.patch_size) ** 2


def _side(image_size: int, patch_size: int) -> int:
    if image_size % patch_size:
        fits = max(1, round(image_size / patch_size)) * patch_size
        raise ConfigError(
            f"next_frame in feature space needs frames of whole patches: {image_size} pixels are no multiple of the "
            f"encoder's patch or stride ({patch_size}). Use --image-size {fits}."
        )
    return image_size // patch_size


def _check(cfg: NextFrameConfig) -> None:
    if cfg.space not in get_args(Space):
        raise unknown("space", str(cfg.space), get_args(Space))
    if cfg.past < 1 or not 0 <= cfg.mask_ratio < 1:
        raise ConfigError(
            f"next_frame: past must be at least 1 (got {cfg.past}) and mask_ratio in [0, 1) (got {cfg.mask_ratio:g})."
        )
    if cfg.space == "pixel" and cfg.lp_weight <= 0 and cfg.gradient_weight <= 0:
        raise ConfigError(
            "next_frame: lp_weight and gradient_weight are both 0, so nothing is asked of the prediction."
        )
