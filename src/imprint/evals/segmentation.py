"""Semantic segmentation: a linear head or UPerNet on the encoder's maps, scored by mIoU on images with masks.

Shapes: N images, K classes, G heads of one learning rate each.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError, DataError, unknown
from imprint.core.rng import key, seed_of, uniforms
from imprint.data.mask_folders import MaskedImages, open_masks
from imprint.data.sources import spread
from imprint.evals.finetune import trainable_copy
from imprint.evals.protocol import EvalData, Protocol, ProtocolConfig, timed
from imprint.evals.report import Figure, Report
from imprint.evals.represent import pick_device, pick_precision, resting
from imprint.evals.segmentation_frames import Frames, tile_image, tiles_of
from imprint.evals.segmentation_labels import LabelTable, Scan, check, label_table, scan
from imprint.evals.segmentation_maps import MapTable, Sight, map_table
from imprint.evals.segmentation_score import Logits, metrics_of, predicted, predictions, score, truth
from imprint.evals.segmentation_train import Lesson, Segmenter, train_on_crops, train_on_maps
from imprint.evals.workspace import Workspace
from imprint.nn.map_heads import LinearMapHeads
from imprint.nn.upernet import UPerNet
from imprint.ops.confusion import confusion, mean_iou, totals
from imprint.viz.segments import segment_sheet

LINEAR_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)
UPERNET_RATE = 1e-4


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(ProtocolConfig):
    """Settings; the linear head is DINOv2's (arXiv 2304.07193, Sec. 7.4), UPerNet as MAE trains it (2111.06377, A.4).

    Attributes:
        head: linear (BatchNorm and a 1x1 convolution) or upernet (arXiv 1807.10221).
        tune: train the encoder too, on random crops; otherwise it is frozen.
        lrs: learning rates of AdamW; those of frozen linear heads are trained together and picked on held-out images.
            Empty takes 3e-4 to 0.1 for them (DINOv2's public code: 1e-3) and 1e-4 else (mmsegmentation's MAE).
        epochs: passes over the training images (MAE: 100).
        minibatch: images or crops per step.
        weight_decay: None takes 1e-4 for a frozen encoder (DINOv2's public code), 0.05 for a tuned one (the same).
        warmup: epochs of linear warm-up, then a straight line to 0.
        layer_decay: of a tuned ViT: factor on the rate from each block to the one below.
        drop_path: of a tuned encoder: stochastic depth rate at the last block.
        width: channels of UPerNet.
        auxiliary: weight of UPerNet's auxiliary loss (0.4 in mmsegmentation).
        augment: linear head: random scale, crop and flip, without kept features; UPerNet and tuned encoders always.
        crop: side of random crops; 0 takes the window, else the shorter side of the smallest image up to 512.
        scale: smallest and largest factor of the random scale (mmsegmentation: 0.5 to 2).
        window: side of windows that slide over an image; 0 encodes images whole, at any ratio of sides.
        stride: distance of windows; 0 takes two thirds of the side (mmsegmentation: 341 of 512).
        loss_stride: linear head: side of the cells of pixels on which the loss is computed; 1 is every pixel.
        held_out: share of the training images on which a learning rate is picked.
        ignore_label: label values (positions in the palette) that never count; -1 alone ignores nothing.
        classes: text file with the class names, line n for label n, or lines of number and name.
        palette: text file with the colours of colour masks, one class a line: R G B name, or #rrggbb name.
        pictures: test images shown in the report.
    """

    head: Literal["linear", "upernet"] = "linear"
    tune: bool = False
    lrs: tuple[float, ...] = ()
    epochs: int = 100
    minibatch: int = 16
    weight_decay: float | None = None
    warmup: float = 1.0
    layer_decay: float = 0.65
    drop_path: float = 0.1
    width: int = 512
    auxiliary: float = 0.4
    augment: bool = False
    crop: int = 0
    scale: tuple[float, float] = (0.5, 2.0)
    window: int = 0
    stride: int = 0
    loss_stride: int = 4
    held_out: float = 0.1
    ignore_label: tuple[int, ...] = (255,)
    classes: str = ""
    palette: str = ""
    pictures: int = 6

    def __post_init__(self) -> None:
        """Check what no single type can say."""
        super().__post_init__()
        if self.head not in ("linear", "upernet"):
            raise unknown("head", self.head, ("linear", "upernet"))
        if self.lrs and min(self.lrs) <= 0:
            raise ConfigError("learning rates must be positive.")
        if len(self.lrs) > 1 and (self.tune or self.head != "linear"):
            raise ConfigError("only linear heads on a frozen encoder are trained together; give one --lrs.")
        if self.epochs < 1 or self.minibatch < 1 or self.width < 1 or self.loss_stride < 1:
            raise ConfigError("epochs, minibatch, width and loss_stride must be at least 1.")
        if min(self.crop, self.window, self.stride, self.pictures, self.warmup, self.auxiliary, self.decay) < 0:
            raise ConfigError("crop, window, stride, pictures, warmup, auxiliary and weight_decay must be 0 or more.")
        if not 0 < self.held_out < 1 or not 0 < self.layer_decay <= 1 or not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError("held_out lies in (0, 1), layer_decay in (0, 1], and scale is two ascending factors.")
        if self.stride > self.window:
            raise ConfigError(f"windows of side {self.window} at a distance of {self.stride} leave gaps.")
        if self.head == "upernet" and self.minibatch < 2:
            raise ConfigError("UPerNet's BatchNorm over pooled maps needs a --minibatch of at least 2.")
        if self.tokens != "pooled":
            raise ConfigError("segmentation reads the patches; --tokens does not apply.")

    @property
    def rates(self) -> tuple[float, ...]:
        """Learning rates, G of them."""
        grid = self.head == "linear" and not self.tune
        return self.lrs or (LINEAR_RATES if grid else (UPERNET_RATE,))

    @property
    def decay(self) -> float:
        """Weight decay."""
        return (0.05 if self.tune else 1e-4) if self.weight_decay is None else self.weight_decay

    @property
    def crops(self) -> bool:
        """Whether training sees random crops."""
        return self.augment or self.tune or self.head == "upernet"


class Segmentation(Protocol):
    """Train a head (and the encoder with `tune`) on `train`, score it on `test` once, at the size of the masks."""

    name: ClassVar[str] = "segmentation"
    Config: ClassVar[type[ProtocolConfig]] = SegmentationConfig

    @classmethod
    def open(cls, spec: Any, config: SegmentationConfig) -> MaskedImages:
        """Return images with masks; the class and palette files are part of their fingerprint."""
        words = []
        for path in (config.classes, config.palette):
            try:
                words.append(Path(path).expanduser().read_text(encoding="utf-8") if path else "")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"'{path}' cannot be read as text: {error}.") from error
        return open_masks(spec, "\0".join(words))

    def run(self, encoder: Encoder, data: EvalData, config: SegmentationConfig | None = None) -> Report:
        """Return mIoU (main), pixel accuracy and mean class accuracy, per-class IoU in `details`, and pictures.

        Raises:
            DataError: for masks that do not fit their images, unknown labels, and test classes without training.
            ConfigError: for an encoder that gives no maps, or sizes that it refuses.
            HealthError: when the loss stops being finite.
        """
        config = config or SegmentationConfig()
        train, test = _sources(data)
        cost: dict[str, float] = {}
        with timed(cost, "scan_s"):
            seen, unseen = scan(train, config.workers), scan(test, config.workers)
            table = label_table(train, seen, palette=config.palette, classes=config.classes, ignore=config.ignore_label)
            check(test, unseen, table, "test", seen)
        if encoder.channels not in (1, 3):
            raise ConfigError(f"'{encoder.name}' takes {encoder.channels} channels; masked images are RGB or grey.")
        device = pick_device(config.device, encoder)
        workspace = Workspace.open(self.name, encoder, data, config)
        torch.manual_seed(seed_of(config.seed, "segmentation"))
        trained = trainable_copy(encoder, config.drop_path) if config.tune else encoder
        sight = sight_of(trained, config, data, device)
        with resting(trained, device):
            lesson = Lesson(train, table, sight)
            head = build_head(sight, train, seen, len(table), config).to(device)
            with timed(cost, "train_s"):
                logits_of, details = teach(head, lesson, seen, config, workspace)
            with timed(cost, "test_s"):
                trained.eval()
                matrix, images = score(sight, test, unseen, table, logits_of, workspace)
                metrics, per_class = metrics_of(matrix, images, table, config.seed)
                figures = pictures_of(sight, test, unseen, table, logits_of, config.pictures)
        workspace.clear()
        cost["images"] = float(len(train) * (config.epochs if config.crops else 1) + len(test))
        return Report(
            protocol=self.name,
            encoder=encoder.name,
            data={"train": _describe(train, table), "test": _describe(test, table)},
            metrics=metrics,
            main="miou",
            details={**per_class, **details, "settings": dataclasses.asdict(config)},
            cost=cost,
            figures=figures,
        )


def _sources(data: EvalData) -> tuple[MaskedImages, MaskedImages]:
    for role, source in (("train", data.train), ("test", data.test)):
        if not isinstance(source, MaskedImages):
            raise DataError(f"'segmentation' needs a {role} source of images with masks, got {type(source).__name__}.")
        if len(source) == 0:
            raise DataError(f"the {role} source '{source.spec}' is empty.")
    return data.train, data.test


def _describe(source: MaskedImages, table: LabelTable) -> dict[str, Any]:
    return {"spec": source.spec, "count": len(source), "classes": len(table), "fingerprint": source.fingerprint}


def sight_of(encoder: Encoder, config: SegmentationConfig, data: EvalData, device: torch.device) -> Sight:
    """Return how the encoder sees under a configuration; UPerNet on a ViT reads four blocks (BEiT: 3, 5, 7, 11 of 12).

    Raises:
        ConfigError: for windows that the patch does not divide.
    """
    patch = encoder.patch_size if encoder.embed_dim and encoder.depth else 1
    if encoder.has_tokens and (config.window % patch or config.crop % patch):
        raise ConfigError(f"--window and --crop must be multiples of the patch, which is {patch} for '{encoder.name}'.")
    layers = config.layers
    if config.head == "upernet" and encoder.has_tokens and not layers:
        quarters = (encoder.depth // 3 - 1, encoder.depth // 2 - 1, 2 * encoder.depth // 3 - 1, encoder.depth - 1)
        layers = tuple(max(0, layer) for layer in quarters)
    stride = config.stride or max(1, 2 * config.window // 3)
    frames = Frames(patch, config.image_size or 0, config.window, stride)
    budget = max(1, config.batch_size * encoder.image_size**2)
    dtype = pick_precision(config.precision, device)
    return Sight(encoder, frames, layers, data.normalise, device, dtype, config.workers, budget)


def build_head(sight: Sight, train: MaskedImages, seen: Scan, classes: int, config: SegmentationConfig) -> nn.Module:
    """Return the head for the maps that the encoder gives of the first training image."""
    first = tiles_of(sight.frames, seen.sizes, [0])[0]
    maps = sight.maps([tile_image(train, first)])
    widths = [int(x.shape[1]) for x in maps]
    if config.head == "linear":
        return LinearMapHeads(widths, classes, len(config.rates))
    patch = sight.encoder.patch_size if sight.encoder.has_tokens else 0
    return UPerNet(widths, classes, config.width, patch)


def teach(
    head: nn.Module, lesson: Lesson, seen: Scan, config: SegmentationConfig, workspace: Workspace
) -> tuple[Logits, dict[str, Any]]:
    """Train, pick a learning rate on held-out images when there are several, and return what gives logits."""
    train, sight = lesson.source, lesson.sight
    fit_rows, held = split_images(len(train), config) if len(config.rates) > 1 else (list(range(len(train))), [])
    tiles = tiles_of(sight.frames, seen.sizes, range(len(train)))
    kept: MapTable | None = None
    if config.crops:
        side = crop_side(config, sight, seen)
        model = Segmenter(sight.encoder, head, sight.layers, config.tune).to(sight.device)
        curve = train_on_crops(model, lesson, fit_rows, side, config, workspace)
        sight.encoder.eval()
    else:
        kept = map_table(sight, train, tiles, config.cache)
        chosen = [r for r, tile in enumerate(tiles) if tile.image in set(fit_rows)]
        assert isinstance(head, LinearMapHeads)
        curve = train_on_maps(head, lesson, tiles, kept, chosen, config, workspace)
    head.eval()
    details: dict[str, Any] = {"train_loss": curve, "fit_images": len(fit_rows), "held_out_images": len(held)}
    if not isinstance(head, LinearMapHeads):
        return lambda maps: head(maps)[0], details
    if len(config.rates) == 1:
        return lambda maps: head(maps)[0], details
    found = [float(m) for m in held_out_iou(head, lesson, seen, held)]
    best = max(range(len(found)), key=lambda g: found[g])
    grid = [{"lr": lr, "held_out_miou": round(100 * m, 3)} for lr, m in zip(config.rates, found, strict=True)]
    details |= {"chosen": grid[best], "grid": grid, "at_edge_of_grid": best in (0, len(found) - 1)}
    winner = head.only(best).eval()
    return lambda maps: winner(maps)[0], details


def split_images(count: int, config: SegmentationConfig) -> tuple[list[int], list[int]]:
    """Return (training images, held-out images), drawn by the seed; at least one of each.

    Raises:
        DataError: for a single image.
    """
    if count < 2:
        raise DataError("a learning rate is picked on held-out training images and there is one image; give one --lrs.")
    order = np.argsort(uniforms(key(config.seed, "segmentation-held-out", np.arange(count)), 1)[:, 0])
    size = min(count - 1, max(1, round(count * config.held_out)))
    return sorted(order[size:].tolist()), sorted(order[:size].tolist())


@torch.no_grad()
def held_out_iou(head: LinearMapHeads, lesson: Lesson, seen: Scan, held: Sequence[int]) -> Tensor:
    """Return the mIoU (G) of every head on held-out images; 0 for a head that says nothing finite."""
    classes = head.classes
    matrices = torch.zeros(len(head.weights), classes, classes, dtype=torch.int64)
    stream = lesson.sight.stream(lesson.source, tiles_of(lesson.sight.frames, seen.sizes, held))
    for i, group in itertools.groupby(stream, key=lambda pair: pair[0].image):
        tiles = [(tile, head([x[None] for x in maps])) for tile, maps in group]
        labels = truth(lesson.source, lesson.table, i)
        for g, matrix in enumerate(matrices):
            guess = predicted([(tile, logits[g]) for tile, logits in tiles], seen.sizes[i])
            matrix += confusion(labels, guess.cpu(), classes)
    sound = torch.stack([torch.isfinite(w).all() for w in head.weights]).cpu()
    return torch.where(sound, mean_iou(totals(matrices)), 0.0)


def crop_side(config: SegmentationConfig, sight: Sight, seen: Scan) -> int:
    """Return the side of the training crops, a multiple of the patch."""
    frames = sight.frames
    side = config.crop or frames.window or min(512, *(min(frames.size(*size)) for size in seen.sizes))
    return max(1, side // frames.multiple) * frames.multiple


def pictures_of(
    sight: Sight, test: MaskedImages, found: Scan, table: LabelTable, logits_of: Logits, count: int
) -> tuple[Figure, ...]:
    """Return the sheet of image, truth and prediction of test images spread over the source."""
    rows = spread(len(test), count).tolist()
    if not rows:
        return ()
    guesses = dict(predictions(sight, test, found.sizes, rows, logits_of))
    picture = segment_sheet(
        [test.image(i) for i in rows],
        [truth(test, table, i).numpy() for i in rows],
        [guesses[i].cpu().numpy() for i in rows],
        table.names,
    )
    caption = "Image, truth and prediction of test images; grey pixels of the truth do not count."
    return (Figure(name="segments", caption=caption, picture=picture),)
