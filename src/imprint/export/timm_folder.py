"""timm's own folder: config.json and model.safetensors, for `timm.create_model("local-dir:...", pretrained=True)`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imprint.backbones.build import published_config
from imprint.backbones.stored import encoder_state, write_aside
from imprint.core.errors import ConfigError
from imprint.export.check import ExportResult, Subject, compare, reference
from imprint.export.recipe import imports, refuse_cifar_stem, timm_call


def export_timm(source: Subject, out: Path) -> ExportResult:
    """Write the folder `out` in timm's layout; it can also be uploaded to a hub as it is.

    Raises:
        ConfigError: for an encoder that timm cannot build (a CIFAR stem).
        CheckpointError: when it cannot be written or reads back differently.
    """
    refuse_cifar_stem(source.encoder, "timm")
    spare_other_config(out)
    write_timm_folder(source, out)
    images = source.images()
    ours = reference(source, images)
    line = f"timm.create_model('local-dir:{out}', pretrained=True)"
    lines = f"{imports(timm_call(source.encoder)[0])}\nmodel = {line}.eval()"
    model: Any = _load(out)
    with torch.no_grad():
        diff = compare(out, {"pooled": ours.pooled_BD}, {"pooled": model(images)}, tolerance=1e-5)
    return ExportResult(format="timm", path=out, max_abs_diff=diff, how_to_load=lines)


def spare_other_config(out: Path) -> None:
    """Refuse a folder whose config.json is something else's (a run's), which would be overwritten.

    Raises:
        ConfigError: naming the file.
    """
    path = out / "config.json"
    if not path.exists():
        return
    try:
        present = json.loads(path.read_text())
    except ValueError:
        present = None
    if not isinstance(present, dict) or not {"architecture", "model_type"} & present.keys():
        raise ConfigError(
            f"{path} is not an exported model's and would be overwritten; choose another folder for --out."
        )


def write_timm_folder(source: Subject, out: Path) -> None:
    """Write config.json (architecture, arguments, preprocessing) and model.safetensors."""
    from safetensors.torch import save

    name, arguments = timm_call(source.encoder)
    arguments.pop("num_classes")
    published = published_config(name)
    size = source.encoder.image_size
    description = {
        "architecture": name,
        "num_classes": 0,
        "num_features": source.encoder.patch_dim,
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "imprint",
            "custom_load": False,
            "input_size": [source.encoder.channels, size, size],
            "fixed_input_size": bool(published.get("fixed_input_size", False)),
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "crop_mode": "center",
            "mean": list(source.mean),
            "std": list(source.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": published.get("first_conv"),
            "classifier": published.get("classifier"),
        },
        "imprint": dict(source.provenance),
    }
    write_aside(out / "model.safetensors", save(encoder_state(source.encoder), metadata={"format": "pt"}))
    write_aside(out / "config.json", (json.dumps(description, indent=2) + "\n").encode())


def _load(folder: Path) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return model.eval()
