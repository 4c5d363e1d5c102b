"""Training of segmentation heads: on kept maps with several learning rates at once, or through the encoder on crops.

Shapes: B tiles, G heads, K classes, H x W pixels of a tile, s the side of the cells of the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imprint.backbones.encoder import Encoder
from imprint.backbones.layer_decay import layer_scales, parameter_groups
from imprint.core.progress import Epochs
from imprint.core.schedules import Schedule
from imprint.data.mask_folders import MaskedImages
from imprint.evals.segmentation_frames import (
    Tile,
    ahead,
    crop_key,
    random_crop,
    shuffled,
    tile_image,
    tile_labels,
)
from imprint.evals.segmentation_labels import Labels, LabelTable
from imprint.evals.segmentation_maps import MapTable, Sight, encode_maps
from imprint.evals.training import Plan, fit
from imprint.evals.workspace import Workspace
from imprint.nn.map_heads import LinearMapHeads
from imprint.nn.upernet import UPerNet
from imprint.ops.confusion import IGNORED

if TYPE_CHECKING:
    from imprint.evals.segmentation import SegmentationConfig

FLOATS_AT_ONCE = 1 << 26
"""Logits of linear heads in memory at a time; heads beyond it take turns."""

Batches = Callable[[int, int], Iterator[Any]]


def pixel_loss(logits_BKhw: Tensor, labels_BHW: Tensor, stride: int = 1) -> Tensor:
    """Return the mean cross-entropy of the pixels that count, of logits upsampled bilinearly.

    With a stride s the logits are upsampled to cells of s x s pixels only, and each cell counts with the labels of its
    pixels: -sum_c n_c log p_c / sum n. That equals the loss of every pixel when all pixels of a cell share its logits.
    """
    height, width = labels_BHW.shape[1:]
    if stride == 1:
        full = F.interpolate(logits_BKhw.float(), (height, width), mode="bilinear", align_corners=False)
        total = F.cross_entropy(full, labels_BHW.long(), ignore_index=IGNORED, reduction="sum")
        return total / (labels_BHW != IGNORED).sum().clamp(min=1)
    counts = cell_counts(labels_BHW, logits_BKhw.shape[1], stride)
    coarse = F.interpolate(logits_BKhw.float(), counts.shape[2:], mode="bilinear", align_corners=False)
    return -(counts * coarse.log_softmax(1)).sum() / counts.sum().clamp(min=1)


def cell_counts(labels_BHW: Tensor, classes: int, stride: int) -> Tensor:
    """Return how many pixels of each class every cell of s x s pixels has, float32 (B, K, ceil(H/s), ceil(W/s))."""
    batch, height, width = labels_BHW.shape
    rows, columns = -(-height // stride), -(-width // stride)
    place = labels_BHW.device
    y = torch.arange(height, device=place).div(stride, rounding_mode="floor")
    x = torch.arange(width, device=place).div(stride, rounding_mode="floor")
    image = torch.arange(batch, device=place)[:, None, None]
    cell = (image * rows + y[:, None]) * columns + x
    index = cell * classes + labels_BHW
    counts = torch.bincount(index[labels_BHW != IGNORED], minlength=batch * rows * columns * classes)
    return counts.view(batch, rows, columns, classes).permute(0, 3, 1, 2).float()


class Segmenter(nn.Module):
    """A head on an encoder: normalised images (B, C, H, W) -> what the head says. A frozen encoder is no part of it."""

    def __init__(self, encoder: Encoder, head: nn.Module, layers: Sequence[int], tuned: bool) -> None:
        super().__init__()
        self.head, self.layers = head, tuple(layers)
        self.tuned: Encoder | None = encoder if tuned else None
        self._frozen = (encoder,)  # in a tuple, so that its weights are not the model's

    def forward(self, images_BCHW: Tensor) -> Any:
        """Return the head's output."""
        if self.tuned is not None:
            return self.head(encode_maps(self.tuned, images_BCHW, self.layers))
        with torch.no_grad():
            maps = encode_maps(self._frozen[0], images_BCHW, self.layers)
        return self.head(maps)


def losses(head: nn.Module, out: Any, labels_BHW: Tensor, config: SegmentationConfig) -> Tensor:
    """Return the loss of a head's output: of every linear head, or of UPerNet with its auxiliary head."""
    if isinstance(head, UPerNet):
        return pixel_loss(out[0], labels_BHW) + config.auxiliary * pixel_loss(out[1], labels_BHW)
    heads = len(out)
    return heads * pixel_loss(out.flatten(0, 1), labels_BHW.repeat(heads, 1, 1), config.loss_stride)


@dataclass(frozen=True)
class Lesson:
    """What is trained on.

    Attributes:
        source: images and masks.
        table: their classes.
        sight: the encoder.
        device: where.
    """

    source: MaskedImages
    table: LabelTable
    sight: Sight

    def labels(self, arrays: Sequence[Labels]) -> Tensor:
        """Return int64 labels (B, H, W) on the device."""
        return torch.from_numpy(np.stack(arrays)).to(self.sight.device).long()


def batches_of_tiles(
    tiles: Sequence[Tile], size: int, seed: int, load: Callable[[list[int]], Any]
) -> tuple[Batches, int]:
    """Return `batches(first, last)` of tiles of one size each, and the steps of an epoch."""

    def order(epoch: int) -> list[list[int]]:
        opened: dict[tuple[int, int], list[int]] = {}
        done: list[list[int]] = []
        for row in shuffled(len(tiles), seed, epoch).tolist():
            group = opened.setdefault(tiles[row].shape, [])
            group.append(row)
            if len(group) == size:
                done.append(opened.pop(tiles[row].shape))
        return done + list(opened.values())

    per_epoch = len(order(0))

    def batches(first: int, last: int) -> Iterator[Any]:
        kept: tuple[int, list[list[int]]] = (-1, [])
        for step in range(first, last):
            epoch = step // per_epoch
            if kept[0] != epoch:
                kept = epoch, order(epoch)
            yield load(kept[1][step % per_epoch])

    return batches, per_epoch


