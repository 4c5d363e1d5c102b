"""From predicted masks to scores, and from the scores of sequences to a report.

Shapes: H x W pixels, K objects, T scored frames, S sequences.
"""

from __future__ import annotations

import base64
import dataclasses
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from imprint.core.errors import DataError
from imprint.data.davis import VOID, Video, VideoSource
from imprint.evals.intervals import F64, bootstrap
from imprint.evals.report import Figure, Metric, Report
from imprint.evals.video_frames import FrameConfig
from imprint.ops.video_scores import contour_accuracy, course, region
from imprint.viz.charts import Chart, Series, draw
from imprint.viz.colours import category, rgb
from imprint.viz.video_strip import film, overlay, strip

Ids = npt.NDArray[np.uint8]
STRIPS = 12
LINES = 3
MEASURES = ("mean", "recall", "decay")


@dataclass
class Track:
    """What was predicted in one sequence and how good it is; JSON-ready by `asdict`.

    Attributes:
        name: of the sequence.
        given: position of the frame whose mask was given.
        objects: numbers of the K objects in that mask.
        frames: positions of the scored frames.
        region: J of every object in every scored frame, K lists.
        contour: F likewise.
        shown: predicted masks for the figures, packed, by position.
        shape: of the masks.
    """

    name: str
    given: int
    objects: list[int]
    frames: list[int]
    region: list[list[float]]
    contour: list[list[float]]
    shown: dict[str, str]
    shape: tuple[int, int]

    @property
    def quality(self) -> npt.NDArray[np.float64]:
        """J&F over frames, the mean of both measures and all objects, float64 (T,)."""
        return np.asarray((np.mean(self.region, 0) + np.mean(self.contour, 0)) / 2, dtype=np.float64)


def first_mask(video: Video, position: int = 0) -> tuple[Ids, list[int]]:
    """Return the mask that is given to a protocol and the numbers of its objects.

    Raises:
        DataError: when the frame has no mask, or its mask no object.
    """
    ids = video.mask(position)
    if ids is None:
        have = [i for i, mask in enumerate(video.masks) if mask is not None]
        raise DataError(f"frame {position} of sequence '{video.name}' has no mask; frames with one: {have[:20]}.")
    objects = [k for k in np.unique(ids).tolist() if k not in (0, VOID)]
    if not objects:
        raise DataError(f"the mask {video.masks[position]} of sequence '{video.name}' shows no object.")
    return ids, objects


def score_sequence(
    video: Video,
    given: int,
    objects: Sequence[int],
    scored: Sequence[int],
    predictions: Iterable[tuple[int, npt.NDArray[np.uint8], Ids]],
    config: FrameConfig,
) -> Track:
    """Score predictions as they come and write what the configuration asks for; no frame is kept.

    Args:
        video: the sequence.
        given: position of the frame whose mask was given.
        objects: numbers of the objects.
        scored: positions that count.
        predictions: (position, frame, predicted ids) of all other frames, in order.
        config: what to show and to write.
    """
    picked = {scored[round(i)] for i in np.linspace(0, len(scored) - 1, min(config.shown, len(scored)))}
    wanted = set(scored)
    track = Track(
        video.name, given, list(objects), [], [[] for _ in objects], [[] for _ in objects], {}, video.shape
    )  # fmt: skip

    def watched() -> Iterator[npt.NDArray[np.uint8]]:
        for i, frame, ids in predictions:
            if i in wanted:
                truth = video.mask(i)
                if truth is not None:
                    track.frames.append(i)
                    pair = torch.from_numpy(ids), torch.from_numpy(truth)
                    for rows, measure in ((track.region, region), (track.contour, contour_accuracy)):
                        for row, value in zip(rows, measure(*pair, objects).tolist(), strict=True):
                            row.append(value)
            if i in picked:
                track.shown[str(i)] = base64.b64encode(zlib.compress(ids.tobytes(), 6)).decode()
            if config.masks_out:
                write_mask(ids, Path(config.masks_out) / video.name / f"{Path(video.frames[i]).stem}.png")
            yield overlay(frame, ids) if config.films_out else frame

    if config.films_out:
        film(watched(), Path(config.films_out) / f"{Path(video.name).name}.mp4")
    else:
        for _ in watched():
            pass
    return track


