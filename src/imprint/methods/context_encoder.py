"""Context encoders: feature learning by inpainting.

Pathak, Kraehenbuehl, Donahue, Darrell, Efros 2016, arXiv 1604.07379. A part of the image is covered by the mean colour;
an encoder reads the rest, a decoder paints what was covered, a discriminator says how real that looks.

The networks around the encoder follow the public code (pathak22/context-encoder), which differs from the paper where
the docstrings say so. One thing differs from both: the generator meets the discriminator after its update, as all
objectives here do, where the public code reuses the answers from before.

Shape suffixes: B images, C channels, H x W pixels, S side of what is predicted, N places of the encoder's map, D width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.core.rng import seed_of
from imprint.data.batch import Batch
from imprint.data.views import Crop, Look, View
from imprint.losses.adversarial import discriminator_loss, fooling_loss, weighted_l2
from imprint.methods.base import Method, MethodConfig, ParamGroup, StepOutput, split_decay
from imprint.nn.bridges import ChannelwiseBridge, DenseBridge
from imprint.nn.discriminators import ImageDiscriminator
from imprint.nn.pixel_range import PixelRange
from imprint.nn.up_convolutions import UpConvolutions, doublings, start_side
from imprint.ops.region_masks import block_regions, centre_box, noise_regions


@dataclass(frozen=True, kw_only=True)
class ContextEncoderConfig(MethodConfig):
    """The choices of context encoders.

    Attributes:
        region: what is covered: the `centre`, `blocks` at random places, or `random` shapes (Sec. 3.3; the latter two
            learn the better features). The centre alone is predicted and judged; of the others the whole image is
            (public code).
        hole: side of the centre square as a share of the image's (the paper and public code).
        overlap: width of the band at the centre's border that is predicted though it is visible, as a share of the
            image's side (the paper: 7 pixels; public code: 4 of 128).
        overlap_weight: weight of the squared error in that band (the paper and public code).
        context_weight: weight of the squared error on visible pixels when the whole image is predicted (public code,
            as its README trains: 1; with useOverlapPred: 10). Eq. 1 of the paper counts the hole only: 0.
        random_share: bounds of the area of random shapes (Sec. 3.3: up to 1/4; public code: .2 to .3).
        random_cells: grain of random shapes, cells of noise along a side (public code: .06 per pixel, of 128).
        blocks: largest number of blocks (Sec. 3.3: "a number of", which may overlap).
        block_sides: bounds of their sides as shares of the image's (no number in the paper).
        block_area: the most that blocks cover (Sec. 3.3: 1/4).
        bridge: from the encoder's map to the decoder's: `channelwise` (Sec. 3.1), or `dense` through a bottleneck
            (public code, which trains no features for other tasks).
        bottleneck: width of the dense bridge (public code, nBottleneck as its README trains).
        width: of the decoder's finest map (public code, ngf).
        discriminator_width: of its first convolution (public code, ndf).
        reconstruction_weight: lambda_rec of Eq. 3 (.999).
        adversarial_weight: lambda_adv of Eq. 3 (.001); for features alone the paper trains AlexNet with 0, because
            the adversarial loss did not converge there.
        generator_rate: rate of encoder and decoder as a multiple of the discriminator's (the paper and public code).
        crop_scale: area share of the crop, of the image's aspect (Caffe: 227 of 256 pixels; public code: 128 of 350).
    """

    region: Literal["centre", "random", "blocks"] = "centre"
    hole: float = 0.5
    overlap: float = 1 / 32
    overlap_weight: float = 10.0
    context_weight: float = 1.0
    random_share: tuple[float, float] = (0.2, 0.25)
    random_cells: float = 7.68
    blocks: int = 8
    block_sides: tuple[float, float] = (0.125, 0.25)
    block_area: float = 0.25
    bridge: Literal["channelwise", "dense"] = "channelwise"
    bottleneck: int = 4000
    width: int = 64
    discriminator_width: int = 64
    reconstruction_weight: float = 0.999
    adversarial_weight: float = 0.001
    generator_rate: float = 10.0
    crop_scale: tuple[float, float] = (0.786, 0.786)


class ContextEncoder(Method):
    """Cover, encode, paint; squared error and an adversary (Sec. 3)."""

    Config: ClassVar[type[MethodConfig]] = ContextEncoderConfig
    fit_images: ClassVar[int] = 256
    objectives: ClassVar[tuple[str, ...]] = ("discriminator", "generator")

    mean_C: Tensor

    def __init__(self, cfg: ContextEncoderConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        side = encoder.image_size
        if side % encoder.patch_size:
            raise ConfigError(
                f"context_encoder paints from the encoder's map, and strides of {encoder.patch_size} pixels do not "
                f"divide images of {side}; choose an image size that is a multiple of it."
            )
        first, last = centre_box(side, cfg.hole) if cfg.region == "centre" else (0, side)
        band = round(side * cfg.overlap)
        if cfg.region == "centre" and not 0 <= 2 * band < last - first:
            raise ConfigError(f"an overlap of {cfg.overlap} of the image leaves nothing of a hole of {cfg.hole}.")
        self.box, self.band = slice(first, last), band
        grid = side // encoder.patch_size
        small = grid if doublings(grid, last - first) else start_side(last - first)
        self.backbone = encoder
        self.pixels = PixelRange(encoder.channels)
        self.register_buffer("mean_C", torch.zeros(encoder.channels))
        self.decoder = UpConvolutions(small, last - first, encoder.channels, cfg.width)
        features = int(getattr(encoder, "patch_dim", encoder.embed_dim))
        self.bridge: nn.Module
        if cfg.bridge == "dense":
            self.bridge = DenseBridge(features, grid * grid, small, self.decoder.inputs, cfg.bottleneck)
        else:
            self.bridge = ChannelwiseBridge(features, grid * grid, small, self.decoder.inputs)
        self.discriminator = ImageDiscriminator(encoder.channels, last - first, cfg.discriminator_width)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """One crop with the aspect of the image, and a flip."""
        assert isinstance(cfg, ContextEncoderConfig)
        crop = Crop(size=image_size, scale=cfg.crop_scale, ratio=None)
        return (View(name="global", crop=crop, look=Look(flip=0.5)),)

    def check_batch(self, rows: int) -> None:
        """Batch norms on codes need two images."""
        if rows < 2:
            raise ConfigError("context_encoder normalises over the batch; use at least 2 images.")

    def fit(self, images_BCHW: Tensor) -> None:
        """Learn the mean colour, which covers the hole, and the range of the decoder's tanh."""
        self.pixels.see(images_BCHW)
        self.mean_C.copy_(images_BCHW.float().mean((0, 2, 3)))

    def hidden(self, index_B: Tensor, t: Progress) -> Tensor:
        """Return which pixels the encoder does not see, bool (B or 1, 1, H, W); both objectives of a step agree."""
        cfg, side = self.cfg, self.backbone.image_size
        if cfg.region == "centre":
            hole_11HW = torch.zeros(1, 1, side, side, dtype=torch.bool, device=index_B.device)
            inner = slice(self.box.start + self.band, self.box.stop - self.band)
            hole_11HW[..., inner, inner] = True
            return hole_11HW
        key = seed_of("context_encoder", t.step)
        if cfg.region == "blocks":
            return block_regions(key, index_B, side, count=cfg.blocks, sides=cfg.block_sides, most=cfg.block_area)
        return noise_regions(key, index_B, side, cells=cfg.random_cells, share=cfg.random_share)

    def covered(self, images_BCHW: Tensor, hidden_B1HW: Tensor) -> Tensor:
        """Return the images as the encoder sees them: the mean colour where pixels are hidden."""
        return torch.where(hidden_B1HW, self.mean_C[:, None, None].to(images_BCHW.dtype), images_BCHW)

    def paint(self, images_BCHW: Tensor, hidden_B1HW: Tensor) -> Tensor:
        """Return the prediction (B, C, S, S) in [-1, 1]: the centre, or the whole image."""
        features = self.backbone(self.covered(images_BCHW, hidden_B1HW))
        painted: Tensor = self.decoder(self.bridge(features.patches_BND))
        return painted.tanh()

    def forward(self, batch: Batch, t: Progress, objective: str = "generator") -> StepOutput:
        """Tell real pictures from painted ones, or paint (Eq. 3)."""
        images = batch.views["global"][0]
        hidden_B1HW = self.hidden(batch.index_B, t)
        real_BCSS = self.pixels.to_unit(images).clamp(-1, 1)[..., self.box, self.box]
        if objective == "discriminator":
            with torch.no_grad():
                painted_BCSS = self.paint(images, hidden_B1HW)
            real_B, fake_B = self.discriminator(real_BCSS), self.discriminator(painted_BCSS)
            right = (real_B > 0).float().mean() + (fake_B < 0).float().mean()
            return StepOutput(
                discriminator_loss(real_B, fake_B), {"context_encoder/discriminator_right": right.detach() / 2}
            )
        painted_BCSS = self.paint(images, hidden_B1HW)
        l2 = weighted_l2(painted_BCSS, real_BCSS, self.weight(hidden_B1HW))
        fooling = fooling_loss(self.discriminator(painted_BCSS))
        loss = self.cfg.reconstruction_weight * l2 + self.cfg.adversarial_weight * fooling
        return StepOutput(loss, {"context_encoder/l2": l2.detach(), "context_encoder/fooling": fooling.detach()})

    def weight(self, hidden_B1HW: Tensor) -> Tensor:
        """Return the weight of the squared error at every place of what is predicted (B or 1, 1, S, S)."""
        visible = self.cfg.overlap_weight if self.cfg.region == "centre" else self.cfg.context_weight
        inside = hidden_B1HW[..., self.box, self.box]
        return torch.where(inside, 1.0, visible)

    def param_groups(self) -> list[ParamGroup]:
        """The discriminator's parameters, and all others at a higher rate."""
        named = list(self.named_parameters())
        judge = split_decay(((n, p) for n, p in named if n.startswith("discriminator.")), prefix="discriminator/")
        painter = split_decay(
            ((n, p) for n, p in named if not n.startswith("discriminator.")),
            prefix="generator/",
            lr_scale=self.cfg.generator_rate,
        )
        return [dataclasses.replace(g, objective="discriminator") for g in judge] + [
            dataclasses.replace(g, objective="generator") for g in painter
        ]

    @property
    def encoder(self) -> Encoder:
        """The encoder; it is used on whole images afterwards."""
        return self.backbone

    @torch.no_grad()
    def reconstruct(self, batch: Batch, t: Progress) -> dict[str, Tensor]:
        """Return the image, what the encoder saw of it, and the painting in the hole."""
        images = batch.views["global"][0]
        hidden_B1HW = self.hidden(batch.index_B, t)
        whole = images.clone()
        whole[..., self.box, self.box] = self.pixels.from_unit(self.paint(images, hidden_B1HW)).to(images.dtype)
        return {
            "image": images,
            "visible": self.covered(images, hidden_B1HW),
            "reconstruction": torch.where(hidden_B1HW, whole, images),
        }
