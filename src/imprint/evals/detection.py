"""Detection and instance segmentation: Mask R-CNN on the encoder, judged by COCO's average precision.

Over the stages of a hierarchical encoder stands an FPN, over a plain ViT the simple pyramid of ViTDet; region
proposals, heads and losses are torchvision's. Without masks in the training file it is Faster R-CNN.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError, DataError
from imprint.core.rng import seed_of
from imprint.data.coco import CocoData
from imprint.data.sources import spread
from imprint.evals.detection_ap import average_precision, truth_of
from imprint.evals.detection_model import CELLS_PER_ANCHOR, PyramidBackbone, mask_rcnn
from imprint.evals.detection_pictures import figure
from imprint.evals.detection_training import detect, train_detector
from imprint.evals.detection_views import ViewPlan, coco_tools
from imprint.evals.finetune import trainable_copy
from imprint.evals.protocol import EvalData, Protocol, ProtocolConfig, timed
from imprint.evals.report import Metric, Report
from imprint.evals.represent import pick_device, pick_precision
from imprint.evals.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class DetectionConfig(ProtocolConfig):
    """Settings of detection.

    Defaults are Mask R-CNN with FPN, 12 epochs of 16 images, as self-supervised encoders are judged by it (MoCo, arXiv
    1911.05722, Sec. 4.2; Detectron2's 1x), and ViTDet's rates for encoders without batch norm (arXiv 2203.16527 and
    Detectron2's ViT-B: AdamW, 1e-4, layer decay 0.7, drop path 0.1; there 100 epochs of 64 images).

    Attributes:
        images: folder or zip of the images; None looks beside the annotation file.
        image_size: shorter side in pixels; None is 800.
        longest: longer side at most; None is 1333 for 800 and in proportion for others.
        scale_jitter: range of a factor on the size in training: 640 to 800 px. Above 1 a random window is cut
            (large-scale jitter, arXiv 2012.07177, is 0.1 2.0).
        flip: probability of a mirrored view in training.
        freeze: keep the encoder as it is and train pyramid and heads only.
        batch_statistics: the encoder's batch norms keep learning their statistics; else they stay as pretrained.
        epochs: passes over the training images that have objects.
        minibatch: images per step.
        batch_size: images per forward in testing; several are padded to one size, which changes the numbers a bit.
        optimizer: sgd (momentum 0.9) or adamw; auto is sgd for encoders with batch norm.
        lr: peak rate for 16 images per step, scaled linearly with minibatch; None is 0.02 for sgd, 1e-4 for adamw.
        layer_decay: factor on a ViT's rate from each block to the one below.
        weight_decay: of matrices; None is 1e-4 for sgd, 0.1 for adamw.
        drop_path: stochastic depth rate at the last block.
        warmup: epochs of linear warm-up (1000 of 90,000 steps).
        milestones: shares of the run after which the rate falls to a tenth; none for a constant rate.
        clip: largest norm of the gradient, 0 for any.
        width: of the pyramid and the convolutions of the heads.
        hidden: width of the box head's linear layers.
        heads: mlp (FPN), conv (ViTDet), or auto by the encoder.
        anchor_cells: side of an anchor in cells of its level; use 4 for images of about half the size.
        proposals: regions per image in training, half of it in testing.
        regions: sampled per image for the losses of the box head.
        detections: most per image.
        limit: use this many training images, spread over the file; 0 for all.
        resamplings: of test images for the 95 % interval of AP; 0 for none.
        pictures: test images shown in the figure.
        picture_score: detections below this score are not shown.
    """

    images: Path | None = None
    longest: int | None = None
    scale_jitter: tuple[float, float] = (0.8, 1.0)
    flip: float = 0.5
    freeze: bool = False
    batch_statistics: bool = False
    epochs: int = 12
    minibatch: int = 16
    batch_size: int = 1
    optimizer: Literal["auto", "sgd", "adamw"] = "auto"
    lr: float | None = None
    layer_decay: float = 0.7
    weight_decay: float | None = None
    drop_path: float = 0.1
    warmup: float = 0.14
    milestones: tuple[float, ...] = (8 / 12, 11 / 12)
    clip: float = 0.0
    width: int = 256
    hidden: int = 1024
    heads: Literal["auto", "mlp", "conv"] = "auto"
    anchor_cells: float = CELLS_PER_ANCHOR
    proposals: int = 2000
    regions: int = 512
    detections: int = 100
    limit: int = 0
    resamplings: int = 200
    pictures: int = 6
    picture_score: float = 0.5

    def __post_init__(self) -> None:
        """Check what no single type can say."""
        super().__post_init__()
        for name in ("epochs", "minibatch", "width", "hidden", "proposals", "regions", "detections"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if min(self.limit, self.resamplings, self.pictures, self.warmup, self.clip, self.drop_path) < 0:
            raise ConfigError("limit, resamplings, pictures, warmup, clip and drop_path must be 0 or more.")
        if self.image_size is not None and self.image_size < 16:
            raise ConfigError(f"image_size is the shorter side in pixels, at least 16; got {self.image_size}.")
        low, high = self.scale_jitter
        if not 0 < low <= high:
            raise ConfigError(f"scale_jitter is a range of positive factors, got {low} {high}.")
        if self.lr is not None and self.lr <= 0:
            raise ConfigError(f"--lr must be positive, got {self.lr}.")
        if not (0 < self.layer_decay <= 1 and self.anchor_cells > 0):
            raise ConfigError("layer_decay lies in (0, 1], anchor_cells is positive.")

    @property
    def side(self) -> int:
        """Shorter side in pixels."""
        return self.image_size or 800

    @property
    def longest_side(self) -> int:
        """Longer side at most."""
        return self.longest or round(self.side * 1333 / 800)


class Detection(Protocol):
    """Train Mask R-CNN on `train`, find the objects of `test` once, at the end."""

    name: ClassVar[str] = "detection"
    Config: ClassVar[type[ProtocolConfig]] = DetectionConfig

    @classmethod
    def open(cls, spec: Any, config: Any) -> CocoData:
        """Return the data set of a COCO annotation json; a CocoData passes through.

        Raises:
            DataError: for what is no such file, is inconsistent, or lacks images.
        """
        if isinstance(spec, CocoData):
            return spec
        if isinstance(spec, (list, tuple)):
            if len(spec) != 1:
                raise DataError("detection takes one annotation file per source; join several into one json.")
            spec = spec[0]
        return CocoData(spec, config.images)

    def run(self, encoder: Encoder, data: EvalData, config: DetectionConfig | None = None) -> Report:
        """Return box and mask AP (`box_ap` is the main one) on the test file; the given encoder stays as it is.

        Raises:
            DataError: for files without objects, unlike categories, images that cannot be read.
            ConfigError: for an encoder without usable maps, or without pycocotools.
            HealthError: when the loss stops being finite.
        """
        config = config or DetectionConfig()
        coco_tools()
        train, test, empty = _checked(data, config)
        if encoder.channels not in (1, 3):
            raise ConfigError(
                f"detection reads colour or grey images; '{encoder.name}' takes {encoder.channels} channels."
            )
        # Images that are tested together are padded to one size, so here a batch size is part of what is asked.
        asked = f"{self.name} {config.batch_size}"
        workspace = Workspace.open(asked, encoder, EvalData(train=train, test=test, normalise=data.normalise), config)
        cost: dict[str, float] = {"images": float(len(train) * config.epochs + len(test))}
        device, masks = pick_device(config.device, encoder), train.has_masks
        torch.manual_seed(seed_of(config.seed, "detection"))
        model = build(encoder, len(train.classes), config, masks).to(device)
        views = ViewPlan(
            side=config.side, longest=config.longest_side, jitter=config.scale_jitter, flip=config.flip,
            channels=encoder.channels, masks=masks, seed=config.seed,
        )  # fmt: skip
        dtype = pick_precision(config.precision, device)
        with timed(cost, "train_s"):
            curve = train_detector(model, train, data.normalise, config, views, device, dtype, workspace)
        with timed(cost, "test_s"):
            results = detect(model, test, data.normalise, config, views, device, dtype, workspace)
        with timed(cost, "ap_s"):
            metrics, per_class = measured(test, results, masks and test.has_masks, config)
        shown = figure(test, results, config.pictures, config.picture_score)
        workspace.clear()
        backbone: Any = model.backbone
        return Report(
            protocol=self.name,
            encoder=encoder.name,
            data={"train": _described(train), "test": _described(test)},
            metrics=metrics,
            main="box_ap",
            details={
                "train_loss": curve,
                "per_class": per_class,
                "detections": len(results),
                "train_images_without_objects": empty,
                "pyramid": "fpn" if backbone.hierarchical else "simple",
                "strides": list(backbone.strides),
                "settings": {k: _plain(v) for k, v in dataclasses.asdict(config).items()},
            },
            cost=cost,
            figures=shown,
        )


def build(encoder: Encoder, classes: int, config: DetectionConfig, masks: bool) -> Any:
    """Return an untrained detector on a copy of the encoder."""
    twin = trainable_copy(encoder, 0.0 if config.freeze else config.drop_path)
    backbone = PyramidBackbone(twin, config.width, config.freeze, config.batch_statistics)
    return mask_rcnn(
        backbone, classes, heads=config.heads, hidden=config.hidden, anchor_cells=config.anchor_cells, masks=masks,
        proposals=config.proposals, regions=config.regions, detections=config.detections,
    )  # fmt: skip


def measured(
    test: CocoData, results: list[dict[str, Any]], masks: bool, config: DetectionConfig
) -> tuple[dict[str, Metric], dict[str, dict[str, float]]]:
    """Return box and mask metrics, and AP by category of both."""
    truth = truth_of(test, masks)
    metrics: dict[str, Metric] = {}
    per_class: dict[str, dict[str, float]] = {}
    for prefix, kind in (("box", "bbox"), ("mask", "segm"))[: 1 + masks]:
        plain = [{k: v for k, v in r.items() if k != "segmentation"} for r in results] if kind == "bbox" else results
        values, per_class[prefix] = average_precision(
            truth, plain, kind, resamplings=config.resamplings, seed=config.seed
        )
        metrics |= {f"{prefix}_{name}": metric for name, metric in values.items()}
    return metrics, per_class


def _checked(data: EvalData, config: DetectionConfig) -> tuple[CocoData, CocoData, int]:
    """Return training images with objects, test images with the same labels, and how many had no objects."""
    train: CocoData = data.train
    if data.test is None:
        raise DataError("'detection' scores a test source and none was given; add --test FILE.json.")
    test: CocoData = data.test.aligned(train)
    with_objects = [i for i, objects in enumerate(train.objects) if (~objects.crowd_N).any()]
    if not with_objects:
        raise DataError(f"{train.path}: none of its {len(train)} images has an object to learn from.")
    if not any((~objects.crowd_N).any() for objects in test.objects):
        raise DataError(f"{test.path}: none of its {len(test)} images has an object, so there is no precision.")
    empty = len(train) - len(with_objects)
    if config.limit and config.limit < len(with_objects):
        with_objects = [with_objects[i] for i in spread(len(with_objects), config.limit)]
    return train.subset(with_objects), test, empty


def _described(data: CocoData) -> dict[str, Any]:
    return {
        "spec": data.spec,
        "count": len(data),
        "classes": len(data.classes),
        "objects": sum(len(objects) for objects in data.objects),
        "dropped": data.dropped,
        "masks": data.has_masks,
        "fingerprint": data.fingerprint,
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
