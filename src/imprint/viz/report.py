"""The report of a run: one HTML file that says what was done, what came out and what it cost."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from imprint.core.stages import is_staged
from imprint.viz import sections
from imprint.viz.continuations import continuation_sections
from imprint.viz.evaluation_page import evaluation_section
from imprint.viz.page import Section, page, write_page
from imprint.viz.rounds import pseudo_label_sections
from imprint.viz.run_folder import RunFolder
from imprint.viz.text_rows import text_sections


def build_report(
    run_path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    images: int | None = None,
    workers: int | None = None,
    device: str = "auto",
) -> Path:
    """Build the report of a run folder, finished or not, and return its path.

    The page needs no network and no other file. Sections whose data is missing (no encoder yet, the images are gone,
    a CNN has no attention) are left out, with the reason at the end of the page.

    A run of several stages gets a page over all of them, which links to one page a stage.

    Args:
        run_path: a run folder.
        out: the file to write; None is RUN/report.html.
        images: how many images the map and the neighbours show, at most 2,000; None is 2,000, or 500 where a CPU has
            to encode views above 64 pixels.
        workers: loader threads; None measures the machine.
        device: auto, cpu, cuda or mps.

    Raises:
        ConfigError: when the folder is no run.
    """
    if is_staged(Path(run_path).expanduser()):
        from imprint.viz.stages_page import build_stages_report

        def one(stage: Path) -> Path:
            return build_report(stage, images=images, workers=workers, device=device)

        return build_stages_report(run_path, out, one)
    run = RunFolder.open(run_path)
    target = run.path / "report.html" if out is None else Path(out)
    parts = [
        _safe("curves", "Curves", lambda: [sections.curve_section(run)]),
        _safe("evaluations", "Evaluations", lambda: [evaluation_section(run)]),
        _safe("pseudo-labels", "Pseudo-labels", lambda: pseudo_label_sections(run)),
        _safe("own-task", "Its own task", lambda: sections.own_task_sections(run)),
        _safe("views", "Views", lambda: [sections.views_section(run)] if run.takes != "text" else []),
        _safe("text", "Text", lambda: text_sections(run)),
        _safe("continuations", "Continuations", lambda: continuation_sections(run)),
        _safe(
            "reconstructions",
            "Reconstructions",
            lambda: [sections.reconstruction_section(run)] if run.takes != "text" else [],
        ),
        _safe("gallery", "Neighbours, map and attention", lambda: _gallery(run, images, workers, device)),
        _safe("cost", "Cost", lambda: [sections.cost_section(run)]),
        _safe("events", "Events", lambda: [sections.notes_section(run)]),
        _safe("quarantine", "Damaged images", lambda: [sections.quarantine_section(run)]),
        _safe("config", "Configuration", lambda: [sections.config_section(run)]),
    ]
    name = str(run.config.get("name", "run"))
    encoder = str(run.part("encoder").get("name", ""))
    document = page(
        title=f"{name} · {run.path.resolve().name}",
        subtitle=f"{encoder} pretrained with {name} by Imprint",
        lead=sections.summary(run),
        sections=[section for part in parts for section in part],
        footer=f"Written {datetime.now().astimezone().isoformat(sep=' ', timespec='minutes')} by Imprint.",
    )
    return write_page(document, target)


def _gallery(run: RunFolder, images: int | None, workers: int | None, device: str) -> list[Section]:
    from imprint.evals.represent import pick_device
    from imprint.viz import gallery
    from imprint.viz.embedding_map import LIMIT
    from imprint.viz.run_folder import Absent

    if run.takes == "text":  # nothing to map, and no reason to say so
        return []
    if images is None:
        slow = run.image_size > 64 and (
            isinstance(run.encoder, Absent) or pick_device(device, run.encoder).type == "cpu"
        )
        images = 500 if slow else LIMIT
    found = gallery.look(run, max(3, min(images, LIMIT)), workers, device)
    return [*gallery.map_and_neighbours(run, found), *gallery.token_sections(run, found, device)]


def _safe(key: str, title: str, build: Callable[[], list[Section]]) -> list[Section]:
    """Return the sections, or the error as the reason for their absence: one bad value must not cost the page."""
    try:
        return build()
    except Exception as error:
        return [Section(key, title, reason=f"This part failed: {type(error).__name__}: {error}")]
