"""Any timm backbone under the encoder contract. This file holds what CNNs and hierarchical models need.

ViTs, whose tokens can be masked, dropped and looked at, are in `timm_vit` and `timm_beit`, Swins in `timm_swin`.
Widths, strides and layouts are read from timm's own descriptions (`num_features`, `feature_info`, `output_fmt`), never
from a dummy forward.

Shapes: B images, C channels, H x W pixels, N = gh * gw patches, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from imprint.backbones import torchvision_compat  # noqa: F401  (makes timm importable)
from imprint.backbones.encoder import Encoder, Features
from imprint.core.errors import ConfigError

Layout = Literal["NCHW", "NHWC", "NLC"]


class TimmEncoder(Encoder):
    """A timm model under the contract: CNNs, and transformers that give a map or plain tokens (XCiT).

    `pooled_BD` is what timm's own classifier would read: `forward_head(features, pre_logits=True)`. It has `embed_dim`
    columns; the few CNNs with a hidden layer in their head (MobileNetV3, VGG) give `patches_BND` of another width,
    `patch_dim`. `encode_layers` of a CNN gives stage outputs, pooled by their mean.

    Args:
        model: a timm model built with `num_classes=0`.
        config: JSON-ready arguments of `build_encoder`.
        stride: total stride, where it differs from the one in `feature_info` (a CIFAR stem).
    """

    def __init__(self, model: nn.Module, config: Mapping[str, Any], *, stride: int | None = None) -> None:
        super().__init__()
        described: Any = model
        self.model = model
        self.name = str(config["name"])
        self.image_size = int(config["image_size"])
        self.channels = int(config["channels"])
        self._fixed_size = bool(getattr(getattr(described, "patch_embed", None), "strict_img_size", False))
        self._config = copy.deepcopy(dict(config))
        self.patch_dim = int(described.num_features)
        self.embed_dim = int(getattr(described, "head_hidden_size", None) or described.num_features)
        info = getattr(described, "feature_info", None) or []
        self._stages = list(getattr(info, "info", info))
        self._first_stage = 1 if self._stages and _is_stem(self._stages[0]["module"]) else 0
        if not self._stages:
            raise ConfigError(
                f"timm model '{self.name}' does not describe its stages, so its stride is unknown; choose a ResNet, "
                "ConvNeXt, RegNet, EfficientNet, ViT or Swin."
            )
        self.depth = len(self._stages) - self._first_stage
        self.patch_size = stride or int(self._stages[-1]["reduction"])
        self.prefix_tokens = int(getattr(described, "num_prefix_tokens", 0) or 0)
        self._has_class_token = getattr(described, "cls_token", None) is not None
        self.registers = max(0, self.prefix_tokens - int(self._has_class_token))
        self._layout: Layout = _layout(described)

    def encode(self, images_BCHW: Tensor, mask_BN: Tensor | None = None, keep_BM: Tensor | None = None) -> Features:
        """Encode images; see the contract. Masks and kept tokens need a ViT of the VisionTransformer or Eva family."""
        if mask_BN is not None or keep_BM is not None:
            raise ConfigError(
                f"'{self.name}' has no tokens to mask or drop. "
                "Choose a ViT (for example --encoder vit_small_patch16_224)."
            )
        self.check_images(images_BCHW)
        model: Any = self.model
        raw = model.forward_features(images_BCHW)
        return self._features(raw, model.forward_head(raw, pre_logits=True), images_BCHW, self._layout)

    def encode_layers(
        self, images_BCHW: Tensor, layers: Sequence[int], *, mask_BN: Tensor | None = None, norm: bool = True
    ) -> list[Features]:
        """Return Features after the given stages, 0 the first and -1 the last; each pooled by its mean.

        Raises:
            ConfigError: for a stage that does not exist, a model without `forward_intermediates` in timm, or masks.
        """
        if mask_BN is not None:
            raise ConfigError(f"'{self.name}' has no tokens to mask. Choose a ViT or a Swin.")
        self.check_images(images_BCHW)
        model: Any = self.model
        if not hasattr(model, "forward_intermediates"):
            raise ConfigError(f"timm gives no intermediate stages of '{self.name}'; use its last one through `encode`.")
        wanted = [self.layer_index(layer) + self._first_stage for layer in layers]
        order = sorted(set(wanted))
        maps = model.forward_intermediates(images_BCHW, indices=order, norm=norm, intermediates_only=True)
        by_stage = dict(zip(order, maps, strict=True))
        return [self._features(by_stage[i], None, images_BCHW, "NCHW") for i in wanted]

    def encode_maps(self, images_BCHW: Tensor) -> list[Tensor]:
        """Return one map per stage, finest first (one map where timm gives no stages)."""
        if not hasattr(self.model, "forward_intermediates") or self.has_tokens:
            return super().encode_maps(images_BCHW)
        stages = self.encode_layers(images_BCHW, range(self.depth))
        return [stage.patches_BND.transpose(1, 2).unflatten(2, stage.grid) for stage in stages]

    @property
    def map_shapes(self) -> tuple[tuple[int, int], ...]:
        """Width and stride of every map of `encode_maps`, from timm's description of the stages."""
        if not hasattr(self.model, "forward_intermediates") or self.has_tokens:
            return super().map_shapes
        stages = self._stages[self._first_stage :]
        return tuple((int(stage["num_chs"]), int(stage["reduction"])) for stage in stages)

    def _features(self, raw: Tensor, pooled_BD: Tensor | None, images_BCHW: Tensor, layout: Layout) -> Features:
        if raw.ndim != (3 if layout == "NLC" else 4):
            raise ConfigError(
                f"timm's '{self.name}' gives features of shape {tuple(raw.shape)}, which are neither a map nor "
                "plain tokens; choose a ResNet, ConvNeXt, RegNet, EfficientNet, ViT or Swin."
            )
        cls_BD = None
        others_BRD = None
        if layout == "NCHW":
            grid = (raw.shape[2], raw.shape[3])
            patches_BND = raw.flatten(2).transpose(1, 2)
        elif layout == "NHWC":
            grid = (raw.shape[1], raw.shape[2])
            patches_BND = raw.flatten(1, 2)
        else:
            grid = (images_BCHW.shape[2] // self.patch_size, images_BCHW.shape[3] // self.patch_size)
            patches_BND = raw[:, self.prefix_tokens :]
            cls_BD = raw[:, 0] if self._has_class_token else None
            first = int(self._has_class_token)
            others_BRD = raw[:, first : self.prefix_tokens] if self.prefix_tokens > first else None
        if pooled_BD is None:
            pooled_BD = patches_BND.mean(1)
        return Features(pooled_BD, cls_BD, others_BRD, patches_BND, grid)

    def check_images(self, images_BCHW: Tensor) -> None:
        """Refuse a batch of the wrong rank, number of channels, or (for models of one size) sides.

        Raises:
            ConfigError: saying what was expected and what came.
        """
        if images_BCHW.ndim != 4 or images_BCHW.shape[1] != self.channels:
            raise ConfigError(
                f"'{self.name}' was built for images (B, {self.channels}, H, W) and got {tuple(images_BCHW.shape)}; "
                "build it with the number of channels you have, or convert the images."
            )

        if self._fixed_size and tuple(images_BCHW.shape[2:]) != (self.image_size, self.image_size):
            raise ConfigError(
                f"'{self.name}' takes images of {self.image_size} x {self.image_size} only and got "
                f"{images_BCHW.shape[2]} x {images_BCHW.shape[3]}; build it with the image_size you need."
            )

    def layer_index(self, layer: int) -> int:
        """Return `layer` counted from 0.

        Raises:
            ConfigError: when the encoder is not that deep.
        """
        index = layer + self.depth if layer < 0 else layer
        if not 0 <= index < self.depth:
            raise ConfigError(f"layer {layer} of '{self.name}': it has {self.depth}, 0 to {self.depth - 1} or -1 back.")
        return index

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory: recompute blocks in the backward pass instead of keeping their activations.

        Raises:
            ConfigError: when timm cannot do so for this model.
        """
        model: Any = self.model
        try:
            model.set_grad_checkpointing(enable)
        except (AttributeError, AssertionError) as error:
            raise ConfigError(f"timm has no gradient checkpointing for '{self.name}'; switch it off.") from error

    def enable_mask_token(self, std: float = 0.02) -> None:
        """Create the learned mask token. CNNs have none.

        Raises:
            ConfigError: always here; `TimmViT` and `TimmSwin` override it.
        """
        raise ConfigError(f"'{self.name}' has no patch tokens, so no mask token; choose a ViT or a Swin.")

    def drop_mask_token(self) -> None:
        """Remove the learned mask token, which only pretraining needs; nothing to do for a CNN."""

    @property
    def config(self) -> dict[str, Any]:
        """JSON-ready arguments from which `build_encoder(**config)` makes an encoder of the same shape."""
        return copy.deepcopy(self._config)


def _is_stem(module: str) -> bool:
    return module in ("act1", "bn1") or module.split(".")[0] in ("stem", "conv_stem") or module == "features.norm0"


def _layout(model: Any) -> Layout:
    declared = getattr(model, "output_fmt", None)
    if declared is not None:
        return "NHWC" if str(declared).upper().endswith("NHWC") else "NCHW"
    return "NLC" if hasattr(model, "num_prefix_tokens") else "NCHW"
