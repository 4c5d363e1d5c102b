"""Make torchvision importable when its compiled operators were built for another torch.

A CPU build of torch beside the registry's (CUDA) build of torchvision is a common pair: the library of operators then
fails to load, and `import torchvision` dies on the first operator whose schema is missing, taking timm with it.
Declaring the schemas lets everything written in Python work. The two operators that detection needs, `nms` and
`roi_align`, come from `torchvision_operators` then; `imprint doctor` says which are used. Importing this module is
enough; it does nothing where torchvision loads by itself.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from imprint.backbones import torchvision_operators

_library: torch.library.Library | None = None


def _operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # nothing to repair; the import itself will say what is missing
    candidates = [p for p in Path(spec.origin).parent.glob("_C*") if p.suffix in (".so", ".pyd", ".dll", ".dylib")]
    try:
        for candidate in candidates:
            torch.ops.load_library(str(candidate))
    except (OSError, RuntimeError):
        return False
    return bool(candidates)


OPERATORS_AVAILABLE = _operators_load()
"""Whether torchvision's compiled operators (nms, roi_align) work with this torch."""

if not OPERATORS_AVAILABLE:
    _library = torch.library.Library("torchvision", "FRAGMENT")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torchvision_operators.register(_library)


def detection_models() -> Any:
    """Return `torchvision.models.detection`, ready to run: by the compiled operators, or by those written here."""
    if not OPERATORS_AVAILABLE:
        torchvision_operators.open_guards()
    return importlib.import_module("torchvision.models.detection")