def batches_of_crops(lesson: Lesson, rows: Sequence[int], config: SegmentationConfig, crop: int) -> tuple[Batches, int]:
    """Return `batches(first, last)` of random crops, and the steps of an epoch; a short last batch is left out."""
    size = min(config.minibatch, len(rows))
    per_epoch = len(rows) // size
    mean, _ = lesson.sight.normalise.per_channel(3)
    fill = [round(255 * value) for value in mean]

    def one(place: tuple[int, int]) -> tuple[npt.NDArray[np.uint8], Labels]:
        epoch, i = place
        image, labels = lesson.source.image(i), lesson.table.labels(lesson.source.mask(i))
        draw = crop_key(config.seed, epoch, i)
        return random_crop(image, labels, lesson.sight.frames, crop, config.scale, fill, draw)

    def batches(first: int, last: int) -> Iterator[Any]:
        def places() -> Iterator[tuple[int, int]]:
            order, at = shuffled(len(rows), config.seed, -1), -1
            for step in range(first, last):
                epoch, within = divmod(step, per_epoch)
                if at != epoch:
                    order, at = shuffled(len(rows), config.seed, epoch), epoch
                for r in order[within * size : (within + 1) * size].tolist():
                    yield epoch, rows[r]

        made: list[Any] = []
        for pair in ahead(one, places(), config.workers):
            made.append(pair)
            if len(made) == size:
                images, labels = zip(*made, strict=True)
                made = []
                yield lesson.sight.tensor(images), lesson.labels(labels)

    return batches, per_epoch


def train_on_maps(
    heads: LinearMapHeads,
    lesson: Lesson,
    tiles: Sequence[Tile],
    kept: MapTable | None,
    rows: Sequence[int],
    config: SegmentationConfig,
    workspace: Workspace,
) -> list[float]:
    """Train every head on the tiles in `rows` without augmentation; return the loss of each epoch (sum over heads)."""
    chosen = [tiles[r] for r in rows]
    labels = list(ahead(lambda tile: tile_labels(lesson.source, lesson.table, tile), chosen, config.workers))

    def load(picked: list[int]) -> tuple[list[Tensor], Tensor]:
        if kept is not None:
            maps = kept.maps([rows[p] for p in picked], lesson.sight.device)
        else:
            maps = lesson.sight.maps([tile_image(lesson.source, chosen[p]) for p in picked])
        return maps, lesson.labels([labels[p] for p in picked])

    def loss_of(batch: tuple[list[Tensor], Tensor], step: int) -> Iterator[Tensor]:
        maps, truth = batch
        floats = heads.classes * maps[0].shape[0] * maps[0].shape[2] * maps[0].shape[3]
        for logits in heads.each(maps, max(1, FLOATS_AT_ONCE // floats)):
            # Several heads are one batch of classifications of the same pixels: the sum of their means.
            yield len(logits) * pixel_loss(logits.flatten(0, 1), truth.repeat(len(logits), 1, 1), config.loss_stride)

    batches, per_epoch = batches_of_tiles(chosen, config.minibatch, config.seed, load)
    _, curve = fit(
        heads.train(), optimizer_of(heads, config), batches, loss_of, plan_of(config, per_epoch),
        device=lesson.sight.device, workspace=workspace,
    )  # fmt: skip
    return [round(value / len(heads.weights), 5) for value in curve]


def train_on_crops(
    model: Segmenter,
    lesson: Lesson,
    rows: Sequence[int],
    crop: int,
    config: SegmentationConfig,
    workspace: Workspace,
) -> list[float]:
    """Train a head, and the encoder if it is the model's, on random crops; return the loss of each epoch."""

    def loss_of(batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        return losses(model.head, model(batch[0]), batch[1], config)

    batches, per_epoch = batches_of_crops(lesson, rows, config, crop)
    model.train()
    _, curve = fit(
        model, optimizer_of(model, config), batches, loss_of, plan_of(config, per_epoch), device=lesson.sight.device,
        dtype=lesson.sight.dtype, workspace=workspace,
    )  # fmt: skip
    return curve


def plan_of(config: SegmentationConfig, per_epoch: int) -> Plan:
    """Return the schedule: a linear warm-up, then a straight line to 0 (mmsegmentation's `poly` of power 1)."""
    warmup = Epochs(min(config.warmup, config.epochs / 2))
    rate = Schedule(start=1.0, end=0.0, shape="linear", warmup=warmup)
    return Plan(name="segmentation", steps=per_epoch * config.epochs, per_epoch=per_epoch, lr=rate, seed=config.seed)


def optimizer_of(model: nn.Module, config: SegmentationConfig) -> torch.optim.Optimizer:
    """Return AdamW; `lr_scale` is the rate itself, since the plan's schedule runs from 1 to 0.

    Each linear head has its own rate; the rates of a tuned encoder fall from block to block.
    """
    rates = config.rates
    scales = layer_scales(model, config.layer_decay)
    head = model.head if isinstance(model, Segmenter) else model
    own: dict[int, float] = {}
    if isinstance(head, LinearMapHeads):
        for weight, bias, rate in zip(head.weights, head.biases, rates, strict=True):
            own |= {id(weight): rate, id(bias): rate}

    def rate_of(parameter: nn.Parameter) -> float:
        return own.get(id(parameter), rates[0] * scales.get(id(parameter), 1.0))

    return torch.optim.AdamW(parameter_groups(model, config.decay, rate_of), lr=0.0)
