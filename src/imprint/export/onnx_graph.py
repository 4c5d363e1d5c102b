"""ONNX: one file with inputs `images` and outputs `pooled`, `patches` (and `cls`), any batch size."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder
from imprint.backbones.stored import write_aside
from imprint.core.errors import CheckpointError, MissingExtra
from imprint.export.check import ExportResult, Subject, compare, reference

OPSET = 18


class _Outputs(nn.Module):
    """The encoder as a function of images alone, with plain tensors as outputs."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.encoder.encode(images)
        outputs = (features.pooled_BD, features.patches_BND)
        return outputs if features.cls_BD is None else (*outputs, features.cls_BD)


def export_onnx(source: Subject, out: Path) -> ExportResult:
    """Write `out` (an .onnx file, or a folder that gets encoder.onnx) and a JSON with size and normalisation beside it.

    The batch is free, the image size is the one the encoder was built for. The file is checked by onnx and run by
    onnxruntime on two batch sizes.

    Raises:
        MissingExtra: without onnx, onnxscript and onnxruntime.
        CheckpointError: when the graph cannot be made or gives other numbers.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingExtra(package, "export", "export to ONNX") from error
    path = out if out.suffix == ".onnx" else out / "encoder.onnx"
    names = ["pooled", "patches"]
    if source.encoder.has_tokens and reference(source, source.images()).cls_BD is not None:
        names.append("cls")
    write_aside(path, _graph(source, names))
    description = {
        "input": {"name": "images", "shape": ["batch", source.encoder.channels, *[source.encoder.image_size] * 2]},
        "outputs": names,
        "normalise": {"mean": list(source.mean), "std": list(source.std)},
        "provenance": dict(source.provenance),
    }
    write_aside(path.with_name(path.name + ".json"), (json.dumps(description, indent=2) + "\n").encode())
    worst = max(_difference(source, path, names, batch) for batch in (1, 3))
    load = f"import onnxruntime\nmodel = onnxruntime.InferenceSession({str(path)!r})"
    return ExportResult(format="onnx", path=path, max_abs_diff=worst, how_to_load=load)


def _graph(source: Subject, names: list[str]) -> bytes:
    import onnx

    wrapped = _Outputs(source.encoder).eval()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                wrapped,
                (source.images(),),
                input_names=["images"],
                output_names=names,
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch.export raises many kinds, each naming its operator
        raise CheckpointError(
            f"'{source.encoder.name}' has an operation that ONNX cannot express ({str(error).strip()[:200]}). "
            "Use --format safetensors or timm."
        ) from error
    if program is None:
        raise CheckpointError(f"'{source.encoder.name}': torch gave no ONNX graph. Use --format safetensors or timm.")
    model = program.model_proto
    onnx.checker.check_model(model)
    blob: bytes = model.SerializeToString()
    return blob


def _difference(source: Subject, path: Path, names: list[str], batch: int) -> float:
    import onnxruntime

    images = source.images(batch)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    values = session.run(names, {"images": images.numpy()})
    features = reference(source, images)
    ours = {"pooled": features.pooled_BD, "patches": features.patches_BND}
    if features.cls_BD is not None:
        ours["cls"] = features.cls_BD
    theirs = dict(zip(names, map(torch.from_numpy, values), strict=True))
    return compare(path, {name: ours[name] for name in names}, theirs, tolerance=1e-3)
