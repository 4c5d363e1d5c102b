"""Our own format: NAME.safetensors under timm's names, and NAME.json beside it."""

from __future__ import annotations

from pathlib import Path

import torch

from imprint.backbones.build import STEM_STRIDES
from imprint.backbones.load import load_encoder
from imprint.backbones.pixel_transformer import PixelTransformer
from imprint.backbones.stored import save_encoder
from imprint.export.check import ExportResult, Subject, compare, reference
from imprint.export.recipe import stem_lines, timm_call, timm_lines


def export_safetensors(source: Subject, out: Path) -> ExportResult:
    """Write `out` (a .safetensors file, or a folder that gets encoder.safetensors) and its JSON.

    Read back twice: by `load_encoder`, and by timm alone through the documented line (Imprint's own networks, which
    timm does not know, once). Both must agree exactly up to float rounding.

    Raises:
        CheckpointError: when it cannot be written or reads back differently.
    """
    folder, stem = (out.parent, out.stem) if out.suffix == ".safetensors" else (out, "encoder")
    path = save_encoder(
        source.encoder, folder, mean=source.mean, std=source.std, provenance=source.provenance, stem=stem
    )
    images = source.images()
    ours = reference(source, images)
    back = load_encoder(path)
    with torch.no_grad():
        again = back.encode(images)
    outputs = {"pooled": ours.pooled_BD, "patches": ours.patches_BND}
    theirs = {"pooled": again.pooled_BD, "patches": again.patches_BND}
    if not isinstance(source.encoder, PixelTransformer):
        with torch.no_grad():
            theirs["pooled by timm"] = _by_timm(source, path)(images)
        outputs["pooled by timm"] = ours.pooled_BD
    diff = compare(path, outputs, theirs, tolerance=1e-5)
    return ExportResult(format="safetensors", path=path, max_abs_diff=diff, how_to_load=how_to_load(source, path))


def how_to_load(source: Subject, path: Path) -> str:
    """Return Python that loads the file, with timm where timm knows the network."""
    if isinstance(source.encoder, PixelTransformer):
        return f"import imprint\nmodel = imprint.load_encoder({str(path)!r})"
    if source.encoder.config["stem"] == "imagenet":
        return timm_lines(source.encoder, f"checkpoint_path={str(path)!r}")
    name, arguments = timm_call(source.encoder)
    given = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return (
        f"import timm, safetensors.torch\nmodel = timm.create_model({name!r}{given}).eval()\n"
        f"{stem_lines(source.encoder)}\n"
        f"model.load_state_dict(safetensors.torch.load_file({str(path)!r}))"
    )


def _by_timm(source: Subject, path: Path) -> torch.nn.Module:
    """Do what `how_to_load` says."""
    import timm
    from safetensors.torch import load_file

    name, arguments = timm_call(source.encoder)
    model: torch.nn.Module = timm.create_model(name, **arguments)
    if source.encoder.config["stem"] != "imagenet":
        stride = STEM_STRIDES[source.encoder.config["stem"]]
        weight = source.encoder.model.get_parameter("conv1.weight")
        model.conv1 = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 3, stride=stride, padding=1, bias=False)
        model.maxpool = torch.nn.Identity()
    model.load_state_dict(load_file(path))
    return model.eval()
