import dataclasses
import json

from imprint.core.progress import Steps
from imprint.data.corpus import Corpus
from imprint.recipes.book import recipe
from imprint.train.entry import pretrain_run
from imprint.viz.report import build_report

TEXT = "the dog runs over the grass and the cat sits near the tree."


def run_of(method, folder, **changes):
    plan = dataclasses.replace(recipe(f"{method}/debug"), device="cpu", workers=1, length=Steps(2), **changes)
    return pretrain_run(plan, folder, source=Corpus.of([f"{TEXT} {i}. {TEXT}" for i in range(80)]))


def test_a_causal_run_shows_how_it_goes_on_with_held_out_text(tmp_path):
    run = run_of("gpt", tmp_path / "run", probe_every=Steps(2))
    told = json.loads((run.path / "samples" / "text.json").read_text())
    assert told["held_out"] and len(told["rows"]) == 6
    whole = "".join(f"{TEXT} {i}. {TEXT}" for i in range(80)).replace(" ", "")
    for row in told["rows"]:  # the beginning and what follows it are one piece of the text; what was written is not
        assert len(row["prompt"]) > 8 and (row["prompt"] + row["text"]).replace(" ", "") in whole
        assert len(row["continuation"]) > 0 and row["continuation"] != row["text"]
    page = build_report(run.path).read_text()
    assert "Continuations" in page and "held-out rows" in page and "temperature 0.8" in page
    again = run_of("gpt", tmp_path / "again", probe_every=Steps(2))
    assert (again.path / "samples" / "text.json").read_text() == (run.path / "samples" / "text.json").read_text()


def test_without_held_out_text_the_training_text_begins(tmp_path):
    run = run_of("gpt", tmp_path / "run")
    assert json.loads((run.path / "samples" / "text.json").read_text())["held_out"] is False
    (run.path / "samples" / "text.json").write_text("{}")
    assert "samples/text.json cannot be read" in build_report(run.path).read_text()


def test_other_runs_write_none(tmp_path):
    run = run_of("bert", tmp_path / "run")
    assert not (run.path / "samples" / "text.json").exists()
    assert "Continuations" not in build_report(run.path).read_text()
