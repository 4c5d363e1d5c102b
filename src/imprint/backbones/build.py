"""Build an encoder by name: a timm model of any size, with the changes self-supervised recipes ask for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imprint.backbones import dvae_encoder as _dvae_encoder  # noqa: F401  (a backbone of ours, by timm's name)
from imprint.backbones import torchvision_compat  # noqa: F401  (makes timm importable)
from imprint.backbones.arch import Arch
from imprint.backbones.dual_build import TOWER, image_tower, rebuild_dual
from imprint.backbones.dual_encoder import DualEncoder
from imprint.backbones.encoder import Encoder
from imprint.backbones.initial import init_beit, init_xavier
from imprint.backbones.language_model import PREFIX as TEXT
from imprint.backbones.language_model import LanguageModel, build_language_model
from imprint.backbones.parts import family_arguments
from imprint.backbones.pixel_transformer import SIZES as PIXEL_MODELS
from imprint.backbones.pixel_transformer import Backbone, build_pixel_transformer
from imprint.backbones.read import read_state
from imprint.backbones.timm_beit import TimmBeit
from imprint.backbones.timm_encoder import TimmEncoder
from imprint.backbones.timm_swin import TimmSwin
from imprint.backbones.timm_vit import POSITION_LAYOUTS, TimmViT
from imprint.core.errors import CheckpointError, ConfigError, unknown

_logger = logging.getLogger(__name__)

STEM_STRIDES = {"cifar": 1, "half": 2}
"""Strides of the 3x3 stems without pooling; timm's own reduces fourfold."""

_TOKEN_MODULES = ("vision_transformer", "deit", "eva", "vision_transformer_hybrid")
_SWIN_MODULES = ("swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr")


def build_encoder(
    name: str,
    *,
    image_size: int,
    channels: int = 3,
    patch_size: int | None = None,
    stem: Literal["imagenet", "cifar", "half"] = "imagenet",
    registers: int | None = None,
    drop_path: float = 0.0,
    positions: Literal["sincos", "sincos_mocov3"] | None = None,
    init: Literal["timm", "mae", "mocov3", "beit"] = "timm",
    arch: Arch | Mapping[str, Any] | None = None,
    drop_samples: bool = False,
    uniform_drop_path: bool = False,
    mask_token: bool = False,
    pretrained: bool = False,
    weights: str | Path | None = None,
    vocabulary: int | None = None,
    context: int | None = None,
    text: Mapping[str, Any] | None = None,
) -> Backbone | LanguageModel | DualEncoder:
    """Build an encoder.

    Weights are timm's random initialisation (from torch's global generator) unless `pretrained` or `weights` is given.

    Args:
        name: timm model name (or `image_gpt_s`, `_m`, `_l`: a transformer over pixels), with a tag
            (`vit_base_patch16_224.mae`) for published weights; `timm:NAME` means the same with `pretrained=True`,
            `random:NAME` without; or an Imprint run folder or exported file, whose shape and weights are taken
            (settings that differ from the defaults here replace its own).
        image_size: side it is built for, pixels; other sizes are accepted in `encode`.
        channels: image channels.
        patch_size: ViT patch side; None keeps the model's own.
        stem: `cifar` replaces a ResNet's stem by one 3x3 convolution of stride 1 without pooling (SimCLR, B.9), `half`
            by one of stride 2: a quarter of the cost for images of 32 to 64 pixels.
        registers: learned tokens without position beside the class token (arXiv 2309.16588); None keeps the model's
            own, 0 removes them.
        drop_path: stochastic depth rate at the last block, growing linearly from 0 at the first, in [0, 1).
        positions: `sincos` fixes non-trainable 2-d sin-cos positions (MAE), `sincos_mocov3` those of MoCo v3's layout.
        init: random initialisation: timm's own, `mae` (linears and patch embedding Xavier-uniform, biases 0),
            `mocov3` (the same with queries, keys and values as three matrices, and a class token near zero), or `beit`
            (a narrow normal, the later the block the smaller its last matrices).
        arch: sizes that replace the model's own (`Arch`, or a mapping of its fields and other timm arguments).
        drop_samples: where a ViT's rate of stochastic depth is above 0.1, leave samples of the batch out of a block
            instead of zeroing their results (DINOv2): the block costs as much less.
        uniform_drop_path: the same rate of stochastic depth in every block (DINOv2), for transformers.
        mask_token: create the learned mask token that `mask_BN` needs.
        pretrained: load timm's published weights; the only way here to reach the network.
        weights: local .safetensors, .pth or run folder to start from; public layouts are recognised (see `convert`).
        vocabulary: tokens that a network for text (`text:bert`, `text:albert`, `text:gpt`, `text:gpt2`) knows.
        context: longest row of tokens it takes.
        text: the text tower beside this image tower, as a stored `DualEncoder` describes it.

    Returns:
        A TimmEncoder (TimmViT, TimmBeit or TimmSwin where patches can be masked) or a PixelTransformer, in training
        mode; with `text` a DualEncoder around it. A name that stands for a stored DualEncoder gives its image tower.

    Raises:
        ConfigError: for an unknown name (the nearest is named), sizes that do not fit together, options that do not
            apply to this model, or weights that cannot be had.
        CheckpointError: for weights that do not belong to this model.
    """
    from imprint.backbones.load import is_stored, stored_config, stored_weights

    given = arch.overrides() if isinstance(arch, Arch) else arch or {}
    arch = {k: list(v) if isinstance(v, tuple) else v for k, v in given.items() if v is not None}
    config: dict[str, Any] = {
        "name": name, "image_size": image_size, "channels": channels, "patch_size": patch_size, "stem": stem,
        "registers": registers, "drop_path": drop_path, "positions": positions, "arch": arch, "mask_token": mask_token,
        "drop_samples": drop_samples, "uniform_drop_path": uniform_drop_path,
    }  # fmt: skip
    if name.startswith(TEXT):
        return _language_model(config | {"vocabulary": vocabulary, "context": context}, weights)
    if is_stored(name):
        weights = weights or stored_weights(name)
        own = {key: value for key, value in stored_config(name).items() if key != "text"}
        changed = {k: v for k, v in config.items() if k != "name" and v != _DEFAULTS.get(k)}
        config = {**config, **own, **changed}
    else:
        prefix, _, bare = name.rpartition(":")
        if prefix not in ("", "timm", "random"):
            raise ConfigError(f"encoder '{name}': write timm:NAME, random:NAME, a timm name, a run folder or a file.")
        config["name"] = bare
        pretrained = pretrained or prefix == "timm"
    if pretrained and weights is not None:
        raise ConfigError(f"encoder '{name}': give pretrained or weights, not both; they are two different starts.")
    encoder: Backbone = build_pixel_transformer(config) if config["name"] in PIXEL_MODELS else _assemble(config)
    if init == "beit":
        init_beit(encoder)
    elif init != "timm":
        init_xavier(encoder, init)
    if text is not None:
        return _dual(encoder, text, weights)
    if pretrained:
        _load_published(encoder)
    if weights is not None:
        from imprint.backbones.convert import load_weights

        if is_stored(str(weights)):
            weights = stored_weights(str(weights))
        _logger.info("%s", load_weights(encoder, weights))
    return encoder


