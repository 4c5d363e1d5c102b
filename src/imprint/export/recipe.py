"""The lines of Python with which timm alone builds the same model."""

from __future__ import annotations

from typing import Any

from imprint.backbones.build import STEM_STRIDES, timm_arguments
from imprint.backbones.pixel_transformer import Backbone
from imprint.core.errors import ConfigError


def timm_call(encoder: Backbone) -> tuple[str, dict[str, Any]]:
    """Return (architecture, keyword arguments) for `timm.create_model`, without a weights tag."""
    config = encoder.config
    arguments = timm_arguments(config)
    arguments.pop("dynamic_img_size", None)
    arguments.pop("drop_path_rate", None)
    if arguments["in_chans"] == 3:
        del arguments["in_chans"]
    if "mlp_layer" in arguments:
        return _SWIGLU_MODEL, _swiglu_arguments(encoder, arguments)
    return str(config["name"]).split(".")[0], arguments


_SWIGLU_MODEL = "vit_giant_patch14_dinov2"
"""timm takes its SwiGLU as a class, which no file can hold, so this model, which has one, is named and resized."""


def _swiglu_arguments(encoder: Backbone, arguments: dict[str, Any]) -> dict[str, Any]:
    model: Any = encoder.model
    block = model.blocks[0]
    hidden = block.mlp.fc1.weight.shape[0]
    if hidden != 2 * block.mlp.fc2.weight.shape[1]:
        raise ConfigError(
            f"timm's '{encoder.name}' takes its MLP as a class, which no file can hold; leave arch.mlp out, or use "
            "--format safetensors or onnx."
        )
    sizes = {
        "img_size": encoder.image_size,
        "patch_size": encoder.patch_size,
        "embed_dim": encoder.embed_dim,
        "depth": encoder.depth,
        "num_heads": block.attn.num_heads,
        "mlp_ratio": (hidden + 0.5) / encoder.embed_dim,  # timm rounds down
        "init_values": 1.0 if hasattr(block.ls1, "gamma") else 0.0,
        "global_pool": model.global_pool,
    }
    return {k: v for k, v in arguments.items() if k not in ("mlp_layer", "act_layer")} | sizes


def timm_lines(encoder: Backbone, load: str) -> str:
    """Return Python that builds the model with timm and fills it.

    Args:
        encoder: the encoder.
        load: argument that loads weights, such as `checkpoint_path='FILE'`.
    """
    name, arguments = timm_call(encoder)
    given = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return f"{imports(name)}\nmodel = timm.create_model({name!r}{given}, {load}).eval()"


def imports(name: str) -> str:
    """Return the line that makes timm know an architecture; one of ours has to be registered."""
    return "import imprint.backbones.dvae_encoder, timm" if name == "dvae_encoder" else "import timm"


def refuse_cifar_stem(encoder: Backbone, kind: str) -> None:
    """Refuse a stem that timm cannot build.

    Raises:
        ConfigError: naming the formats that carry it.
    """
    if encoder.config["stem"] != "imagenet":
        raise ConfigError(
            f"timm has no 3x3 stem without pooling, so '{encoder.name}' with stem='{encoder.config['stem']}' has no "
            f"{kind} form. Use --format safetensors, torchvision or onnx."
        )


def stem_lines(encoder: Backbone) -> str:
    """Return Python that gives a ResNet in `model` the encoder's 3x3 stem."""
    stride = STEM_STRIDES[encoder.config["stem"]]
    weight = encoder.model.get_parameter("conv1.weight")
    return (
        "import torch\n"
        f"model.conv1 = torch.nn.Conv2d({weight.shape[1]}, {weight.shape[0]}, 3, stride={stride}, padding=1, "
        "bias=False)\n"
        "model.maxpool = torch.nn.Identity()"
    )
