"""Colorful image colorization: predict the colours of a grey image.

Zhang, Isola, Efros 2016, arXiv 1603.08511 (Sec. 2; public code richzhang/colorization). The encoder sees the lightness
L of an image, a head names for every fourth pixel one of 313 bins of the ab plane. Targets are soft over the nearest
bins, and rare colours weigh more, so that predictions do not fade to grey.

Shapes: B images, H x W pixels, h x w places of the prediction, P = B h w, Q bins, K nearest bins, D width of the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError, DataError
from imprint.core.progress import Progress
from imprint.data.batch import Batch, Normalise
from imprint.data.view_recipes import mae_views
from imprint.data.views import View
from imprint.losses.colorization import colour_cross_entropy
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.nn.grey_stem import even_channels_
from imprint.nn.hypercolumn import Hypercolumn, resized
from imprint.ops.colour_bins import annealed_mean, colour_bins, rebalancing, smoothed, soft_encode
from imprint.ops.lab import lab_to_rgb, rgb_to_lab


@dataclass(frozen=True, kw_only=True)
class ColorizationConfig(MethodConfig):
    """Colorization's choices.

    Attributes:
        grid: spacing of the bins in the ab plane (Sec. 2.1: 10, which gives Q = 313 in gamut).
        nearest: bins that share a target (Sec. 2.1: 5; the public code takes 10).
        sigma: of the Gaussian that shares it, and that smooths the distribution of colours (Sec. 2.1 and 2.2: 5).
        uniform: lambda, the part of the uniform distribution in the class weights (Sec. 2.2, Eq. 4: 0.5); 1 weighs all
            colours equally.
        grey_threshold: images with no |a| or |b| above this have weight 0: they are grey already (public code: 5).
        temperature: of the annealed mean that makes pictures of predictions (Sec. 2.3: 0.38).
        reduction: pixels per prediction along a side (public code: 4).
        width: channels of the head (public code: 256, conv8).
        layers: 3x3 convolutions of the head (public code: the two of conv8).
        even_stem: start the encoder's first layer with equal weights for all channels, so that a colour image is a grey
            one to it later; False keeps the random differences (the paper's network has one input channel, and its
            probes see L).
        crop_scale: area share of the crop (public code: 176 x 176 of 256 x 256, and a flip).
    """

    grid: float = 10.0
    nearest: int = 5
    sigma: float = 5.0
    uniform: float = 0.5
    grey_threshold: float = 5.0
    temperature: float = 0.38
    reduction: int = 4
    width: int = 256
    layers: int = 2
    even_stem: bool = True
    crop_scale: tuple[float, float] = (0.473, 0.473)


class Colorization(Method):
    """L -> distribution over the bins of ab at every place, cross entropy with soft targets and rebalanced classes.

    The encoder gets L as three equal channels on the scale of its normalised input, and can be given RGB afterwards.
    The paper's network has no coarse maps (its stride is 8, by dilation); for encoders that have some, the head reads
    all maps of `encode_maps`, so that no map need carry every edge.
    """

    Config: ClassVar[type[MethodConfig]] = ColorizationConfig
    fit_images: ClassVar[int] = 512
    centres_Q2: Tensor
    candidates_GGM: Tensor
    boost_Q: Tensor
    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, cfg: ColorizationConfig, encoder: Encoder) -> None:
        super().__init__()
        if encoder.channels != 3:
            raise ConfigError(
                f"colorization learns from colours and the encoder has {encoder.channels} input channels; give images "
                "with three (RGB), and leave --encoder.channels alone: it sees their lightness as three equal channels."
            )
        self.cfg = cfg
        self.backbone = encoder
        if cfg.even_stem:
            even_channels_(encoder)
        bins = colour_bins(cfg.grid, cfg.nearest)
        self.register_buffer("centres_Q2", bins.centres_Q2.clone(), persistent=False)
        self.register_buffer("candidates_GGM", bins.candidates_GGM.clone(), persistent=False)
        self.register_buffer("boost_Q", torch.ones(len(bins.centres_Q2)))
        self.register_buffer("mean_C11", torch.zeros(3, 1, 1), persistent=False)
        self.register_buffer("std_C11", torch.ones(3, 1, 1), persistent=False)
        self.normalised_by(Normalise())
        self.head = Hypercolumn([width for width, _ in encoder.map_shapes], cfg.width, cfg.layers)
        self.classifier = nn.Linear(cfg.width, len(bins.centres_Q2))

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """One random crop with a flip; colours stay as they are.

        Raises:
            ConfigError: when the image does not hold whole places of the prediction.
        """
        assert isinstance(cfg, ColorizationConfig)
        if cfg.reduction < 1 or image_size % cfg.reduction:
            raise ConfigError(
                f"colorization predicts one colour per {cfg.reduction} x {cfg.reduction} pixels, which do not divide "
                f"an image of {image_size}; set --method.reduction or --image-size."
            )
        return mae_views(image_size, scale=cfg.crop_scale)

    def normalised_by(self, normalise: Normalise) -> None:
        """Keep mean and std: Lab is a function of the colours themselves."""
        mean, std = normalise.per_channel(3)
        self.mean_C11.copy_(torch.tensor(mean)[:, None, None])
        self.std_C11.copy_(torch.tensor(std)[:, None, None])

    @torch.no_grad()
    def fit(self, images_BCHW: Tensor) -> None:
        """Estimate the distribution of colours, smooth it, and keep the class weights (Sec. 2.2, Eq. 4).

        Raises:
            DataError: when none of the images has colours.
        """
        count_Q = torch.zeros_like(self.boost_Q, dtype=torch.float64)
        coloured = torch.zeros((), dtype=torch.int64, device=count_Q.device)
        for some_BCHW in images_BCHW.split(64):
            ab_B2hw = self._targets(rgb_to_lab(self._to_rgb(some_BCHW.to(count_Q.device))))
            index_PK, _ = self._soft_encoded(ab_B2hw)
            count_Q += torch.bincount(index_PK[:, 0], minlength=len(count_Q))
            coloured += self._colourful(ab_B2hw).sum()
        if not bool(coloured):
            raise DataError(
                f"colorization learns from colours, and the {len(images_BCHW)} images that it looked at are grey; "
                "choose another method (rotation, jigsaw), or lower --method.grey-threshold if their colours are faint."
            )
        share_Q = smoothed(count_Q / count_Q.sum(), self.centres_Q2.double(), self.cfg.sigma)
        self.boost_Q.copy_(rebalancing(share_Q, self.cfg.uniform))

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Predict the bins of every place from L, compare with the soft targets, weigh by rarity."""
        lab_BCHW = rgb_to_lab(self._to_rgb(batch.views["global"][0]))
        z_BDhw = self._features(lab_BCHW[:, :1])
        ab_B2hw = self._targets(lab_BCHW)
        index_PK, share_PK = self._soft_encoded(ab_B2hw)
        weight_P = self.boost_Q[index_PK[:, 0]].view(len(ab_B2hw), -1) * self._colourful(ab_B2hw)[:, None]
        loss, accuracy = colour_cross_entropy(
            z_BDhw.permute(0, 2, 3, 1).flatten(0, 2),
            self.classifier.weight,
            self.classifier.bias,
            index_PK,
            share_PK * weight_P.view(-1, 1),
        )
        return StepOutput(loss, {"colorization/accuracy": accuracy})

    def predict(self, lightness_B1HW: Tensor) -> Tensor:
        """Return logits over the bins (B, Q, h, w) from L in [0, 100]."""
        z_BDhw = self._features(lightness_B1HW)
        return F.conv2d(z_BDhw, self.classifier.weight[:, :, None, None], self.classifier.bias)

    def _features(self, lightness_B1HW: Tensor) -> Tensor:
        height, width = (int(side) // self.cfg.reduction for side in lightness_B1HW.shape[2:])
        features: Tensor = self.head(self.backbone.encode_maps(self._to_input(lightness_B1HW)), (height, width))
        return features

    def _to_input(self, lightness_B1HW: Tensor) -> Tensor:
        """Return L as three equal channels, normalised like a grey pixel by the mean of the channels' mean and std."""
        grey = (lightness_B1HW / 100 - self.mean_C11.mean()) / self.std_C11.mean()
        return grey.expand(-1, 3, -1, -1).contiguous()

    def _to_rgb(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW.float() * self.std_C11 + self.mean_C11

    def _targets(self, lab_BCHW: Tensor) -> Tensor:
        """Return ab (B, 2, h, w) of the pixel at the middle of each place; a mean would be a greyer colour."""
        step = self.cfg.reduction
        return lab_BCHW[:, 1:, step // 2 :: step, step // 2 :: step]

    def _soft_encoded(self, ab_B2hw: Tensor) -> tuple[Tensor, Tensor]:
        cfg = self.cfg
        ab_P2 = ab_B2hw.permute(0, 2, 3, 1).flatten(0, 2)
        return soft_encode(
            ab_P2, self.centres_Q2, self.candidates_GGM, grid=cfg.grid, nearest=cfg.nearest, sigma=cfg.sigma
        )

    def _colourful(self, ab_B2hw: Tensor) -> Tensor:
        """Tell for each image whether any place has a colour."""
        return (ab_B2hw.abs() > self.cfg.grey_threshold).flatten(1).any(1)

    @property
    def encoder(self) -> Encoder:
        """The encoder; it was trained on grey images and takes RGB."""
        return self.backbone

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Without rebalancing, the greys that most pixels have drown the colours."""
        assert isinstance(cfg, ColorizationConfig)
        if cfg.uniform >= 1:
            return (
                "all colours weigh the same (uniform is 1), so predictions fade to the common greys: lower "
                "--method.uniform to 0.5.",
            )
        return ()

    @torch.no_grad()
    def reconstruct(self, batch: Batch, t: Progress) -> dict[str, Tensor]:
        """Return the image, its lightness, and the lightness with the predicted colours (annealed mean, Sec. 2.3)."""
        images = batch.views["global"][0]
        lightness = rgb_to_lab(self._to_rgb(images))[:, :1]
        ab = annealed_mean(self.predict(lightness), self.centres_Q2, self.cfg.temperature)
        ab = resized(ab, (int(images.shape[2]), int(images.shape[3])))
        coloured = {"visible": torch.zeros_like(ab), "reconstruction": ab}
        drawn = {name: lab_to_rgb(torch.cat([lightness, plane], 1)) for name, plane in coloured.items()}
        return {"image": images, **{name: (rgb - self.mean_C11) / self.std_C11 for name, rgb in drawn.items()}}
