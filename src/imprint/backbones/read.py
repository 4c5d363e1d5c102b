"""Read tensors from local files without executing anything in them."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import torch
from torch import Tensor

from imprint.backbones.layouts import unwrap
from imprint.core.errors import CheckpointError

SAFETENSORS = ".safetensors"
PICKLES = (".pth", ".pt", ".tar", ".bin", ".ckpt")
_IN_FOLDER = ("encoder.safetensors", "model.safetensors", "pytorch_model.bin")


def weights_file(path: str | Path) -> Path:
    """Return the file with the weights: `path` itself, or the one in the folder `path`.

    Raises:
        CheckpointError: when there is none, saying what was looked for.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        for name in _IN_FOLDER:
            if (path / name).is_file():
                return path / name
        raise CheckpointError(f"{path}: no encoder in this folder; looked for {', '.join(_IN_FOLDER)}.")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file or folder.")
    if path.suffix not in (SAFETENSORS, *PICKLES):
        raise CheckpointError(f"{path}: not a file of weights; expected {SAFETENSORS} or {', '.join(PICKLES)}.")
    return path


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Return the named tensors in a file, on the CPU.

    Pickles are read by torch's weights-only reader, which builds tensors and plain containers and runs no code.

    Raises:
        CheckpointError: for a missing, damaged or unsafe file, or one without tensors.
    """
    file = weights_file(path)
    if file.suffix == SAFETENSORS:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: damaged or no safetensors file ({error}). Fetch or export it again."
            ) from error
    try:
        # Training scripts store their options beside the weights; a Namespace is data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file}: holds Python objects beside tensors, which Imprint does not execute "
            f"({_first_line(error)}). If you trust it, save its tensors alone: "
            "torch.save(torch.load(FILE, weights_only=False)['model'], NEW)."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"{file}: damaged or not a torch file ({_first_line(error)}).") from error
    state = unwrap(loaded)
    if not state:
        raise CheckpointError(f"{file}: no tensors found in it.")
    return state


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
