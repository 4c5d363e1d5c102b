"""The sections of a report that need only the run folder: each returns its HTML or the reason why it is empty."""

from __future__ import annotations

import json
import statistics
from collections import Counter

from imprint.viz import charts
from imprint.viz.curves import curves
from imprint.viz.page import Section, cards, figure, filter_box, table, text
from imprint.viz.reconstructions import ordered, reconstructions
from imprint.viz.run_folder import Absent, RunFolder
from imprint.viz.views_sheet import describe_views, views_sheet

SHOWN_BAD = 12


def duration(seconds: float) -> str:
    """Return a duration as people say it: `42 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.3g} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def summary(run: RunFolder) -> str:
    """Return the cards at the top."""
    steps = int(run.metrics[-1]["step"]) if run.metrics else 0
    batch = int(run.config.get("batch_size") or 0)
    encoder = run.part("encoder")
    known, reads = None if isinstance(run.source, Absent) else len(run.source), run.takes == "text"
    values = [
        (
            "Method",
            str(run.config.get("name", "?")),
            f"recipe {run.config['recipe']}" if run.config.get("recipe") else "",
        ),
        (
            "Encoder",
            str(encoder.get("name", "?")),
            f"batch {batch}" if reads else f"{run.image_size} px, batch {batch}",
        ),
        (
            "Rows seen" if reads else "Images seen",
            f"{steps * batch:,}",
            "" if known is None else f"{known:,} images in the source shown here",
        ),
        ("Steps", f"{steps:,}", f"{run.metrics[-1].get('epoch', 0):.3g} epochs" if run.metrics else ""),
    ]
    times = run.column("time")
    if times:
        values.append(("Time", duration(times[-1]), f"seed {run.config.get('seed', '?')}"))
    best = run.best("probe/knn_top1")
    if best is not None:
        last = run.column(best[0])[-1]
        values.append(("Best kNN", f"{best[1]:.1f} %", f"online, at step {best[2]:,}; last {last:.1f} %"))
    for name, title, unit in (("probe/gain", "Below a unigram model", "nats"), ("probe/r@10", "Best R@10", "%")):
        found = run.best(name)
        if found is not None:
            values.append((title, f"{found[1]:.2f} {unit}", f"held out, at step {found[2]:,}"))
    losses = run.column("loss")
    if losses:
        values.append(("Loss", charts.label(losses[-1]), f"first {charts.label(losses[0])}"))
    return cards(values)


def curve_section(run: RunFolder) -> Section:
    """Return every metric over steps, with a filter."""
    found = curves(run.metrics)
    if not found:
        return Section("curves", "Curves", reason="metrics.jsonl holds no measurements yet.")
    panels = [panel(chart) for chart in found]
    tools = filter_box(".panel.curve", "Filter curves by name")
    return Section("curves", "Curves", f'{tools}<div class="charts">{"".join(panels)}</div>')


def panel(chart: charts.Chart, *, legend: bool = True) -> str:
    """Return a chart with its title, and with `legend` one when it has several lines."""
    listed = ""
    if legend and len(chart.series) > 1:
        entries = "".join(
            f'<span><i style="background:{chart.colour(i)}"></i>{text(line.name)}</span>'
            for i, line in enumerate(chart.series)
        )
        listed = f'<div class="legend">{entries}</div>'
    words = text(" ".join([chart.title, *(line.name for line in chart.series)]))
    inside = f"<h3>{text(chart.title)}</h3>{listed}{charts.svg(chart)}"
    return f'<div class="panel curve" data-words="{words}">{inside}</div>'


def notes_section(run: RunFolder) -> Section:
    """Return events and warnings of the run."""
    if not run.notes:
        return Section("events", "Events", reason="The run wrote down no event and no warning.")
    rows = []
    for line in run.notes:
        kind = "warning" if "warning" in line else "event"
        rows.append((f"{line['step']:,}", duration(float(line.get("time") or 0)), kind, line[kind]))
    return Section("events", "Events", table(("Step", "Time", "Kind", "What"), rows, numeric=(0, 1)))


def views_section(run: RunFolder) -> Section:
    """Return what the network saw."""
    found = run.samples("views")
    if isinstance(found, Absent):
        return Section("views", "Views", reason=found.reason)
    pictures = {name: v for name, v in found.items() if v.ndim == 5 and v.numel()}
    if not pictures:
        return Section("views", "Views", reason="samples/views.safetensors holds no pictures.")
    about = (
        "The first batch as the network received it, after cropping and colour changes and before normalisation: "
        "crops of the same image stand side by side, or below each other when there are few. "
        + "; ".join(describe_views(pictures))
        + "."
    )
    return Section(
        "views", "Views", f'<p class="about">{text(about)}</p>{figure(views_sheet(pictures), "training views")}'
    )


def reconstruction_section(run: RunFolder) -> Section:
    """Return the pictures a masked method reconstructs."""
    found = run.samples("reconstruct")
    if isinstance(found, Absent):
        return Section("reconstructions", "Reconstructions", reason="The method reconstructs no pictures.")
    pictures = {name: v for name, v in found.items() if v.ndim == 4 and v.numel()}
    if not pictures:
        return Section(
            "reconstructions", "Reconstructions", reason="samples/reconstruct.safetensors holds no pictures."
        )
    about = "From above: " + ", ".join(ordered(pictures)) + "."
    if "visible" in pictures:
        about += " Visible patches are copied into the reconstruction."
    body = f'<p class="about">{text(about)}</p>{figure(reconstructions(pictures), "reconstructions")}'
    return Section("reconstructions", "Reconstructions", body)


def own_task_sections(run: RunFolder) -> list[Section]:
    """Return how often the method answers its own question rightly on held-out images; no section where none is."""
    right, chance = run.column("pretext/accuracy"), run.column("pretext/chance")
    if not right or not chance:
        return []
    about = (
        f"The question that {run.config.get('name')} learns by, asked about images of "
        f"{run.part('data').get('val')}, cut as in training. The answers tell whether the task was learned, not what "
        "the features are worth: a task can be solved by a shortcut."
    )
    values = [
        ("Right answers", f"{right[-1]:.1f} %", f"first {right[0]:.1f} %"),
        ("By guessing", f"{chance[-1]:.3g} %", ""),
    ]
    return [Section("own-task", "Its own task", f'<p class="about">{text(about)}</p>{cards(values)}')]


def cost_section(run: RunFolder) -> Section:
    """Return time, throughput, waiting and memory."""
    times, speed, wait = run.column("time"), run.column("images_per_s"), run.column("data_wait")
    memory = run.column("memory_mb")
    values = []
    if times:
        values.append(("Training time", duration(times[-1]), f"{times[-1] / 3600:.3g} h"))
    if speed:
        values.append(("Images per second", f"{statistics.median(speed):,.0f}", f"median of {len(speed)} measurements"))
    if wait:
        values.append(("Waiting for data", f"{100 * statistics.fmean(wait):.1f} %", "share of the time, mean"))
    if memory:
        values.append(("Peak memory", f"{max(memory):,.0f} MB", f"device {run.config.get('device', '?')}"))
    if not values:
        return Section("cost", "Cost", reason="metrics.jsonl holds no measurements yet.")
    return Section("cost", "Cost", cards(values))


def quarantine_section(run: RunFolder) -> Section:
    """Return the damaged images, counted by reason."""
    if not run.quarantine:
        return Section("quarantine", "Damaged images", reason="No image was damaged.")
    count = Counter(str(line.get("reason", "?")) for line in run.quarantine)
    reasons = ", ".join(f"{n} {reason}" for reason, n in count.most_common())
    rows = [(q.get("name", "?"), q.get("reason", "?"), q.get("detail", "")) for q in run.quarantine[:SHOWN_BAD]]
    more = "" if len(rows) == len(run.quarantine) else f" The first {SHOWN_BAD} of them; all are in quarantine.jsonl."
    about = f"{len(run.quarantine)} images could not be used and were replaced by others: {reasons}.{more}"
    body = f'<p class="about">{text(about)}</p>{table(("Image", "Reason", "Detail"), rows)}'
    return Section("quarantine", "Damaged images", body)


def config_section(run: RunFolder) -> Section:
    """Return the resolved configuration and the command that repeats the run."""
    dumped = json.dumps(run.config, indent=2, ensure_ascii=False)
    provenance = run.part("provenance")
    rows = [(key, value) for key, value in provenance.items() if value]
    about = table(("Recipe", ""), rows) if rows else ""
    folded = f"<details><summary>config.json</summary><pre>{text(dumped)}</pre></details>"
    return Section("config", "Configuration", f"<pre>{text(run.command)}</pre>{about}{folded}")