def scored_frames(video: Video, given: int, *, without_ends: bool) -> list[int]:
    """Return the positions of frames that count: those with a mask, but not the given one.

    Args:
        video: the sequence.
        given: position of the frame whose mask was given.
        without_ends: leave out the first and the last frame too, as the DAVIS toolkit does (the last one stays in
            where nothing else would be left).

    Raises:
        DataError: when no frame is left.
    """
    have = [i for i, mask in enumerate(video.masks) if mask is not None and i != given]
    inner = [i for i in have if 0 < i < len(video) - 1] if without_ends else have
    if not (inner or have):
        raise DataError(
            f"sequence '{video.name}' has no mask but the one of frame {given}; nothing can be scored. "
            "Leave it out with --sequences."
        )
    return inner or have


def full_size(labels_hwC: Tensor, height: int, width: int) -> Tensor:
    """Return labels of patches, (h, w, C), at every pixel by bilinear interpolation, (C, H, W)."""
    maps_1Chw = labels_hwC.permute(2, 0, 1)[None]
    return F.interpolate(maps_1Chw, (height, width), mode="bilinear", align_corners=False)[0]


def ids_of(labels_CHW: Tensor, objects: Sequence[int]) -> Ids:
    """Return the number of the object with the largest label at every pixel, uint8 (H, W); of equals the first."""
    # One pass per channel over whole planes: argmax over the strided first axis takes 20 times as long.
    best_HW = labels_CHW[0].clone()
    ids_HW = torch.zeros_like(best_HW, dtype=torch.uint8)
    for channel_HW, k in zip(labels_CHW[1:], objects, strict=True):
        ids_HW.masked_fill_(channel_HW > best_HW, k)
        torch.maximum(best_HW, channel_HW, out=best_HW)
    return np.asarray(ids_HW.cpu().numpy(), dtype=np.uint8)


