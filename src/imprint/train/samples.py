"""What the network saw and made, kept for the report: crops of the first batch, and reconstructions at the end."""

from __future__ import annotations

from pathlib import Path

import torch

from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.train.step import Stepper
from imprint.train.tensorfile import write_tensors

IMAGES = 16


def write_views(folder: Path, batch: Batch) -> None:
    """Write `samples/views.safetensors`: by view name the crops of a few images, integers (V, n, C, H, W).

    Frames of clips stand as further crops; rows of tokens are (n, L) under `tokens:NAME`.
    """
    few = batch.part(0, min(IMAGES, len(batch)))
    clips = {name: clip.transpose(1, 2).flatten(0, 1).contiguous() for name, clip in few.clips.items()}
    target = folder / "samples"
    target.mkdir(exist_ok=True)
    write_tensors(
        target / "views.safetensors",
        {
            **few.views,
            **clips,
            **{f"mask:{k}": v for k, v in few.masks.items()},
            **{f"tokens:{k}": v.contiguous() for k, v in few.tokens.items()},
        },
    )


def write_reconstructions(folder: Path, stepper: Stepper, batch: Batch, t: Progress) -> None:
    """Write `samples/reconstruct.safetensors` when the method draws pictures: floats (n, C, H, W) in [0, 1]."""
    method = stepper.method
    training = method.training
    method.eval()
    with torch.no_grad(), stepper.precision.autocast():
        pictures = method.reconstruct(stepper.prepared(batch.part(0, min(IMAGES, len(batch)))), t)
    method.train(training)
    if pictures:
        target = folder / "samples"
        target.mkdir(exist_ok=True)
        shown = {name: stepper.normalise.undo(value.float()).cpu() for name, value in pictures.items()}
        write_tensors(target / "reconstruct.safetensors", shown)
