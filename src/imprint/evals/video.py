"""Video object segmentation without training: the masks of the first frame carried on by the likeness of patches.

Shapes: N frames of context, h x w patches, D width, C label channels, H x W pixels.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError
from imprint.data.davis import Video as Clip
from imprint.data.davis import VideoSource, open_videos
from imprint.evals.protocol import EvalData, Protocol, ProtocolConfig, timed
from imprint.evals.report import Report
from imprint.evals.represent import resting
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
from imprint.ops.label_propagation import Window, propagate, stretched


@dataclass(frozen=True)
class Preset:
    """What a published protocol fixes; fields as in VideoConfig and `ops.label_propagation.propagate`."""

    frames: int
    topk: int
    radius: int
    temperature: float
    window: Window
    first_anywhere: bool
    stretch: bool


PRESETS: dict[str, Preset] = {
    "dino": Preset(7, 5, 12, 0.1, "square", first_anywhere=False, stretch=True),
    "crw": Preset(20, 10, 12, 0.05, "disc", first_anywhere=True, stretch=False),
}
"""`dino`: eval_video_segmentation.py of the public code (arXiv 2104.14294, Sec. 4.2.2); `crw`: the test command of
the public code (ajabri/videowalk, README; arXiv 2006.14613), whose first frame is seen everywhere."""


@dataclass(frozen=True, kw_only=True)
class VideoConfig(FrameConfig):
    """Label propagation on DAVIS: how far back and how widely a patch looks for its likes.

    Both presets keep the first frame and the frames before the current one, each once (CRW's code repeats the first
    frame until enough others have passed). Scores are the DAVIS 2017 toolkit's for the semi-supervised task: the first
    and the last frame do not count.

    Attributes:
        preset: `dino` (7 frames, top 5, square of radius 12, temperature 0.1) or `crw` (20, top 10, disc, 0.05).
        frames: frames before the current one that are looked at, besides the first; None takes the preset's.
        topk: nearest patches, over all these frames together; None takes the preset's.
        radius: of the neighbourhood, in patches, 0 for none; None takes the preset's.
        temperature: of the softmax over them; None takes the preset's.
        shares: a patch of the first mask carries the share of each object; else the object at its centre (DINO).
    """

    preset: Literal["dino", "crw"] = "dino"
    frames: int | None = None
    topk: int | None = None
    radius: int | None = None
    temperature: float | None = None
    shares: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        settled = self.settled()
        if settled.frames < 0 or settled.topk < 1 or settled.radius < 0 or settled.temperature <= 0:
            raise ConfigError("--frames and --radius must be 0 or more, --topk at least 1, --temperature positive.")

    def settled(self) -> Preset:
        """Return the preset with what was given in its place.

        Raises:
            ConfigError: for an unknown preset.
        """
        if self.preset not in PRESETS:
            raise ConfigError(f"unknown preset '{self.preset}'. Known: {', '.join(PRESETS)}.")
        own = {name: getattr(self, name) for name in ("frames", "topk", "radius", "temperature")}
        return dataclasses.replace(PRESETS[self.preset], **{k: v for k, v in own.items() if v is not None})


def open_clips(spec: Any, config: FrameConfig) -> VideoSource:
    """Return the videos that SRC names.

    Raises:
        DataError: for what holds none; see `open_videos`.
        ConfigError: for several sources.
    """
    if isinstance(spec, VideoSource):
        return spec
    if not isinstance(spec, (str, os.PathLike)):
        raise ConfigError("videos are read from one folder or zip; give one --train SRC.")
    return open_videos(spec, config.sequences)


class Video(Protocol):
    """Carry the masks of the first frame through each video by label propagation and score them."""

    name: ClassVar[str] = "video"
    Config: ClassVar[type[ProtocolConfig]] = VideoConfig

    @classmethod
    def open(cls, spec: Any, config: Any) -> VideoSource:
        """Return the sequences of a folder or zip; see `data.davis`."""
        return open_clips(spec, config)

    def run(self, encoder: Encoder, data: EvalData, config: VideoConfig | None = None) -> Report:
        """Return J&F (main) and mean, recall and decay of J and F in percent; intervals resample sequences.

        Raises:
            DataError: for unreadable frames or masks, or sequences that cannot be scored.
            ConfigError: for a stage, layers or sides that the encoder does not have.
        """
        config = config or VideoConfig()
        source: VideoSource = data.train
        eyes = Eyes(encoder, data.normalise, config)
        workspace = Workspace.open(self.name, encoder, data, config)
        cost: dict[str, float] = {}
        tracks = []
        with resting(eyes.encoder, eyes.device), timed(cost, "videos_s"):
            for clip in source.sequences:
                found = workspace.recall(clip.name)
                if found is None:
                    ids, objects = first_mask(clip)
                    scored = scored_frames(clip, 0, without_ends=True)
                    seen = carried(clip, ids, objects, eyes, config.settled(), shares=config.shares)
                    found = dataclasses.asdict(score_sequence(clip, 0, objects, scored, seen, config))
                    workspace.remember(clip.name, found)
                tracks.append(Track(**found))
        cost["images"] = float(eyes.looked)
        result = report(self.name, encoder.name, source, tracks, config, cost)
        result.details["propagation"] = dataclasses.asdict(config.settled())
        workspace.clear()
        return result


@torch.no_grad()
def carried(
    clip: Clip, ids_HW: Ids, objects: Sequence[int], eyes: Eyes, how: Preset, *, shares: bool = False
) -> Iterator[tuple[int, npt.NDArray[np.uint8], Ids]]:
    """Yield (position, frame, predicted ids) of all frames but the first, in order.

    Only the features and labels of the first frame and of the `how.frames` last ones are kept.
    """
    features_NhwD = labels_NhwC = torch.empty(0)
    for i, frame, map_hwD in eyes.watch(clip, range(len(clip))):
        target_hwD = F.normalize(map_hwD, dim=-1)
        if i == 0:
            first_hwC = patch_labels(ids_HW, objects, *target_hwD.shape[:2], shares=shares).to(target_hwD.device)
            slots = 1 + min(how.frames, len(clip) - 1)
            features_NhwD = target_hwD.new_zeros(slots, *target_hwD.shape)
            labels_NhwC = first_hwC.new_zeros(slots, *first_hwC.shape)
            features_NhwD[0], labels_NhwC[0] = target_hwD, first_hwC
            continue
        filled = min(i, len(features_NhwD))
        soft_hwC = propagate(
            target_hwD,
            features_NhwD[:filled],
            labels_NhwC[:filled],
            topk=how.topk,
            radius=how.radius,
            temperature=how.temperature,
            window=how.window,
            first_anywhere=how.first_anywhere,
        )
        if len(features_NhwD) > 1:
            slot = 1 + (i - 1) % (len(features_NhwD) - 1)
            features_NhwD[slot], labels_NhwC[slot] = target_hwD, soft_hwC
        large_CHW = full_size(soft_hwC, *clip.shape)
        yield i, frame, ids_of(stretched(large_CHW) if how.stretch else large_CHW, objects)
