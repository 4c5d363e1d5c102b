"""The lines of Python with which timm alone builds the same model."""

from __future__ import annotations

from typing import Any

from imprint.backbones.build import STEM_STRIDES, timm_arguments
from imprint.backbones.timm_encoder import TimmEncoder
from imprint.core.errors import ConfigError


def timm_call(encoder: TimmEncoder) -> tuple[str, dict[str, Any]]:
    """Return (architecture, keyword arguments) for `timm.create_model`, without a weights tag."""
    config = encoder.config
    arguments = timm_arguments(config)
    arguments.pop("dynamic_img_size", None)
    arguments.pop("drop_path_rate", None)
    if arguments["in_chans"] == 3:
        del arguments["in_chans"]
    return str(config["name"]).split(".")[0], arguments


def timm_lines(encoder: TimmEncoder, load: str) -> str:
    """Return Python that builds the model with timm and fills it.

    Args:
        encoder: the encoder.
        load: argument that loads weights, such as `checkpoint_path='FILE'`.
    """
    name, arguments = timm_call(encoder)
    given = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return f"import timm\nmodel = timm.create_model({name!r}{given}, {load}).eval()"


def refuse_cifar_stem(encoder: TimmEncoder, kind: str) -> None:
    """Refuse a stem that timm cannot build.

    Raises:
        ConfigError: naming the formats that carry it.
    """
    if encoder.config["stem"] != "imagenet":
        raise ConfigError(
            f"timm has no 3x3 stem without pooling, so '{encoder.name}' with stem='{encoder.config['stem']}' has no "
            f"{kind} form. Use --format safetensors, torchvision or onnx."
        )


def stem_lines(encoder: TimmEncoder) -> str:
    """Return Python that gives a ResNet in `model` the encoder's 3x3 stem."""
    stride = STEM_STRIDES[encoder.config["stem"]]
    weight = encoder.model.get_parameter("conv1.weight")
    return (
        "import torch\n"
        f"model.conv1 = torch.nn.Conv2d({weight.shape[1]}, {weight.shape[0]}, 3, stride={stride}, padding=1, "
        "bias=False)\n"
        "model.maxpool = torch.nn.Identity()"
    )
