"""What representations know, painted: samples of RCDM runs side by side, told the same images, from the same noise.

What all samples of an image share its representation keeps; what differs among them it drops (arXiv 2112.09164).
Shape suffixes: B images, S samples, C channels, H x W pixels, D width.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imprint.core.errors import ConfigError, DataError
from imprint.data.batch import Normalise
from imprint.data.loader import sweep
from imprint.data.sources import Source, spread
from imprint.data.views import CenterCrop, View
from imprint.evals.represent import pick_device
from imprint.methods.rcdm import RCDM, interpolated
from imprint.ops.reciprocal_rank import condition_ranks
from imprint.train.run import Run
from imprint.train.stages import rebuilt
from imprint.viz.eyes import SourceLike, open_images, pick_rows
from imprint.viz.lettering import lettered
from imprint.viz.page import Section, cards, figure, page, table, write_page
from imprint.viz.raster import Picture, picture, resized, save_png

CHUNK = 64
"""Images that are painted at a time."""


@dataclass(frozen=True)
class Painter:
    """An RCDM run, ready to paint.

    Attributes:
        name: of its folder.
        method: with its final weights, in evaluation mode.
        normalise: pixel normalisation of the run.
        device: where it runs.
    """

    name: str
    method: RCDM
    normalise: Normalise
    device: torch.device

    @property
    def side(self) -> int:
        """Side of the view that the encoder is shown, in pixels."""
        return self.method.view_size

    @torch.no_grad()
    def conditions(self, images_BCHW: Tensor) -> Tensor:
        """Return representations (B, D) of normalised images."""
        parts = [self.method.conditioner(part.to(self.device)) for part in images_BCHW.split(CHUNK)]
        return torch.cat(parts)

    def paint(self, condition_SD: Tensor, noise_S: Tensor, steps: int | None = None) -> Tensor:
        """Return normalised images (S, C, size, size); see `RCDM.sample`."""
        pairs = zip(condition_SD.split(CHUNK), noise_S.to(self.device).split(CHUNK), strict=True)
        return torch.cat([self.method.sample(c, n, steps=steps) for c, n in pairs])

    def pictures(self, images_SCHW: Tensor, side: int) -> list[Picture]:
        """Return normalised images as pictures."""
        shown = self.normalise.undo(images_SCHW.float()).cpu().numpy()
        return [resized(picture(image, channels_first=True), side, side, smooth=False) for image in shown]


@dataclass(frozen=True)
class Faithfulness:
    """What became of conditions in samples.

    Attributes:
        top1: share of samples whose representation is nearer to their own condition than to any other.
        mrr: mean reciprocal rank of the own condition (RCDM's measure); 1 is best.
        among: number of conditions; chance is 1 / among for `top1`.
        variety: deviation of a pixel among samples of one condition, as a share of the range.
    """

    top1: float
    mrr: float
    among: int
    variety: float


def open_painter(run: str | os.PathLike[str], device: str = "auto") -> Painter:
    """Load an RCDM run.

    Raises:
        ConfigError: for a folder that is no RCDM run.
        CheckpointError: when it has no checkpoint or encoder yet.
    """
    found = Run.open(Path(run))
    if found.config.name != "rcdm":
        raise ConfigError(f"'{run}' is a {found.config.name} run; only rcdm runs paint: imprint pretrain rcdm.")
    method = rebuilt(found)
    assert isinstance(method, RCDM)
    method.eval()
    place = pick_device(device, method)
    return Painter(
        Path(run).expanduser().resolve().name,
        method.to(place),
        Normalise(found.config.data.mean, found.config.data.std),
        place,
    )


def faithfulness(painter: Painter, images_BCHW: Tensor, *, samples: int = 2, steps: int | None = None) -> Faithfulness:
    """Paint each image's representation, encode what came out, and see whose it is.

    Args:
        painter: the run.
        images_BCHW: normalised images, as the encoder is shown them.
        samples: per image, at least 2.
        steps: of the sampler; None takes the run's.

    Raises:
        DataError: for fewer than two images.
    """
    condition_BD = painter.conditions(images_BCHW)
    count = len(condition_BD)
    own_S = torch.arange(count, device=painter.device).repeat_interleave(samples)
    # Every sample has noise of its own, so that likeness can come from the condition alone.
    painted = painter.paint(condition_BD[own_S], torch.arange(len(own_S)), steps)
    sampled_SD = torch.cat([painter.method.represent(part) for part in painted.split(CHUNK)])
    ranks_S = condition_ranks(sampled_SD, condition_BD, own_S).double()
    pixels = painter.normalise.undo(painted.float()).unflatten(0, (count, samples))
    return Faithfulness(
        top1=float((ranks_S == 1).double().mean()),
        mrr=float((1.0 / ranks_S).mean()),
        among=count,
        variety=float(pixels.std(1).mean()) if samples > 1 else 0.0,
    )


def build_rcdm_page(
    runs: Sequence[str | os.PathLike[str]],
    data: SourceLike,
    out: str | os.PathLike[str],
    *,
    images: int = 8,
    samples: int = 4,
    measured: int = 64,
    steps: int | None = None,
    side: int = 64,
    device: str = "auto",
    workers: int | None = None,
) -> Path:
    """Write a page that shows what the representations of RCDM runs keep (or a PNG file of its first picture).

    Args:
        runs: one or several, say one told the backbone and one told the projector of the same encoder.
        data: images to look at; best ones that no run was trained on.
        out: the file, `.html` or `.png`.
        images: how many to show, spread evenly over the source.
        samples: how many to paint of each.
        measured: images that the measures are taken on; below 2 leaves them out.
        steps: of the sampler; None takes each run's own.
        side: of an image on the page, in pixels.
        device: auto, cpu, cuda or mps.
        workers: loader threads; None measures the machine.

    Raises:
        ConfigError: for folders that are no RCDM runs, or no runs at all.
        DataError: for images that cannot be read.
    """
    if not runs:
        raise ConfigError("name at least one rcdm run.")
    if min(images, samples, side) < 1:
        raise ConfigError("images, samples and side must be 1 or more.")
    painters = [open_painter(run, device) for run in runs]
    sources = [open_images(data, painter.method.encoder) for painter in painters]
    rows = pick_rows(sources[0], images)
    inputs = [_inputs(p, s, rows, workers) for p, s in zip(painters, sources, strict=True)]
    shown = samples_picture(painters, inputs, samples=samples, steps=steps, side=side)
    if Path(out).suffix.lower() == ".png":
        return save_png(shown, Path(out))
    about = (
        "Each row is an image of the data. Every other column is one noise, the same for all images and all runs: what "
        "stays along a row is what the representation keeps, what changes it has dropped."
    )
    sections = [Section("samples", "Samples", figure(shown, "samples of RCDM", about, kind="png"))]
    if len(rows) > 1:
        walk = walks_picture(painters, inputs, steps=steps, side=side)
        told = "From one image's representation to another's in a straight line; the noise stays."
        sections.append(Section("between", "Between two images", figure(walk, "interpolations", told, kind="png")))
    few = spread(len(sources[0]), measured)
    lead = ""
    if measured > 1 and len(few) > 1:
        found = [
            faithfulness(p, _inputs(p, s, few, workers), steps=steps) for p, s in zip(painters, sources, strict=True)
        ]
        lead = cards(
            [(f"{p.name}: own condition found", f"{100 * f.top1:.0f} %", f"chance {100 / f.among:.1f} %")
             for p, f in zip(painters, found, strict=True)]
        )  # fmt: skip
        sections.append(Section("measures", "Measures", _measures(painters, found)))
    document = page(
        title="What the representation knows",
        subtitle=f"{sources[0].spec} painted by {', '.join(p.name for p in painters)}",
        lead=lead,
        sections=sections,
        footer=f"Written {datetime.now().astimezone().isoformat(sep=' ', timespec='minutes')} by Imprint.",
    )
    return write_page(document, Path(out))


def samples_picture(
    painters: Sequence[Painter], inputs: Sequence[Tensor], *, samples: int, steps: int | None = None, side: int = 64
) -> Picture:
    """Return a sheet: a row an image; the image, then each run's samples, one column a noise."""
    count = len(inputs[0])
    columns = ["image"]
    first = painters[0]
    cells = [
        [p] for p in first.pictures(first.method.pixels.from_unit(first.method.target(_on(first, inputs[0]))), side)
    ]
    for painter, images in zip(painters, inputs, strict=True):
        condition_BD = painter.conditions(images)
        own_S = torch.arange(count, device=painter.device).repeat_interleave(samples)
        noise_S = torch.arange(samples).repeat(count)
        pictures = painter.pictures(painter.paint(condition_BD[own_S], noise_S, steps), side)
        for b in range(count):
            cells[b] += pictures[b * samples : (b + 1) * samples]
        columns += [f"noise {n + 1}" for n in range(samples)]
    title = "; then ".join(f"{painter.method.cfg.condition} ({painter.name})" for painter in painters)
    return lettered(cells, columns=columns, title=title)


def walks_picture(
    painters: Sequence[Painter], inputs: Sequence[Tensor], *, steps: int | None = None, side: int = 64, count: int = 8
) -> Picture:
    """Return a sheet: for each run a row from the first to the second image, and one from the third to the fourth."""
    cells: list[list[Picture]] = []
    names: list[str] = []
    for painter, images in zip(painters, inputs, strict=True):
        condition_BD = painter.conditions(images)
        ends = painter.pictures(painter.method.pixels.from_unit(painter.method.target(_on(painter, images))), side)
        for a in range(0, min(4, len(images) - 1), 2):
            walk_BD = interpolated(condition_BD[a], condition_BD[a + 1], count)
            painted = painter.paint(walk_BD, torch.zeros(count, dtype=torch.int64), steps)
            cells.append([ends[a], *painter.pictures(painted, side), ends[a + 1]])
            names.append(f"{painter.name} ({painter.method.cfg.condition}): image, samples between, image")
    return lettered(cells, names=names)


def _measures(painters: Sequence[Painter], found: Sequence[Faithfulness]) -> str:
    head = ["run", "told", "values", "own condition found", "chance", "mean reciprocal rank", "variety of samples"]
    rows = [
        [p.name, p.method.cfg.condition, p.method.conditioner.width, f"{100 * f.top1:.1f} %", f"{100 / f.among:.1f} %",
         f"{f.mrr:.3f}", f"{f.variety:.3f}"]
        for p, f in zip(painters, found, strict=True)
    ]  # fmt: skip
    told = (
        '<p class="about">Samples are encoded again: is the representation of a sample nearer to the one it was '
        "painted from than to those of the other images? Variety is the deviation of a pixel among samples of one "
        "representation.</p>"
    )
    return told + table(head, rows, numeric=(2, 3, 4, 5, 6))


def _inputs(painter: Painter, source: Source, rows: npt.ArrayLike, workers: int | None) -> Tensor:
    """Return normalised images as the run saw them in training, but for the flip."""
    wanted = np.asarray(rows, dtype=np.int64)
    view = View(name="global", crop=CenterCrop(size=painter.side, resize=painter.side))
    kept = [
        batch.views["global"][0]
        for batch in sweep(source.subset(wanted), view, batch_size=32, workers=workers, bad_limit=1.0)
    ]
    if not kept:
        raise DataError(f"not one of the {len(wanted)} images chosen from '{source.spec}' can be read.")
    return painter.normalise(torch.cat(kept)[:, : painter.method.channels])


def _on(painter: Painter, images_BCHW: Tensor) -> Tensor:
    return images_BCHW.to(painter.device)
