"""An encoder on disk: NAME.safetensors (timm's names) and NAME.json (how to build it, normalisation, provenance).

One that reads text has its tokenizer beside it, NAME.tokenizer.json.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.backbones.read import SAFETENSORS, read_state
from imprint.backbones.text_tokenizer import TextTokenizer, read_tokenizer
from imprint.core.errors import CheckpointError

FORMAT = "imprint-encoder"
VERSION = 1
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def encoder_state(encoder: Encoder) -> dict[str, Tensor]:
    """Return the encoder's tensors under timm's names (and `mask_token`), contiguous, on the CPU."""
    state = encoder.state_dict()
    return {k.removeprefix("model."): v.detach().to("cpu").contiguous().clone() for k, v in state.items()}


def save_encoder(
    encoder: Encoder,
    folder: str | Path,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    provenance: Mapping[str, Any] | None = None,
    stem: str = "encoder",
) -> Path:
    """Write `STEM.safetensors` and `STEM.json` into `folder`, aside, fsynced and renamed; then compare what reads back.

    Args:
        encoder: what to write.
        folder: made when absent.
        mean: per-channel mean of the images it was trained on, in [0, 1]; one value serves all channels.
        std: per-channel standard deviation.
        provenance: JSON-ready facts kept beside it (method, recipe, command, step).
        stem: file name without ending.

    Returns:
        The path of the safetensors file.

    Raises:
        CheckpointError: when the disk refuses, or what was written does not read back equal.
    """
    from safetensors.torch import save

    folder = Path(folder)
    state = encoder_state(encoder)
    blob = save(state, metadata={"format": "pt", "imprint": FORMAT})
    description = {
        "format": FORMAT,
        "version": VERSION,
        "encoder": encoder.config,
        "normalise": {"mean": [float(m) for m in mean], "std": [float(s) for s in std]},
        "weights": {"file": stem + SAFETENSORS, "sha256": hashlib.sha256(blob).hexdigest(), "tensors": len(state)},
        "embed_dim": encoder.embed_dim,
        "provenance": dict(provenance or {}),
    }
    if encoder.tokenizer is not None:
        text = encoder.tokenizer.json.encode()
        described = {"file": f"{stem}.tokenizer.json", "sha256": hashlib.sha256(text).hexdigest()}
        description["tokenizer"] = described
        write_aside(folder / described["file"], text)
    path = folder / (stem + SAFETENSORS)
    write_aside(path, blob)
    write_aside(path.with_suffix(".json"), (json.dumps(description, indent=2) + "\n").encode())
    back = read_state(path)
    if back.keys() != state.keys() or not all(torch.equal(back[k], v) for k, v in state.items()):
        raise CheckpointError(
            f"{path}: what was written does not read back equal; the disk may be failing. Write elsewhere."
        )
    return path


def write_aside(path: Path, content: bytes) -> None:
    """Write a file so that it is either the old one or the whole new one, also after a crash.

    Raises:
        CheckpointError: when the disk is full or refuses; the old file stays.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        if hasattr(os, "O_DIRECTORY"):
            handle = os.open(path.parent, os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise CheckpointError(
            f"{path}: cannot be written ({error.strerror or error}). Free space or write elsewhere."
        ) from error


def description_of(name: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Return (weights file, description) of a run folder, an exported folder or file; None for anything else.

    Raises:
        CheckpointError: for a description that is damaged or of a newer Imprint.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        described = path / "encoder.json"
        if not described.is_file():
            ours = [p for p in sorted(path.glob("*.json")) if p.with_suffix(SAFETENSORS).is_file()]
            described = ours[0] if len(ours) == 1 else described
    else:
        described = path.with_suffix(".json")
    if path.suffix not in ("", SAFETENSORS, ".json") or not described.is_file():
        return None
    try:
        description = json.loads(described.read_text())
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{described}: damaged ({error}). Export the encoder again.") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        return None
    if description.get("version", 0) > VERSION:
        raise CheckpointError(f"{described}: written by a newer Imprint (version {description['version']}); upgrade.")
    return described.with_name(description["weights"]["file"]), description


def stored_tokenizer(name: str | Path) -> TextTokenizer | None:
    """Return the tokenizer that is stored with an encoder, or None for one of images alone.

    Raises:
        CheckpointError: when it is missing, or not the one that the encoder was stored with.
    """
    found = description_of(name)
    if found is None or "tokenizer" not in found[1]:
        return None
    file = found[0].with_name(found[1]["tokenizer"]["file"])
    return read_tokenizer(verified(file, {"weights": found[1]["tokenizer"]}))


def verified(weights: Path, description: Mapping[str, Any]) -> Path:
    """Return `weights` after comparing its checksum with the description's.

    Raises:
        CheckpointError: when the file is absent or differs.
    """
    if not weights.is_file():
        raise CheckpointError(f"{weights}: missing beside its description. Export the encoder again.")
    with open(weights, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != description["weights"]["sha256"]:
        raise CheckpointError(
            f"{weights}: its checksum differs from its description's; damaged or replaced. Export it again."
        )
    return weights
