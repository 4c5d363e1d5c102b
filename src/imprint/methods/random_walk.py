"""Contrastive random walk: space-time correspondence learned from walks that shall come home.

Jabri, Owens, Efros 2020, arXiv 2006.14613. The patches of a clip are nodes of a graph; a walker goes from frame to
frame, to where patches are alike, and back again. That it shall end where it began is all the supervision there is.

Shapes: B clips, T frames, S = T - 1 steps, N nodes of a frame, C channels, H x W pixels, P side of a patch, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.core.rng import seed_of
from imprint.data.batch import Batch
from imprint.data.views import Clip, Crop
from imprint.losses.random_walk import palindrome_loss, return_rate, transitions, walks
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.ops.keyed import keyed_uniforms
from imprint.ops.patch_grid import JITTER_NUMBERS, cut_boxes, grid_boxes, grid_side, jittered, laid_out


@dataclass(frozen=True, kw_only=True)
class RandomWalkConfig(MethodConfig):
    """The random walk's choices; "code" is ajabri/videowalk, whose training command gives the published 67.6.

    Attributes:
        frames: T, frames of a clip (code: `--clip-len 4`).
        stride: frames from one to the next (code: 8 frames per second, so 4 for videos of 30).
        nodes: `patches` are encoded one by one (the paper), or the places of the last `map` of a whole frame (code:
            option frame_aug none), which is cheaper, but a CNN's padding then tells where a node is.
        patch: P, side of a patch in pixels (64 of frames of 256).
        patch_stride: pixels from one patch to the next (32, a 7 x 7 grid).
        jitter: bounds of the share of a patch that is cut at random and resized to P (code, `patch_grid`); (1, 1) for
            none.
        crop_scale: bounds of the area share of a frame's crop; every frame draws its own (code, `--frame-transforms
            crop`).
        crop_ratio: bounds of that crop's aspect (code).
        temperature: tau. The paper has 0.07; the code, after its transition matrices were corrected, needs 0.05.
        edge_dropout: share of the edges that are dropped, forward and back by themselves (code: `--dropout 0.1`).
        shortest: steps forward of the shortest palindrome (the paper: 1, every length; the code begins with 2).
        projection: D, width of the linear head (code: 128).
    """

    frames: int = 4
    stride: int = 4
    nodes: Literal["patches", "map"] = "patches"
    patch: int = 64
    patch_stride: int = 32
    jitter: tuple[float, float] = (0.7, 0.9)
    crop_scale: tuple[float, float] = (0.8, 0.95)
    crop_ratio: tuple[float, float] = (0.7, 1.3)
    temperature: float = 0.05
    edge_dropout: float = 0.1
    shortest: int = 1
    projection: int = 128

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.frames < 2 or not 1 <= self.shortest < self.frames:
            raise ConfigError(
                f"a walk needs at least 2 frames, and its shortest palindrome 1 to frames - 1 steps; got "
                f"--method.frames {self.frames} and --method.shortest {self.shortest}."
            )
        if not 0 <= self.edge_dropout < 1 or self.temperature <= 0 or self.projection < 1:
            raise ConfigError(
                "--method.edge-dropout lies in [0, 1), --method.temperature is positive and --method.projection at "
                f"least 1; got {self.edge_dropout}, {self.temperature} and {self.projection}."
            )
        if not 0 < self.jitter[0] <= self.jitter[1] <= 1:
            raise ConfigError(f"--method.jitter gives shares of a patch, 0 < low <= high <= 1; got {self.jitter}.")


class RandomWalk(Method):
    """Encode patches, step between frames by likeness, walk there and back, ask for the way home."""

    Config: ClassVar[type[MethodConfig]] = RandomWalkConfig

    def __init__(self, cfg: RandomWalkConfig, encoder: Encoder) -> None:
        super().__init__()
        if cfg.nodes == "patches" and encoder.has_tokens and cfg.patch % encoder.patch_size:
            raise ConfigError(
                f"random_walk encodes patches of {cfg.patch} px, which '{encoder.name}' cannot cut into its own of "
                f"{encoder.patch_size} px. Set --method.patch to a multiple of {encoder.patch_size}, or choose a CNN."
            )
        self.cfg = cfg
        self.backbone = encoder
        width = int(getattr(encoder, "patch_dim", encoder.embed_dim))  # a few CNNs pool into another width
        self.head = nn.Linear(width, cfg.projection)

    @classmethod
    def clips(cls, cfg: MethodConfig, image_size: int) -> tuple[Clip, ...]:
        """One clip of T frames, each cropped by itself: where a patch stands says little about where it went."""
        assert isinstance(cfg, RandomWalkConfig)
        if cfg.nodes == "patches" and (
            cfg.patch > image_size or grid_side(image_size, cfg.patch, cfg.patch_stride) < 2
        ):
            raise ConfigError(
                f"random_walk: frames of {image_size} px hold no grid of patches of {cfg.patch} px, "
                f"{cfg.patch_stride} px apart. Set --method.patch {max(1, image_size // 4)} --method.patch-stride "
                f"{max(1, image_size // 8)}, or a larger --image-size."
            )
        crop = Crop(size=image_size, scale=cfg.crop_scale, ratio=cfg.crop_ratio)
        return (Clip(name="walk", frames=cfg.frames, stride=cfg.stride, crop=crop, steady=False),)

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Name the shortcut that patches do not have."""
        assert isinstance(cfg, RandomWalkConfig)
        if cfg.nodes == "patches":
            return ()
        return (
            "nodes are places of a feature map: a network that pads knows where each is, and the walker finds home "
            "without looking (arXiv 2006.14613); set --method.nodes patches",
        )

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Compute the loss of all palindromes that begin in the first frame."""
        frames_BTCHW = batch.clips["walk"][0]
        nodes_BTND = self.walkable(frames_BTCHW, self._boxes(frames_BTCHW, batch.index_B, t))
        forward, backward = transitions(nodes_BTND, self.cfg.temperature, self._dropped(nodes_BTND, batch.index_B, t))
        loss = palindrome_loss(forward, backward, shortest=self.cfg.shortest)
        return StepOutput(loss, {"random_walk/returned": return_rate(forward.detach(), backward.detach())})

    def walkable(self, frames_BTCHW: Tensor, boxes: Tensor | None) -> Tensor:
        """Return the embeddings of all nodes, (B, T, N, D); `boxes` (B T, N, 4) or (N, 4) for patches."""
        batch, frames = frames_BTCHW.shape[:2]
        images = frames_BTCHW.flatten(0, 1)
        if boxes is None:
            places = self.backbone(images).patches_BND
        else:
            patches = cut_boxes(images, boxes, self.cfg.patch)
            places = self.backbone(patches.flatten(0, 1)).patches_BND.mean(1)
        nodes: Tensor = self.head(places)
        return nodes.reshape(batch, frames, -1, self.cfg.projection)

    def _boxes(self, frames_BTCHW: Tensor, index_B: Tensor, t: Progress) -> Tensor | None:
        """Return where patches are cut, each a little aside while training."""
        if self.cfg.nodes == "map":
            return None
        height, width = frames_BTCHW.shape[-2:]
        grid_N4 = grid_boxes(height, width, self.cfg.patch, self.cfg.patch_stride, frames_BTCHW.device)
        if not self.training or self.cfg.jitter == (1.0, 1.0):
            return grid_N4
        frames, count = frames_BTCHW.shape[1], len(grid_N4)
        key = seed_of("random_walk", "jitter", t.step)
        numbers = keyed_uniforms(key, index_B, frames * count * JITTER_NUMBERS)
        return jittered(grid_N4, numbers.view(-1, count, JITTER_NUMBERS), self.cfg.jitter)

    def _dropped(self, nodes_BTND: Tensor, index_B: Tensor, t: Progress) -> Tensor | None:
        """Draw the edges that are dropped, a function of clip and step alone."""
        if not self.training or self.cfg.edge_dropout == 0:
            return None
        _, frames, count, _ = nodes_BTND.shape
        shape = (frames - 1, 2, count, count)
        numbers = keyed_uniforms(seed_of("random_walk", "edges", t.step), index_B, (frames - 1) * 2 * count * count)
        return numbers.view(-1, *shape) < self.cfg.edge_dropout

    @property
    def encoder(self) -> Encoder:
        """The encoder of patches; the head is thrown away (code: label propagation reads the maps before it)."""
        return self.backbone

    @torch.no_grad()
    def reconstruct(self, batch: Batch, t: Progress) -> dict[str, Tensor]:
        """Return the first frame, the last one, and the first put together of the patches of the last to which the
        walk leads.
        """
        frames_BTCHW = batch.clips["walk"][0]
        boxes = self._boxes(frames_BTCHW, batch.index_B, t)
        nodes_BTND = self.walkable(frames_BTCHW, boxes)
        there, _ = walks(*transitions(nodes_BTND, self.cfg.temperature))
        first, last = frames_BTCHW[:, 0], frames_BTCHW[:, -1]
        side, stride, height = self.cfg.patch, self.cfg.patch_stride, first.shape[-1]
        if boxes is None:  # places of a square map: squares beside each other
            rows = math.isqrt(nodes_BTND.shape[2])
            side = stride = first.shape[-1] // rows
            height = rows * side
            boxes = grid_boxes(height, height, side, stride, first.device)
        patches_BNCPP = cut_boxes(last, boxes, side)
        rows_B1 = torch.arange(len(last), device=last.device)[:, None]
        found_BNCPP = patches_BNCPP[rows_B1, there[-1].argmax(-1)]
        walked = torch.zeros_like(first)
        walked[..., :height, :height] = laid_out(found_BNCPP, height, height, stride)
        return {"first frame": first, "last frame": last, "first from patches of the last": walked}
