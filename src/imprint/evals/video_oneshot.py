"""One annotated frame: a light classifier learns its patches and finds the objects in all other frames by itself.

Nothing is carried from frame to frame, so the scores say how far the features of an object stay the same while it
moves, turns and is lit differently. Shapes: h x w patches, D width, C label channels, H x W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError
from imprint.data.davis import Video, VideoSource
from imprint.evals.protocol import EvalData, Protocol, ProtocolConfig, timed
from imprint.evals.report import Report
from imprint.evals.represent import resting
from imprint.evals.video import open_clips
from imprint.evals.video_classifier import PatchClassifier, fit_patches
from imprint.evals.video_frames import Eyes, FrameConfig, patch_labels
from imprint.evals.video_report import (
    Ids,
    Track,
    first_mask,
    full_size,
    ids_of,
    report,
    score_sequence,
    scored_frames,
)
from imprint.evals.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class OneShotConfig(FrameConfig):
    """The one-shot experiment: which frame is given, and what is fitted to it.

    A patch's target is the share of its pixels that each object has. Probabilities of patches are interpolated
    bilinearly to the annotation's size, the most probable object wins, and every other annotated frame counts.

    Attributes:
        annotated: position of the frame whose mask is given; negatives count back.
        hidden: width of the classifier's hidden layer; 0 is multinomial logistic regression.
        penalty: on its squared weights.
        steps: most iterations of L-BFGS.
    """

    annotated: int = 0
    hidden: int = 0
    penalty: float = 1e-3
    steps: int = 200

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if self.hidden < 0 or self.penalty < 0 or self.steps < 1:
            raise ConfigError("--hidden and --penalty must be 0 or more, --steps at least 1.")


class VideoOneShot(Protocol):
    """Fit a patch classifier to one annotated frame of each video and score it on all others."""

    name: ClassVar[str] = "video_oneshot"
    Config: ClassVar[type[ProtocolConfig]] = OneShotConfig

    @classmethod
    def open(cls, spec: Any, config: Any) -> VideoSource:
        """Return the sequences of a folder or zip; see `data.davis`."""
        return open_clips(spec, config)

    def run(self, encoder: Encoder, data: EvalData, config: OneShotConfig | None = None) -> Report:
        """Return J&F (main) and mean, recall and decay of J and F in percent; intervals resample sequences.

        Raises:
            DataError: for unreadable frames or masks, or sequences that cannot be scored.
            ConfigError: for an annotated frame that a sequence does not have, or a map that the encoder does not have.
            HealthError: when the encoder's features are not finite.
        """
        config = config or OneShotConfig()
        source: VideoSource = data.train
        eyes = Eyes(encoder, data.normalise, config)
        workspace = Workspace.open(self.name, encoder, data, config)
        cost: dict[str, float] = {}
        tracks = []
        with resting(eyes.encoder, eyes.device), timed(cost, "videos_s"):
            for clip in source.sequences:
                found = workspace.recall(clip.name)
                if found is None:
                    given = _position(clip, config.annotated)
                    ids, objects = first_mask(clip, given)
                    scored = scored_frames(clip, given, without_ends=False)
                    with timed(cost, "fit_s"):
                        model = learned(clip, given, ids, objects, eyes, config)
                    seen = classified(clip, given, objects, eyes, model)
                    found = dataclasses.asdict(score_sequence(clip, given, objects, scored, seen, config))
                    workspace.remember(clip.name, found)
                tracks.append(Track(**found))
        cost["images"] = float(eyes.looked)
        result = report(self.name, encoder.name, source, tracks, config, cost)
        workspace.clear()
        return result


def learned(
    clip: Video, given: int, ids_HW: Ids, objects: Sequence[int], eyes: Eyes, config: OneShotConfig
) -> PatchClassifier:
    """Return the classifier fitted to the patches of the given frame."""
    map_hwD = eyes.look([clip.frame(given)])[0]
    targets_hwC = patch_labels(ids_HW, objects, *map_hwD.shape[:2], shares=True).to(map_hwD.device)
    return fit_patches(
        map_hwD.flatten(0, 1), targets_hwC.flatten(0, 1),
        hidden=config.hidden, penalty=config.penalty, steps=config.steps, seed=config.seed,
    )  # fmt: skip


@torch.no_grad()
def classified(
    clip: Video, given: int, objects: Sequence[int], eyes: Eyes, model: PatchClassifier
) -> Iterator[tuple[int, npt.NDArray[np.uint8], Ids]]:
    """Yield (position, frame, predicted ids) of all frames but the given one, in order."""
    for i, frame, map_hwD in eyes.watch(clip, [i for i in range(len(clip)) if i != given]):
        yield i, frame, ids_of(full_size(model(map_hwD).softmax(-1), *clip.shape), objects)


def _position(clip: Video, annotated: int) -> int:
    if not -len(clip) <= annotated < len(clip):
        raise ConfigError(f"--annotated {annotated}: sequence '{clip.name}' has {len(clip)} frames, from 0.")
    return annotated % len(clip)
