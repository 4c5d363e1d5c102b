"""The report's section on a method's own task."""

from __future__ import annotations

import json
from pathlib import Path

from imprint.viz.curves import curves
from imprint.viz.page import Section
from imprint.viz.report import build_report
from imprint.viz.run_folder import RunFolder
from imprint.viz.sections import own_task_sections


def asked(run: Path, *answers: tuple[float, float]) -> list[Section]:
    with (run / "metrics.jsonl").open("a") as file:
        for right, chance in answers:
            line = {"step": 200, "epoch": 4.0, "time": 101.0, "pretext/accuracy": right, "pretext/chance": chance}
            file.write(json.dumps(line) + "\n")
    return own_task_sections(RunFolder.open(run))


def test_right_answers_stand_beside_guessing(make_run) -> None:
    run = make_run()
    config = json.loads((run / "config.json").read_text())
    config["data"]["val"] = "<elsewhere>"
    (run / "config.json").write_text(json.dumps(config))
    (section,) = asked(run, (30.25, 25.0), (61.0, 25.0), (87.5, 25.0))
    assert (section.title, section.reason) == ("Its own task", "")
    assert (
        "87.5 %" in section.body
        and ">25 %" in section.body
        and "first 30.2 %" in section.body
        and "61" not in section.body
    )
    assert "&lt;elsewhere&gt;" in section.body


def test_the_page_has_the_section_where_there_are_answers_only(make_run) -> None:
    run = make_run(encoder=None)
    assert asked(run) == [] and "Its own task" not in build_report(run, device="cpu", workers=1).read_text()
    asked(run, (87.5, 25.0))
    page = build_report(run, device="cpu", workers=1).read_text()
    assert '<section id="own-task">' in page and "87.5 %" in page


def test_answers_and_guessing_share_a_chart_after_the_probes(make_run) -> None:
    run = make_run()
    asked(run, (30.0, 25.0), (87.5, 25.0))
    charts = curves(RunFolder.open(run).metrics)
    (place,) = (i for i, chart in enumerate(charts) if "own task" in chart.title)
    assert charts[place - 1].title == "Online probes" and charts[place].dots and charts[place].unit == " %"
    assert [(line.name, line.y) for line in charts[place].series] == [
        ("accuracy", (30.0, 87.5)), ("chance", (25.0, 25.0)),
    ]  # fmt: skip
    assert not any("pretext" in chart.title for chart in charts)
