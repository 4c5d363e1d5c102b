"""The training of a detector, and its detections as pycocotools reads them.

Shapes: B images, N detections, C channels, H x W pixels, M side of a predicted mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from imprint.backbones.layer_decay import layer_scales, parameter_groups
from imprint.core.errors import HealthError
from imprint.core.progress import Epochs
from imprint.core.schedules import Schedule
from imprint.data.batch import Normalise
from imprint.data.coco import CocoData
from imprint.evals.detection_views import Batches, Sample, ViewPlan, coco_tools, test_sample
from imprint.evals.training import Plan, fit
from imprint.evals.workspace import Workspace

if TYPE_CHECKING:
    from imprint.evals.detection import DetectionConfig

PASTED = 16
"""Masks drawn at the image's size at once."""

REMEMBERED = 256
"""Test images after which what was found is kept."""


def train_detector(
    model: Any,
    train: CocoData,
    normalise: Normalise,
    config: DetectionConfig,
    views: ViewPlan,
    device: torch.device,
    dtype: torch.dtype,
    workspace: Workspace,
) -> list[float]:
    """Train in place and return the mean loss of every epoch."""
    batches = Batches(train, views, config.minibatch, config.workers or 4)

    def loss_of(samples: list[Sample], step: int) -> Tensor:
        images = [normalise(sample.image_CHW.to(device)) for sample in samples]
        losses: dict[str, Tensor] = model(images, [_target(sample, device) for sample in samples])
        return torch.stack(list(losses.values())).sum()

    optimizer, rate = optimizer_for(model, config)
    plan = Plan(
        name="detector",
        steps=batches.per_epoch * config.epochs,
        per_epoch=batches.per_epoch,
        lr=Schedule(
            start=rate * batches.minibatch / 16,
            shape="milestones",
            warmup=Epochs(min(config.warmup, config.epochs / 2)),
            warmup_from=rate * batches.minibatch / 16 / 1000,
            milestones=tuple(Epochs(share * config.epochs) for share in config.milestones),
        ),
        clip=config.clip,
        seed=config.seed,
    )
    model.train()
    try:
        return fit(model, optimizer, batches, loss_of, plan, device=device, dtype=dtype, workspace=workspace)[1]
    except (IndexError, AssertionError, ValueError) as error:
        if all(torch.isfinite(p).all() for p in model.parameters()):
            raise
        raise HealthError("the detector's training diverged; use a lower --lr or --clip 1.") from error


def optimizer_for(model: Any, config: DetectionConfig) -> tuple[torch.optim.Optimizer, float]:
    """Return the optimizer and the peak rate for 16 images: groups by layer's rate, vectors and tokens do not decay."""
    encoder: nn.Module = model.backbone.encoder
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in encoder.modules())
    kind = config.optimizer if config.optimizer != "auto" else "sgd" if normed else "adamw"
    decay = config.weight_decay if config.weight_decay is not None else 1e-4 if kind == "sgd" else 0.1
    scales = layer_scales(model, config.layer_decay) if config.layer_decay < 1 else {}
    groups = parameter_groups(model, decay, lambda parameter: scales.get(id(parameter), 1.0))
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9), config.lr or 0.02
    return torch.optim.AdamW(groups, lr=0.0), config.lr or 1e-4


def _target(sample: Sample, device: torch.device) -> dict[str, Tensor]:
    target = {"boxes": sample.boxes_N4.to(device), "labels": sample.labels_N.to(device)}
    if sample.masks_NHW is not None:
        target["masks"] = sample.masks_NHW.to(device)
    return target


@torch.no_grad()
def detect(
    model: Any,
    test: CocoData,
    normalise: Normalise,
    config: DetectionConfig,
    views: ViewPlan,
    device: torch.device,
    dtype: torch.dtype,
    workspace: Workspace,
) -> list[dict[str, Any]]:
    """Return the detections of all images in pycocotools' form; images and categories by position."""
    model.eval()
    results: list[dict[str, Any]] = []
    for first in range(0, len(test), REMEMBERED):
        part = workspace.recall(f"found-{first}")
        if part is None:
            part = []
            last = min(first + REMEMBERED, len(test))
            for start in range(first, last, config.batch_size):
                samples = [test_sample(test, i, views) for i in range(start, min(start + config.batch_size, last))]
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    found = model([normalise(sample.image_CHW.to(device)) for sample in samples])
                for sample, one in zip(samples, found, strict=True):
                    part += _results(sample, one, test.records[sample.row][2:])
            workspace.remember(f"found-{first}", part)
        results += part
    return results


def _results(sample: Sample, found: dict[str, Tensor], size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return the detections of an image at its own size (height, width)."""
    height, width = sample.image_CHW.shape[1:]
    scale_4 = torch.tensor([size[1] / width, size[0] / height] * 2)
    boxes_N4 = found["boxes"].float().cpu() * scale_4
    encoded = _encoded(found["masks"].float().cpu(), boxes_N4, size) if "masks" in found else None
    corners = boxes_N4.tolist()
    labels, scores = found["labels"].tolist(), found["scores"].tolist()
    results = []
    for n, (x1, y1, x2, y2) in enumerate(corners):
        result: dict[str, Any] = {
            "image_id": sample.row,
            "category_id": labels[n] - 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": scores[n],
        }
        if encoded is not None:
            result["segmentation"] = encoded[n]
        results.append(result)
    return results


def _encoded(masks_N1MM: Tensor, boxes_N4: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return run-length encodings of masks laid over their boxes and cut at a probability of 0.5."""
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    tools = coco_tools()[0]
    encoded: list[dict[str, Any]] = []
    for masks, boxes in zip(masks_N1MM.split(PASTED), boxes_N4.split(PASTED), strict=True):
        if not len(masks):
            continue
        drawn = (paste_masks_in_image(masks, boxes, size)[:, 0] >= 0.5).permute(1, 2, 0).numpy()
        for code in tools.encode(np.asfortranarray(drawn, dtype=np.uint8)):
            encoded.append({"size": list(code["size"]), "counts": code["counts"].decode("ascii")})
    return encoded