def _dual(vision: Backbone, text: Mapping[str, Any], weights: str | Path | None) -> DualEncoder:
    from imprint.backbones.convert import load_state

    dual = rebuild_dual(vision, text)
    if weights is None:
        return dual
    state = read_state(Path(weights).expanduser())
    _logger.info("%s", load_state(vision, image_tower(state), source=str(weights)))
    rest = {name: value for name, value in state.items() if not name.startswith(TOWER)}
    try:
        lost = [name for name in dual.load_state_dict(rest, strict=False).missing_keys if not name.startswith(TOWER)]
    except RuntimeError as error:
        raise CheckpointError(f"'{weights}' does not fit its text tower: {error}") from error
    if lost:
        raise CheckpointError(f"'{weights}' lacks {len(lost)} weights of the text side, such as '{lost[0]}'.")
    return dual


def _language_model(config: Mapping[str, Any], weights: str | Path | None) -> LanguageModel:
    kept = ("name", "image_size", "arch", "vocabulary", "context")
    if config["vocabulary"] is None or config["context"] is None:
        raise ConfigError(f"'{config['name']}' needs a vocabulary and a context, which a method of text gives it.")
    model = build_language_model({name: config[name] for name in kept})
    if weights is not None:
        try:
            model.load_state_dict(read_state(Path(weights).expanduser()))
        except RuntimeError as error:
            raise CheckpointError(f"'{weights}' does not fit '{config['name']}': {error}") from error
    return model


def published_config(name: str) -> dict[str, Any]:
    """Return what timm says of a model's images and weights: `input_size`, `mean`, `std`, `license` ...

    Raises:
        ConfigError: for an unknown name, naming the nearest.
    """
    from timm.models import get_pretrained_cfg

    if name in PIXEL_MODELS:
        return {"input_size": (3, 32, 32)}
    _family(name)
    published = get_pretrained_cfg(name)
    return {} if published is None else dict(published.to_dict())