def write_mask(ids_HW: Ids, path: Path) -> None:
    """Write a mask as a palette PNG whose indices are the numbers of the objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids_HW)
    image.putpalette([0, 0, 0, *(channel for k in range(254) for channel in rgb(category(k))), 255, 255, 255])
    image.save(path)


def report(
    protocol: str,
    encoder: str,
    source: VideoSource,
    tracks: Sequence[Track],
    config: FrameConfig,
    cost: dict[str, float],
) -> Report:
    """Return the report over all sequences: J&F (main), J and F with recall and decay, per sequence and over time."""
    sequences: dict[str, Any] = {}
    rows_SOM: list[list[list[float]]] = []
    for track in tracks:
        own = []
        for k, js, fs in zip(track.objects, track.region, track.contour, strict=True):
            j, f = course(js), course(fs)
            own.append([100 * getattr(c, m) for c in (j, f) for m in MEASURES])
            named = {f"{letter}_{m}": round(v, 3) for (letter, m), v in zip(_NAMES, own[-1], strict=True)}
            sequences.setdefault(track.name, {"frames": len(track.frames), "objects": {}})["objects"][str(k)] = named
        rows_SOM.append(own)
        mean = np.mean(own, 0)
        sequences[track.name]["jf"] = round(float(mean[0] + mean[3]) / 2, 3)
    metrics = {"jf": _over_sequences([[[(o[0] + o[3]) / 2] for o in own] for own in rows_SOM], 0, config.seed)}
    for column, (letter, measure) in enumerate(_NAMES):
        metrics[f"{letter}_{measure}"] = _over_sequences(rows_SOM, column, config.seed)
    distance, mean_D, count_D = temporal(tracks)
    return Report(
        protocol=protocol,
        encoder=encoder,
        data={
            "train": {
                "spec": source.spec,
                "count": sum(len(video) for video in source.sequences),
                "sequences": len(source),
                "fingerprint": source.fingerprint,
            }
        },
        metrics=metrics,
        main="jf",
        details={
            "sequences": sequences,
            "objects": sum(len(track.objects) for track in tracks),
            "over_time": {"distance": distance, "jf": [round(v, 3) for v in mean_D], "sequences": count_D},
            "settings": dataclasses.asdict(config),
        },
        cost=cost,
        figures=figures(source, tracks, (distance, mean_D)),
    )


_NAMES = tuple((letter, measure) for letter in ("j", "f") for measure in MEASURES)


def _over_sequences(rows_SOM: Sequence[Sequence[Sequence[float]]], column: int, seed: int) -> Metric:
    """Return the mean over objects with an interval that resamples whole sequences (their objects share frames)."""
    items = [(sum(o[column] for o in own), len(own)) for own in rows_SOM]
    return bootstrap(items, _share, seed=seed)


def _share(sums_R2: F64) -> F64:
    return np.asarray(sums_R2[:, 0] / sums_R2[:, 1], dtype=np.float64)


def temporal(tracks: Sequence[Track]) -> tuple[list[int], list[float], list[int]]:
    """Return distances from the given frame, the mean J&F in percent there, and how many sequences reach that far.

    A sequence with frames on both sides at one distance counts with their mean.
    """
    per_track: list[dict[int, float]] = []
    for track in tracks:
        away = np.abs(np.asarray(track.frames) - track.given)
        totals, counts = np.bincount(away, weights=track.quality), np.bincount(away)
        per_track.append({d: 100 * totals[d] / counts[d] for d in np.flatnonzero(counts).tolist()})
    distances = sorted(set().union(*per_track))
    values = [[own[d] for own in per_track if d in own] for d in distances]
    return distances, [float(np.mean(v)) for v in values], [len(v) for v in values]


def figures(source: VideoSource, tracks: Sequence[Track], mean: tuple[list[int], list[float]]) -> tuple[Figure, ...]:
    """Return the curve over time and a strip of each of the first sequences."""
    made = []
    ranked = sorted(tracks, key=lambda t: -float(t.quality.mean()))
    some = ranked if len(ranked) <= LINES else [ranked[0], ranked[len(ranked) // 2], ranked[-1]]
    lines = []
    if len(tracks) > 1:
        lines.append(Series("mean", tuple(map(float, mean[0])), tuple(mean[1])))
    for track in some:
        x, y, _ = temporal([track])
        lines.append(Series(_short(track.name), tuple(map(float, x)), tuple(y)))
    caption = "J&F over the distance in frames from the given mask"
    if len(tracks) > 1:
        kinds = "each sequence" if len(ranked) <= LINES else "the best, the median and the worst sequence"
        caption += f": the mean over the sequences that reach so far, and {kinds}"
    chart = Chart("J&F (%)", tuple(lines), " %", "frames from the given mask")
    made.append(Figure(name="over_time", caption=f"{caption}.", picture=draw(chart)))
    videos = {video.name: video for video in source.sequences}
    for number, track in enumerate(tracks[:STRIPS]):
        video = videos[track.name]
        at = sorted({track.given, *map(int, track.shown)})
        picture = strip(
            [video.frame(i) for i in at],
            [_unpack(track.shown.get(str(i)), track.shape) for i in at],
            [video.mask(i) for i in at],
        )
        said = f"Sequence {track.name}, J&F {100 * float(track.quality.mean()):.1f} %: frames {', '.join(map(str, at))}"
        said += f"; predictions in colour, true contours in white; the mask of frame {track.given} was given."
        made.append(Figure(name=f"strip_{number:02d}", caption=said, picture=picture))
    return tuple(made)


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:14]}.."


def _unpack(packed: str | None, shape: tuple[int, int]) -> Ids | None:
    if packed is None:
        return None
    flat = np.frombuffer(zlib.decompress(base64.b64decode(packed)), dtype=np.uint8)
    return np.asarray(flat.reshape(shape), dtype=np.uint8)
