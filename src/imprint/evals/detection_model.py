"""Torchvision's Mask R-CNN on any encoder.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder
from imprint.backbones.torchvision_compat import detection_models
from imprint.core.errors import ConfigError
from imprint.nn.feature_pyramid import ChannelNorm, FeaturePyramid, SimpleFeaturePyramid

CELLS_PER_ANCHOR = 8.0
"""FPN's anchors of 32 px at stride 4 (arXiv 1612.03144, Sec. 4.1)."""


class PyramidBackbone(nn.Module):
    """An encoder and the pyramid on its maps: (B, C, H, W) -> levels by name.

    Args:
        encoder: as it will be trained.
        width: of the pyramid.
        freeze: the encoder takes no gradient and stays in evaluation mode.
        batch_statistics: batch norms of the encoder keep learning their statistics; else they stay as pretrained, which
            suits the few images of a step (Mask R-CNN's public code).

    Attributes:
        strides: pixels per cell of every level, finest first, the last one that of level `pool`.
        divisor: sides of a batch must be multiples of this.
        hierarchical: whether the encoder gives several maps.
    """

    def __init__(self, encoder: Encoder, width: int, freeze: bool, batch_statistics: bool) -> None:
        super().__init__()
        self.encoder, self.freeze, self.batch_statistics = encoder, freeze, batch_statistics
        shapes, side = _map_shapes(encoder)
        self.hierarchical = len(shapes) > 1
        strides = [side / height for _, height in shapes]
        self.pyramid: nn.Module
        if self.hierarchical:
            self.pyramid = FeaturePyramid([d for d, _ in shapes], width)
            self.divisor = encoder.patch_size
        else:
            self.pyramid = SimpleFeaturePyramid(shapes[0][0], width)
            strides = [strides[0] / scale for scale in SimpleFeaturePyramid.scales]
            self.divisor = 2 * encoder.patch_size
        self.strides = (*strides, 2 * strides[-1])
        self.out_channels = width
        if freeze:
            encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> PyramidBackbone:
        """Set the mode, but for what is to stay as it is."""
        super().train(mode)
        if self.freeze:
            self.encoder.eval()
        elif not self.batch_statistics:
            for module in self.encoder.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, images_BCHW: Tensor) -> OrderedDict[str, Tensor]:
        """Return the levels."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            maps = self.encoder.encode_maps(images_BCHW)[-4:]
        levels: OrderedDict[str, Tensor] = self.pyramid(maps)
        return levels


def _map_shapes(encoder: Encoder) -> tuple[list[tuple[int, int]], int]:
    """Return (width, height) of the last four maps of a square image, and the image's side."""
    total = encoder.patch_size
    side = total * max(2, -(-encoder.image_size // total))
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    twin = copy.deepcopy(encoder).eval()
    with torch.no_grad():
        maps = twin.encode_maps(torch.zeros(1, encoder.channels, side, side, device=device))[-4:]
    shapes = [(x.shape[1], x.shape[2]) for x in maps]
    halves = all(2 * b[1] == a[1] for a, b in zip(shapes, shapes[1:], strict=False))
    if not halves or any(x.shape[2] != x.shape[3] for x in maps):
        raise ConfigError(
            f"'{encoder.name}' gives maps of {', '.join(f'{x.shape[2]} x {x.shape[3]}' for x in maps)} cells for an "
            f"image of {side} x {side}; a pyramid needs each to be half of the one before. Choose a ResNet, ConvNeXt, "
            "Swin or ViT."
        )
    return shapes, side


class Padding(nn.Module):
    """The place where torchvision resizes; views come resized and normalised, so they are only put together.

    Images lie in the upper left corner of a batch of zeros (the mean colour) whose sides `divisor` divides.
    """

    def __init__(self, divisor: int, lists: Any) -> None:
        super().__init__()
        self.divisor, self._lists = divisor, lists

    def forward(self, images: Sequence[Tensor], targets: Any = None) -> tuple[Any, Any]:
        """Return an ImageList and the targets as they came."""
        height, width = (-(-max(x.shape[side] for x in images) // self.divisor) * self.divisor for side in (-2, -1))
        batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
        for place, image in zip(batch, images, strict=True):
            place[:, : image.shape[1], : image.shape[2]] = image
        return self._lists(batch, [(x.shape[1], x.shape[2]) for x in images]), targets

    @staticmethod
    def postprocess(found: Any, sizes: Any, originals: Any) -> Any:
        """Return detections in pixels of the view, masks as they were predicted."""
        return found


def mask_rcnn(
    backbone: PyramidBackbone,
    classes: int,
    *,
    heads: str = "auto",
    hidden: int = 1024,
    anchor_cells: float = CELLS_PER_ANCHOR,
    masks: bool = True,
    proposals: int = 2000,
    regions: int = 512,
    detections: int = 100,
) -> nn.Module:
    """Return torchvision's MaskRCNN (arXiv 1703.06870) over a backbone; images come resized and normalised.

    Args:
        backbone: encoder and pyramid.
        classes: K, without the background.
        heads: `mlp` two linear layers and one convolution before the anchors (FPN); `conv` four convolutions and one
            linear layer, two convolutions, all with LayerNorm (ViTDet, arXiv 2203.16527, Sec. 4); `auto` the first
            over stages and the second over a plain ViT.
        hidden: width of the linear layers.
        anchor_cells: side of an anchor in cells of its level; smaller finds smaller objects.
        masks: with the mask branch.
        proposals: regions kept per image in training, half of it in testing.
        regions: sampled per image for the losses of the box head.
        detections: most per image.

    Raises:
        ConfigError: for heads of another name.
    """
    if heads not in ("auto", "mlp", "conv"):
        raise ConfigError(f"heads are auto, mlp or conv, not '{heads}'.")
    convolutional = heads == "conv" or (heads == "auto" and not backbone.hierarchical)
    models = detection_models()
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.rpn import RPNHead
    from torchvision.ops import MultiScaleRoIAlign
    from torchvision.ops.poolers import LevelMapper

    class Anchors(AnchorGenerator):
        """Anchors at the exact strides, in float32: torchvision rounds strides down and follows the maps' type."""

        def forward(self, image_list: Any, feature_maps: list[Tensor]) -> list[Tensor]:
            device = feature_maps[0].device
            self.set_cell_anchors(torch.float32, device)
            strides = [[torch.tensor(stride)] * 2 for stride in backbone.strides]
            found = torch.cat(self.grid_anchors([list(x.shape[-2:]) for x in feature_maps], strides))
            return [found for _ in image_list.image_sizes]

    def pool(size: int) -> Any:
        cutter = MultiScaleRoIAlign([str(i) for i in range(levels - 1)], size, sampling_ratio=2)
        cutter.scales = [1.0 / stride for stride in backbone.strides[:-1]]
        finest = 14.0 * backbone.strides[0] * anchor_cells / CELLS_PER_ANCHOR  # FPN, Eq. 1: 224 px at stride 16
        cutter.map_levels = LevelMapper(0, levels - 2, finest, 0)
        return cutter

    levels, width = len(backbone.strides), backbone.out_channels
    ratios = (0.5, 1.0, 2.0)
    anchors = Anchors(tuple((anchor_cells * s,) for s in backbone.strides), (ratios,) * levels)
    norm = ChannelNorm if convolutional else None
    box_head = (
        models.faster_rcnn.FastRCNNConvFCHead((width, 7, 7), [width] * 4, [hidden], norm)
        if convolutional
        else models.faster_rcnn.TwoMLPHead(width * 49, hidden)
    )
    model: Any = models.MaskRCNN(
        backbone,
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(width, len(ratios), conv_depth=2 if convolutional else 1),
        rpn_pre_nms_top_n_train=proposals,
        rpn_pre_nms_top_n_test=max(1, proposals // 2),
        rpn_post_nms_top_n_train=proposals,
        rpn_post_nms_top_n_test=max(1, proposals // 2),
        box_roi_pool=pool(7),
        box_head=box_head,
        box_predictor=models.faster_rcnn.FastRCNNPredictor(hidden, classes + 1),
        box_detections_per_img=detections,
        box_batch_size_per_image=regions,
        mask_roi_pool=pool(14),
        mask_head=models.mask_rcnn.MaskRCNNHeads(width, [width] * 4, 1, norm),
        mask_predictor=models.mask_rcnn.MaskRCNNPredictor(width, width, classes + 1),
    )
    parts = [model.rpn.head, model.roi_heads.box_predictor]
    if masks:
        parts.append(model.roi_heads.mask_predictor)
    else:
        model.roi_heads.mask_roi_pool = model.roi_heads.mask_head = model.roi_heads.mask_predictor = None
    model.transform = Padding(backbone.divisor, ImageList)
    for part in parts:  # half precision has too few digits for pixels: boxes and losses are computed in float32
        part.register_forward_hook(_in_float32)
    result: nn.Module = model
    return result


def _in_float32(module: nn.Module, inputs: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float()
    return type(output)(_in_float32(module, inputs, part) for part in output)
