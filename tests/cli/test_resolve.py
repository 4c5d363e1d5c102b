from __future__ import annotations

import json
from pathlib import Path

import pytest

from imprint.cli import resolve
from imprint.core.codec import to_json
from imprint.core.errors import ConfigError
from imprint.core.progress import Epochs, Steps
from imprint.recipes.book import recipe

BASE = recipe("simclr/debug")


def test_short_options_reach_their_fields(tmp_path: Path) -> None:
    config = resolve.with_short(
        BASE,
        {
            "data": [str(tmp_path), "photos"], "val": "photos:test", "encoder": "resnet34", "image_size": 48,
            "batch_size": 32, "steps": 5, "seed": 9, "workers": 2, "devices": 2, "precision": "bf16",
            "checkpoint_every": Steps(3), "epochs": None, "budget": None,
        },
    )  # fmt: skip
    assert config.data.train == (str(tmp_path), "photos") and config.data.val == "photos:test"
    assert (config.encoder.name, config.encoder.image_size) == ("resnet34", 48)
    assert (config.batch_size, config.length, config.seed, config.workers) == (32, Steps(5), 9, 2)
    assert (config.devices, config.precision, config.checkpoint_every) == (2, "bf16", Steps(3))


def test_nothing_given_changes_nothing() -> None:
    assert resolve.with_short(BASE, dict.fromkeys(resolve.SHORT)) == BASE


def test_a_length_replaces_a_budget_and_a_budget_stands_beside_the_recipes_length() -> None:
    timed = resolve.with_short(BASE, {"budget": 60.0})
    assert timed.budget == 60.0
    again = resolve.with_short(timed, {"epochs": 2})
    assert again.budget is None and again.length == Epochs(2)


def test_two_lengths_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="--epochs and --budget"):
        resolve.with_short(BASE, {"epochs": 2, "budget": 60.0})


def test_devices_and_batch_size_are_set_together() -> None:
    assert resolve.with_short(BASE, {"devices": 3, "batch_size": 12}).batch_size == 12
    with pytest.raises(ConfigError, match="multiple of 3"):
        resolve.with_short(BASE, {"devices": 3})


def test_local_paths_become_absolute_and_other_sources_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve.anchored("images") == str(tmp_path / "images")
    assert resolve.anchored("shards/*.tar") == str(tmp_path / "shards" / "*.tar")
    for spec in ("photos", "photos:test", "hf:cifar10", "timm:resnet18", "https://example.org/{00..99}.tar", "missing"):
        assert resolve.anchored(spec) == spec


def test_recipes_by_name_fit_the_image_size() -> None:
    assert resolve.recipe_config("dino").recipe == "small"
    assert resolve.recipe_config("dino/debug", image_size=64).encoder.image_size == 64
    with pytest.raises(ConfigError, match="Did you mean 'paper'"):
        resolve.recipe_config("dino/papre")
    with pytest.raises(ConfigError, match="Did you mean 'dino'"):
        resolve.recipe_config("dnio")


def test_a_stored_config_is_read_back_whole(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(to_json(BASE)))
    assert resolve.load_config(tmp_path / "config.json") == BASE
    assert resolve.load_config(tmp_path) == BASE


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no configuration at"),
        ("{", "is not JSON"),
        ("[]", "no method under 'name'"),
        ("{}", "no method under 'name'"),
    ],
)
def test_what_is_no_config(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "config.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        resolve.load_config(file)


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    resolve.require_free(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    resolve.require_free(tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        resolve.require_free(tmp_path / "full")
    (tmp_path / "full" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="--resume"):
        resolve.require_free(tmp_path / "full")
    assert resolve.free_folder(tmp_path / "full") == tmp_path / "full-2"
    (tmp_path / "full-2").write_text("a file, not a folder")
    assert resolve.free_folder(tmp_path / "full") == tmp_path / "full-3"


def test_only_the_first_process_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert resolve.is_main()
    for rank, main in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert resolve.is_main() is main
