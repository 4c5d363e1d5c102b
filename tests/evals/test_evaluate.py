"""From names to a report, and the command that repeats it."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest

from imprint.core.errors import ConfigError, DataError
from imprint.evals import catalog
from imprint.evals.evaluate import evaluate
from imprint.evals.protocol import Protocol


@pytest.fixture
def files(tmp_path: Path, train, test) -> tuple[str, str]:
    for name, source in (("train", train), ("test", test)):
        images = np.stack([source.read(i) for i in range(len(source))])
        np.savez(tmp_path / f"{name}.npz", images=images, labels=source.labels, classes=np.array(source.classes))
    return str(tmp_path / "train.npz"), str(tmp_path / "test.npz")


def test_report_is_written_and_its_command_repeats_it(files: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "knn.json"
    report = evaluate("knn", "pixels", *files, out=out, ks=[5, 1], image_size=8, device="cpu", cache=False)
    saved = json.loads(out.read_text())
    assert saved["metrics"]["top1"]["value"] == report.metrics["top1"].value > 90
    words = shlex.split(report.command)
    assert words[:3] == ["imprint", "evaluate", "knn"]
    assert words[words.index("--encoder") + 1] == "pixels" and words[words.index("--train") + 1] == files[0]
    assert words[words.index("--ks") + 1 : words.index("--ks") + 3] == ["5", "1"]
    assert "--no-cache" in words and words[words.index("--out") + 1] == str(out)


def test_command_is_empty_for_what_lives_in_memory(train, test, tiny) -> None:
    report = evaluate("knn", tiny, train, test, device="cpu", cache=False)
    assert report.command == "" and report.encoder == "tiny"
    assert evaluate("knn", "pixels", train, test, image_size=8, device="cpu", cache=False).command == ""


def test_untrained_encoder_is_the_same_one_each_time(files: tuple[str, str]) -> None:
    first, again = (evaluate("knn", "random:resnet10t", *files, image_size=8, device="cpu") for _ in range(2))
    assert first.metrics == again.metrics
    assert again.cost["features_s"] < first.cost["features_s"]


def test_unknown_names_name_the_nearest(train, test) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'linear'"):
        evaluate("linaer", "pixels", train, test)
    with pytest.raises(ConfigError, match="Did you mean 'temperatures'"):
        evaluate("knn", "pixels", train, test, temperature=(0.1,))
    with pytest.raises(ConfigError, match="--test"):
        evaluate("linear", "pixels", train)
    with pytest.raises((ConfigError, DataError)):
        evaluate("knn", "pixels", "no-such-folder-anywhere", test)


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_computed(train, test, tiny, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "closed").mkdir(mode=0o500)
    for out, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "deep" / "x.json", "is a file"),
        (tmp_path / "closed" / "x.json", "no permission"),
    ):
        if message == "no permission" and os.access(tmp_path / "closed", os.W_OK):
            continue  # root may write everywhere
        with pytest.raises(ConfigError, match=message):
            evaluate("knn", tiny, train, test, out=out)
    assert tiny.calls == 0


def test_sources_that_nobody_looks_at_and_sizes_of_nothing_are_refused(train, test, tiny) -> None:
    with pytest.raises(ConfigError, match="leave out --test"):
        evaluate("labelfree", tiny, train, test)
    with pytest.raises(ConfigError, match="at least 1; got 0"):
        evaluate("knn", tiny, train, test, image_size=0)
    with pytest.raises(ConfigError, match="no layers"):
        evaluate("linear", "pixels", train, test, image_size=8, each_layer=True)


def test_catalogue_agrees_with_the_classes() -> None:
    for row in catalog.CATALOG:
        cls = catalog.protocol_class(row.name)
        assert issubclass(cls, Protocol) and cls.name == row.name and cls.needs_labels == row.needs_labels
        assert cls.Config() is not None and row.description
    with pytest.raises(ConfigError, match="Did you mean 'knn'"):
        catalog.row("knnn")
