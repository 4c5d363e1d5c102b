"""Pseudo-labels: what the network of the run before says about unlabelled images, once, before the first step.

It is kept in the run folder (`pseudo_labels.safetensors`, and counts in `pseudo_labels.json`), so that a run that was
killed goes on with the same labels, and so that a report can say what the student was given.

Letters: N unlabelled images, U of them used, E entries (an image that is repeated has several), K classes, B a batch.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from imprint.backbones.stored import write_aside
from imprint.core.errors import CheckpointError, ConfigError, DataError, ImprintError
from imprint.data.batch import Normalise
from imprint.data.combine import Concat
from imprint.data.labelled import labelled_part
from imprint.data.loader import sweep
from imprint.data.pseudo_labels import PseudoLabelled, PseudoLabels, balanced, enough
from imprint.data.sources import Labels, Source, open_source
from imprint.data.view_recipes import evaluation_views
from imprint.dist.collectives import barrier, broadcast_object
from imprint.dist.world import World
from imprint.losses.soft_targets import UNLABELLED
from imprint.methods.base import Method
from imprint.methods.catalog import method_class
from imprint.train.config import RunConfig
from imprint.train.precision import steady_convolutions
from imprint.train.run import Run
from imprint.train.stages import rebuilt, started_from
from imprint.train.tensorfile import sha256_of, write_tensors

LABELS, COUNTS = "pseudo_labels.safetensors", "pseudo_labels.json"
ROWS = 256
"""Images that the teacher sees at a time. Processes divide the images by whole batches of this size, so that each image
is judged in the same company for any number of processes, and what is said is the same to the bit."""

Arrays = dict[str, np.ndarray[Any, Any]]


def with_pseudo_labels(
    config: RunConfig, whole: Source, images: Source, folder: Path, world: World, *, begun: bool
) -> Source:
    """Return the images of a run whose method wants pseudo-labels, or the images as they are for all others.

    The unlabelled images are those of `images` whose label is hidden (`data.labelled.rest unlabelled`), and those of
    `data.unlabelled`. Every process must call it.

    Args:
        config: the run's.
        whole: the labelled source with all labels that are known; those that the run hides say how good the
            pseudo-labels are, and nothing else.
        images: the source with the labels that the run may know.
        folder: the run's.
        world: this process among others.
        begun: whether there is a checkpoint, whose training must go on with the labels it had.

    Raises:
        ConfigError: when there is no run to start from, its network has no classifier, nothing is unlabelled, or
            `data.unlabelled` is given to a method that does not use it.
        DataError: when no image is confident enough, or the images cannot be opened.
        CheckpointError: when the labels of a run that has begun are gone or of other images.
    """
    cls = method_class(config.name)
    wanted = cls.pseudo_labels(config.method)
    if wanted is None:
        if config.data.unlabelled and "pseudo_labels" not in vars(cls):
            raise ConfigError(
                f"{config.name} makes no pseudo-labels; leave --data.unlabelled out, or join it to --data."
            )
        return images
    run = started_from(config, folder)
    if run is None:
        raise ConfigError(f"{config.name} needs a teacher: the run to start from (--start RUN).")
    labelled, unlabelled, truth_N = parted(config, whole, images)
    identity = {"teacher": _digest_of(run), "images": unlabelled.fingerprint, **_words(wanted), "seed": config.seed}
    state = broadcast_object(_state(folder / LABELS, identity) if world.main else "")
    if begun and state != "whole":
        raise CheckpointError(
            f"the pseudo-labels of {folder} ({LABELS}) are {state}, and its training began with them. Put the file and "
            "the images back as they were, or start again with --out."
        )
    if state != "whole":
        _make(config, run, wanted, labelled, unlabelled, truth_N, folder, world, identity)
    found = read(folder / LABELS)
    first, second = wanted.rows(config.batch_size)
    entries_E = enough(np.arange(found["entries"].size), second)
    return PseudoLabelled(
        labelled.subset(enough(np.arange(len(labelled)), first)),
        unlabelled,
        found["entries"][entries_E],
        found["decisions"][entries_E],
        found["rows"][entries_E] if wanted.soft else None,
        found["soft"] if wanted.soft else None,
        wanted,
    )


def parted(config: RunConfig, whole: Source, images: Source) -> tuple[Source, Source, Labels]:
    """Return the labelled images, the unlabelled ones, and the classes of these, -1 where nobody knows them.

    Raises:
        ConfigError: when no image is unlabelled.
        DataError: when there are no labels, or `data.unlabelled` cannot be opened.
    """
    if images.labels is None:
        raise DataError(f"{config.name} learns from labels, and '{images.spec}' has none: use one folder per class.")
    known = images.labels != UNLABELLED
    parts, truths = [], []
    if not known.all():
        hidden = np.flatnonzero(~known)
        parts.append(images.subset(hidden))
        truths.append(whole.labels[hidden] if whole.labels is not None and len(whole) == len(images) else None)
    if config.data.unlabelled:
        parts.append(open_source(config.data.unlabelled))
        truths.append(None)
    if not parts:
        raise ConfigError(
            f"{config.name} labels images, and all of '{images.spec}' are labelled. Name unlabelled ones by "
            "--data.unlabelled SRC, or hide labels: --stage-N.data.labelled.rest unlabelled with "
            "--data.labelled.per-class or --data.labelled.share."
        )
    unknown = [np.full(len(part), UNLABELLED) if t is None else t for part, t in zip(parts, truths, strict=True)]
    unlabelled = parts[0] if len(parts) == 1 else Concat(parts)
    return images.subset(np.flatnonzero(known)), unlabelled, np.concatenate(unknown)


def check_unlabelled(config: RunConfig, whole: Source, folder: Path, named: str) -> None:
    """Refuse a run that has nothing to pseudo-label, before a teacher is trained for it.

    Raises:
        ConfigError: when nothing is unlabelled, or a batch has no room for both kinds.
        DataError: when the images cannot be opened.
    """
    wanted = method_class(config.name).pseudo_labels(config.method)
    if wanted is None:
        return
    wanted.rows(config.batch_size)
    labelled = config.data.labelled
    if labelled is None or labelled.names is None:  # names may be those of an earlier stage, not drawn yet
        try:
            parted(config, whole, labelled_part(whole, labelled, folder)[0])
        except ImprintError as error:
            raise type(error)(f"{named}: {error}") from error


def _make(
    config: RunConfig,
    run: Run,
    wanted: PseudoLabels,
    labelled: Source,
    unlabelled: Source,
    truth_N: Labels,
    folder: Path,
    world: World,
    identity: dict[str, Any],
) -> None:
    """Let the teacher look at all images, each process at its part; the main one chooses and writes."""
    batches = -(-len(unlabelled) // ROWS)
    low, high = (min(len(unlabelled), batches * r // world.size * ROWS) for r in (world.rank, world.rank + 1))
    teacher = rebuilt(run).to(world.device)
    if world.device.type == "cpu":
        steady_convolutions(teacher)
    # As a part of both, since both have the channels of the wider one.
    own_images = Concat([labelled, unlabelled]).subset(len(labelled) + np.arange(low, high))
    part = asked(teacher, run.config, own_images, wanted, config)
    part["index"] += low
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / f".pseudo_labels.{world.rank}.npz"
    np.savez(own, **part)  # type: ignore[arg-type]
    barrier()
    problem: ImprintError | None = None
    if world.main:
        try:
            files = [folder / f".pseudo_labels.{rank}.npz" for rank in range(world.size)]
            parts = [dict(np.load(file)) for file in files]
            some = [p for p in parts if p["index"].size] or parts[:1]
            said = {name: np.concatenate([p[name] for p in some]) for name in part}
            _write(config, run, wanted, said, labelled, unlabelled, truth_N, folder, identity)
        except ImprintError as error:
            problem = error
    problem = broadcast_object(problem)
    own.unlink(missing_ok=True)
    if problem is not None:
        raise problem


@torch.inference_mode()
def asked(teacher: Method, its: RunConfig, images: Source, wanted: PseudoLabels, config: RunConfig) -> Arrays:
    """Return what a teacher says about images, without any noise: evaluation mode, the plain view (Sec. 2).

    Args:
        teacher: a method with a classifier.
        its: the configuration of the teacher's run: its image size and normalisation.
        images: N of them; damaged ones are left out.
        wanted: only distributions of images above `confidence` are returned.
        config: of the run that asks.

    Returns:
        `index` (int64), `decision` (int64) and `confidence` (float32) of every image that could be read; `soft`
        (float16, rows of the confident ones in the same order; no rows where only decisions are wanted).

    Raises:
        ConfigError: when the network has no classifier.
        DataError: when more images are damaged than allowed.
    """
    teacher.eval()
    device = next(teacher.parameters()).device
    normalise = Normalise(its.data.mean, its.data.std)
    parts: list[tuple[torch.Tensor, ...]] = []
    view = evaluation_views(its.encoder.image_size)
    for batch in sweep(images, view, batch_size=ROWS, workers=config.workers, bad_limit=config.data.bad_limit):
        ready = batch.prepared(device, normalise)
        logits_BK = teacher.classify(ready.views["eval"][0][:, : teacher.encoder.channels])
        if logits_BK is None:
            raise ConfigError(f"{its.name} has no classifier, so it cannot label images; start from a run that has.")
        confidence_B, decision_B = logits_BK.float().softmax(1).cpu().max(1)
        soft_BK = (logits_BK.float() / wanted.temperature).softmax(1).cpu()
        kept = confidence_B >= wanted.confidence if wanted.soft else torch.zeros(len(batch), dtype=torch.bool)
        parts.append((batch.index_B.clone(), decision_B, confidence_B, soft_BK[kept].half()))
    names = ("index", "decision", "confidence", "soft")
    if not parts:
        empty = (np.int64, np.int64, np.float32, np.float16)
        return {name: np.zeros((0, 0) if name == "soft" else 0, kind) for name, kind in zip(names, empty, strict=True)}
    return {name: torch.cat(columns).numpy() for name, columns in zip(names, zip(*parts, strict=True), strict=True)}


def _write(
    config: RunConfig,
    run: Run,
    wanted: PseudoLabels,
    said: Arrays,
    labelled: Source,
    unlabelled: Source,
    truth_N: Labels,
    folder: Path,
    identity: dict[str, Any],
) -> None:
    """Choose among what was said and write it: first the counts, then the labels, whose file makes it count."""
    classes = int(getattr(config.method, "classes", 0)) or int(said["decision"].max(initial=0)) + 1
    chosen_E = balanced(said["confidence"], said["decision"], classes, wanted, config.seed)
    if chosen_E.size == 0:
        most = float(said["confidence"].max(initial=0.0))
        raise DataError(
            f"the teacher is not confident enough of any of {len(unlabelled)} unlabelled images: {wanted.confidence:g} "
            f"is asked for and {most:.3g} is the most. Train the teacher longer, or start again with a lower "
            "--method.confidence."
        )
    used_U, where_E = np.unique(chosen_E, return_inverse=True)
    tensors = {
        "entries": said["index"][chosen_E],
        "decisions": said["decision"][chosen_E],
        "confidences": said["confidence"][chosen_E],
        "rows": where_E.astype(np.int64).reshape(-1),
    }
    if wanted.soft:
        row_N = np.cumsum(said["confidence"] >= wanted.confidence) - 1  # of each confident image in `soft`
        tensors["soft"] = said["soft"][row_N[used_U]]
    truth = truth_N[said["index"]]
    right = said["decision"] == truth
    known_U = truth[used_U] != UNLABELLED
    counts = np.bincount(said["decision"][used_U], minlength=classes)
    target = int(np.bincount(tensors["decisions"], minlength=classes).max())
    summary = {
        "teacher": os.path.relpath(run.path, folder),
        "labelled": len(labelled),
        "unlabelled": len(unlabelled),
        "damaged": len(unlabelled) - int(said["index"].size),
        "confident": int((said["confidence"] >= wanted.confidence).sum()),
        "used": int(used_U.size),
        "entries": int(chosen_E.size),
        "per_class": target,
        "classes": list(labelled.classes) if len(labelled.classes) == classes else [],
        "images_by_class": counts.tolist(),
        "mean_confidence": float(said["confidence"][used_U].mean()),
        "accuracy": float(right[used_U][known_U].mean()) if known_U.any() else None,
        "accuracy_of_all": float(right[truth != UNLABELLED].mean()) if (truth != UNLABELLED).any() else None,
        "wanted": asdict(wanted),
    }
    write_aside(folder / COUNTS, (json.dumps(summary, indent=2) + "\n").encode())
    aside = folder / f".{LABELS}.tmp"
    write_tensors(
        aside,
        {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()},
        {"identity": json.dumps(identity, sort_keys=True)},
    )
    aside.replace(folder / LABELS)


def read(path: Path) -> Arrays:
    """Return the stored arrays: `entries`, `decisions`, `confidences` and `rows` (E,), and `soft` (U, K) where kept.

    Raises:
        CheckpointError: for a file that cannot be read.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the pseudo-labels '{path}' cannot be read: {error}.") from error


def _state(path: Path, identity: dict[str, Any]) -> str:
    """Return what the stored labels are: whole, missing, damaged, or of another teacher, images or settings."""
    if not path.is_file():
        return "missing"
    try:
        with safe_open(path, framework="numpy") as file:
            stored = (file.metadata() or {}).get("identity")
    except (OSError, SafetensorError):
        return "damaged"
    same = stored == json.dumps(identity, sort_keys=True)
    return "whole" if same else "of another teacher, other images or other settings"


def _words(wanted: PseudoLabels) -> dict[str, Any]:
    """Return what the stored labels depend on; the ratio says only how they are mixed."""
    return {name: value for name, value in asdict(wanted).items() if name != "ratio"}


def _digest_of(run: Run) -> str:
    """Return the checksum of the teacher's final weights."""
    checkpoint = run.checkpoints.latest()
    if checkpoint is None:
        raise CheckpointError(f"{run.path} has no checkpoint to start from.")
    return sha256_of(checkpoint.path / "model.safetensors")
