from __future__ import annotations

import json

import pytest

from imprint.core.errors import CheckpointError, ConfigError
from imprint.train.run import Run, read_config, write_config


@pytest.mark.parametrize("name", ["simclr", "dino", "mae"])
def test_configurations_survive_the_file(tmp_path, tiny, name):
    config = tiny(name)
    write_config(tmp_path / "config.json", config)
    assert read_config(tmp_path / "config.json") == config


def test_an_unfinished_run_has_no_encoder(tmp_path, tiny):
    write_config(tmp_path / "config.json", tiny())
    run = Run.open(tmp_path)
    assert run.last_step == 0
    assert run.metrics() == []
    assert not run.finished
    with pytest.raises(CheckpointError, match="--resume"):
        run.encoder()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        Run.open(tmp_path / "x")
    with pytest.raises(ConfigError, match=r"no config\.json"):
        Run.open(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        Run.open(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="names no method"):
        Run.open(tmp_path)


def test_a_misspelt_key_names_the_nearest(tmp_path, tiny):
    write_config(tmp_path / "config.json", tiny())
    data = json.loads((tmp_path / "config.json").read_text())
    data["batch_sise"] = data.pop("batch_size")
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="Did you mean 'batch_size'"):
        Run.open(tmp_path)