_DEFAULTS: dict[str, Any] = {
    "channels": 3, "patch_size": None, "stem": "imagenet", "registers": None, "drop_path": 0.0, "positions": None,
    "arch": {}, "mask_token": False, "drop_samples": False, "uniform_drop_path": False,
}  # fmt: skip


def _assemble(config: dict[str, Any]) -> TimmEncoder:
    family = _family(config["name"])
    _check(config, family)
    model: Any = _create(config["name"], timm_arguments(config))
    stride = None
    if config["stem"] != "imagenet":
        stride = _small_stem(model, config)
    if config["uniform_drop_path"] and config["drop_path"]:
        _same_rate(model, config)
    from timm.models.beit import Beit
    from timm.models.eva import Eva
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2
    from timm.models.vision_transformer import VisionTransformer

    if isinstance(model, Beit):
        return TimmBeit(model, config)
    if isinstance(model, VisionTransformer) or (isinstance(model, Eva) and not model.rope_mixed):
        return TimmViT(model, config)
    if config["drop_samples"]:
        raise ConfigError(f"'{config['name']}' cannot leave samples out of a block; choose a ViT, or drop_samples off.")
    if isinstance(model, SwinTransformer | SwinTransformerV2) and config["positions"] is None:
        return TimmSwin(model, config)
    if config["positions"] is not None or config["mask_token"]:
        what = f"positions='{config['positions']}'" if config["positions"] else "a mask token"
        raise ConfigError(f"'{config['name']}' cannot have {what}; choose a ViT such as vit_small_patch16_224.")
    return TimmEncoder(model, config, stride=stride)


def _family(name: str) -> str:
    """Return the timm module that defines the model, after checking that the name is known."""
    import timm
    from timm.models import is_model, model_entrypoint, split_model_name_tag

    bare, tag = split_model_name_tag(name)
    if not is_model(bare):
        raise unknown("encoder", bare, timm.list_models())
    tagged = timm.list_models(f"{bare}.*", pretrained=True) if tag else []
    if tag and name not in tagged:
        raise unknown("published weights", name, tagged)
    return str(model_entrypoint(bare).__module__).rsplit(".", 1)[-1]


def _check(config: dict[str, Any], family: str) -> None:
    name = config["name"]
    for key, least in (("image_size", 1), ("channels", 1), ("patch_size", 1), ("registers", 0)):
        value = config[key]
        if value is not None and value < least:
            raise ConfigError(f"encoder '{name}': {key}={value}; it must be at least {least}.")
    if not 0.0 <= config["drop_path"] < 1.0:
        raise ConfigError(f"encoder '{name}': drop_path={config['drop_path']} is no rate in [0, 1).")
    if config["stem"] not in ("imagenet", *STEM_STRIDES):
        raise unknown("stem", str(config["stem"]), ("imagenet", *STEM_STRIDES))
    if config["positions"] not in (None, *POSITION_LAYOUTS):
        raise unknown("positions", str(config["positions"]), POSITION_LAYOUTS)
    if config["stem"] != "imagenet" and family != "resnet":
        raise ConfigError(
            f"encoder '{name}': stem='{config['stem']}' is for ResNets (resnet18, resnet50 ...); leave it at imagenet."
        )
    if family not in _TOKEN_MODULES:
        if config["patch_size"] is not None and family not in (*_SWIN_MODULES, "beit"):
            raise ConfigError(f"encoder '{name}' has no patches to size; leave patch_size out or choose a ViT.")
        if config["registers"]:
            raise ConfigError(f"encoder '{name}' has no register tokens; choose a ViT such as vit_small_patch16_224.")


