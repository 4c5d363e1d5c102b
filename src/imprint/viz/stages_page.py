"""The report of a run of several stages: what each was, a link to its own page, and their curves together."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from imprint.core.errors import ConfigError
from imprint.core.stages import begun, stage_count
from imprint.viz.compare import curves, differences, league
from imprint.viz.page import Section, page, text, write_page
from imprint.viz.rounds import rounds_sections
from imprint.viz.run_folder import RunFolder


def build_stages_report(
    run: str | os.PathLike[str], out: str | os.PathLike[str] | None, build: Callable[[Path], Path]
) -> Path:
    """Build the pages of all stages that have begun, and one over them; return its path.

    Args:
        run: folder with `stages.json`.
        out: the file to write; None is RUN/report.html.
        build: makes the page of one stage and returns its path.

    Raises:
        ConfigError: when no stage has begun.
    """
    folder = Path(run).expanduser()
    target = folder / "report.html" if out is None else Path(out)
    stages = [RunFolder.open(stage) for stage in begun(folder)]
    if not stages:
        raise ConfigError(f"no stage of {folder} has begun; start it with: imprint pretrain --resume {folder}")
    names = [f"{stage.path.name} {stage.config.get('stage') or stage.config.get('name')}" for stage in stages]
    pages = [build(stage.path) for stage in stages]
    links = [Path(os.path.relpath(made.resolve(), target.resolve().parent)).as_posix() for made in pages]
    items = "".join(f'<li><a href="{text(to)}">{text(name)}</a></li>' for to, name in zip(links, names, strict=True))
    named = list(zip(names, stages, strict=True))
    total = stage_count(folder)
    listed = Section("stages", "Stages", f'<p class="about">{len(stages)} of {total} have begun.</p><ol>{items}</ol>')
    document = page(
        title=f"{stages[-1].config.get('name', 'run')} · {folder.resolve().name}",
        subtitle=f"a run of {total} stages by Imprint",
        lead="",
        sections=[listed, *rounds_sections(named), league(named), curves(named), differences(named)],
        footer=f"Written {datetime.now().astimezone().isoformat(sep=' ', timespec='minutes')} by Imprint.",
    )
    return write_page(document, target)
