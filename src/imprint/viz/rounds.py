"""Rounds of teachers and students: what each was given, and how right each of them is."""

from __future__ import annotations

import json
from collections.abc import Sequence

from imprint.viz.page import Cell, Section, cards, table, text
from imprint.viz.run_folder import Json, RunFolder

COUNTS = "pseudo_labels.json"
HELD_OUT = (
    ("probe/classifier_top1", "its classifier"),
    ("probe/linear_top1", "a linear probe"),
    ("probe/knn_top1", "nearest neighbours"),
)
"""Accuracies on held-out images, the first that all rounds have is shown."""


def counts_of(run: RunFolder) -> Json | None:
    """Return what a run wrote about its pseudo-labels, or None where it has none or the file is damaged."""
    try:
        found = json.loads((run.path / COUNTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("images_by_class"), list) else None


def rounds_sections(stages: Sequence[tuple[str, RunFolder]]) -> list[Section]:
    """Return the table of rounds of a run of several stages; no section where no stage was given pseudo-labels."""
    given = [counts_of(run) for _, run in stages]
    if not any(given):
        return []
    asked = next((pair for pair in HELD_OUT if all(run.column(pair[0]) for _, run in stages)), None)
    key, by = asked or next((pair for pair in HELD_OUT if any(run.column(pair[0]) for _, run in stages)), ("", ""))
    head = ["round", "encoder", "labelled", "pseudo-labelled", "kept", "of each class", "pseudo-labels right"]
    rows = [
        [name, _encoder(run), *_given(run, counts), _percent(run.column(key))]
        for (name, run), counts in zip(stages, given, strict=True)
    ]
    about = (
        "Each network labels the images that the next one learns from. Kept are those that it is confident enough of; "
        "of each class, the fewest and the most kept images, before rare classes are repeated. How many pseudo-labels "
        "are right is known only where labels were hidden, and is never used."
    )
    if key:
        about += f" Held-out accuracy is that of {by} at the end of the round (so far, where it has not ended)."
    body = table([*head, "held-out accuracy"], rows, numeric=(2, 3, 4, 5, 6, 7))
    return [Section("rounds", "Rounds", f'<p class="about">{text(about)}</p>{body}')]


def pseudo_label_sections(run: RunFolder) -> list[Section]:
    """Return what a student was given; no section for other runs."""
    counts = counts_of(run)
    if counts is None:
        return []
    wanted = counts.get("wanted") or {}
    kind = "soft (distributions)" if wanted.get("soft", True) else "hard (decisions)"
    values = [
        ("Labelled", f"{counts['labelled']:,}", "images"),
        ("Unlabelled", f"{counts['unlabelled']:,}", f"{counts['damaged']:,} damaged" if counts.get("damaged") else ""),
        (
            "Used",
            f"{counts['used']:,}",
            f"of {counts['confident']:,} with a confidence of {wanted.get('confidence', 0):g} or more",
        ),
        ("Entries", f"{counts['entries']:,}", f"{counts['per_class']:,} of each class, with repeats"),
        ("Confidence", f"{counts['mean_confidence']:.3f}", "mean of those used"),
    ]
    if counts.get("accuracy") is not None:
        values.append(("Right", f"{100 * counts['accuracy']:.1f} %", f"{_all(counts)} of all images"))
    names = counts.get("classes") or []
    rows = [
        [names[k] if k < len(names) else str(k), Cell(f"{n:,}", order=float(n))]
        for k, n in enumerate(counts["images_by_class"])
    ]
    about = f"What the network of {counts.get('teacher')} said before the first step, without noise: {kind}."
    body = table(["class", "images used"], rows, numeric=(1,), sortable=True)
    return [
        Section(
            "pseudo-labels",
            "Pseudo-labels",
            f'<p class="about">{text(about)}</p>{cards(values)}<details><summary>Images of every class</summary>{body}'
            "</details>",
        )
    ]


def _all(counts: Json) -> str:
    value = counts.get("accuracy_of_all")
    return "" if value is None else f"{100 * value:.1f} %"


def _encoder(run: RunFolder) -> Cell:
    encoder = run.part("encoder")
    return Cell(str(encoder.get("name", "?")), note=f"{run.image_size} px")


def _given(run: RunFolder, counts: Json | None) -> list[Cell]:
    if counts is None:
        return [Cell(_labelled(run)), *(Cell("") for _ in range(4))]
    kept = counts["used"] / max(1, counts["unlabelled"])
    per_class = counts["images_by_class"]
    right = counts.get("accuracy")
    return [
        Cell(f"{counts['labelled']:,}"),
        Cell(f"{counts['entries']:,}", note=f"{counts['used']:,} different"),
        Cell(f"{100 * kept:.1f} %", note=f"of {counts['unlabelled']:,}"),
        Cell(f"{min(per_class):,} to {max(per_class):,}"),
        Cell("unknown" if right is None else f"{100 * right:.1f} %", note=f"{_all(counts)} of all" if right else ""),
    ]


def _labelled(run: RunFolder) -> str:
    try:
        return f"{sum(1 for line in (run.path / 'labelled.txt').open(encoding='utf-8', errors='replace') if line):,}"
    except OSError:
        return "all"


def _percent(values: Sequence[float]) -> Cell:
    return Cell(f"{values[-1]:.2f} %", order=values[-1]) if values else Cell("")