def timm_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the settings of an encoder (`Encoder.config`) into keyword arguments of `timm.create_model`."""
    from timm.models import get_pretrained_cfg

    family = _family(config["name"])
    arguments: dict[str, Any] = {"num_classes": 0, "in_chans": config["channels"]}
    arch = {k: tuple(v) if isinstance(v, list) else v for k, v in config["arch"].items()}
    arch = family_arguments(config["name"], family, arch)
    if family == "resnet" and config["stem"] != "imagenet" and "channels" in arch:
        # A plain timm stem is always 64 wide; the deep one takes its width from us and is replaced right after.
        arguments |= {"stem_type": "deep", "stem_width": arch["channels"][0] // 2}
    if family == "resnet" and any(len(arch[k]) != 4 for k in ("layers", "channels") if k in arch):
        raise ConfigError(f"encoder '{config['name']}': arch layers and channels of a ResNet are four numbers each.")
    if config["drop_path"] or family in _SWIN_MODULES:  # timm's own rate for Swins is 0.1
        arguments["drop_path_rate"] = config["drop_path"]
    published = get_pretrained_cfg(config["name"])
    if published is not None and published.fixed_input_size:
        arguments["img_size"] = config["image_size"]
    if config["patch_size"] is not None:
        arguments["patch_size"] = config["patch_size"]
    if family in _TOKEN_MODULES:
        arguments["dynamic_img_size"] = True
        if config["registers"] is not None:
            arguments["num_reg_tokens" if family == "eva" else "reg_tokens"] = config["registers"]
            if config["registers"]:
                arguments["no_embed_class"] = True  # so that registers have no position; the class token is free anyway
    elif family in _SWIN_MODULES:
        arguments["strict_img_size"] = False
    return arguments | arch


def _create(name: str, arguments: dict[str, Any]) -> nn.Module:
    import timm

    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError, IndexError, KeyError) as error:
        given = ", ".join(f"{k}={v}" for k, v in arguments.items() if k not in ("num_classes", "dynamic_img_size"))
        raise ConfigError(f"timm cannot build '{name}' with {given}: {error}") from error
    patch_embed: Any = getattr(model, "patch_embed", None)
    size = arguments.get("img_size")
    if size is not None and hasattr(patch_embed, "feat_ratio"):
        patch = int(patch_embed.feat_ratio())
        if size % patch:
            low = max(patch, size // patch * patch)
            raise ConfigError(
                f"encoder '{name}': image size {size} is no multiple of its patch size {patch}; "
                f"use {low} or {low + patch}, or another patch_size."
            )
    return model


def _same_rate(model: Any, config: dict[str, Any]) -> None:
    """Give every residual branch of a transformer the same rate of stochastic depth (timm's grows with depth)."""
    from timm.layers.drop import DropPath

    found = [(m, name) for m in model.modules() for name in ("drop_path1", "drop_path2") if hasattr(m, name)]
    if not found:
        raise ConfigError(f"'{config['name']}' has no transformer blocks; leave uniform_drop_path off.")
    for module, name in found:
        setattr(module, name, DropPath(config["drop_path"]))


def _small_stem(model: Any, config: dict[str, Any]) -> int:
    """Replace a ResNet's stem by a 3x3 convolution without pooling; return the new total stride."""
    if not hasattr(model, "maxpool") or not hasattr(model, "bn1"):
        raise ConfigError(f"encoder '{config['name']}' has no ResNet stem to replace; leave stem at imagenet.")
    width, stride = model.bn1.weight.shape[0], STEM_STRIDES[config["stem"]]
    model.conv1 = nn.Conv2d(config["channels"], width, kernel_size=3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    for stage in model.feature_info:
        stage["reduction"] = max(1, stage["reduction"] * stride // 4)
    model.feature_info[0]["reduction"] = stride
    return int(model.feature_info[-1]["reduction"])


def _load_published(encoder: Backbone) -> None:
    """Fit timm's published weights to the encoder's shape (channels, positions, registers)."""
    from imprint.backbones.convert import load_state

    with torch.no_grad():
        _logger.info("%s", load_state(encoder, published_state(encoder), source=f"timm:{encoder.config['name']}"))


def published_state(encoder: Encoder) -> dict[str, Tensor]:
    """Download timm's weights for the encoder's name, those of its classifier included.

    Raises:
        ConfigError: when timm has none, they do not fit a changed network, or the network cannot be reached.
    """
    import timm
    from timm.models import get_pretrained_cfg

    config = encoder.config
    name = config["name"]
    published = get_pretrained_cfg(name)
    if published is None or not published.has_weights:
        tags = timm.list_models(f"{name.split('.')[0]}*", pretrained=True)
        instead = f" Published relatives: {', '.join(tags[:5])}." if tags else ""
        raise ConfigError(f"timm publishes no weights for '{name}'; use random:{name} or weights=FILE.{instead}")
    if config["arch"]:
        raise ConfigError(f"encoder '{name}': published weights do not fit a changed arch; drop one of the two.")
    if config["positions"]:
        raise ConfigError(f"encoder '{name}': published weights bring their own positions; leave positions out.")
    try:
        source: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # timm, huggingface_hub and their transports each raise their own when offline
        raise ConfigError(
            f"the published weights of '{name}' could not be fetched ({type(error).__name__}: {_first_line(error)}). "
            f"They need the network once. Offline, give weights=FILE (.safetensors or .pth), or start untrained "
            f"with random:{name}."
        ) from error
    return source.state_dict()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]
