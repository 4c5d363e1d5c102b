"""A run killed with SIGKILL and resumed ends with the weights of one that never stopped."""

from __future__ import annotations

import os
import shutil
import signal

import numpy as np
import pytest
import torch

from imprint.train.tensorfile import read_tensors


def killed(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"


@pytest.mark.parametrize("method", ["simclr", "dino"])
def test_sigkill_at_random_steps_then_resume_gives_equal_weights(tmp_path, images, tools, method):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    tools.go(method, str(images), str(whole))
    rng = np.random.default_rng()  # another step in every run of the suite: any must do
    seen = []
    for how, low, high in (("fresh", 9, 24), ("resume", 30, 48)):
        process = tools.start(method, images, broken, how)
        tools.wait_for(broken, int(rng.integers(low, high)), process)
        killed(process)
        seen.append(tools.steps_written(broken)[-1])
    tools.go(method, str(images), str(broken), "resume")
    first, second = tools.weights(whole), tools.weights(broken)
    assert first.keys() == second.keys()
    different = [k for k in first if not torch.equal(first[k], second[k])]
    assert different == [], f"killed at steps {seen}"
    assert tools.steps_written(broken) == tools.steps_written(whole) == list(range(2, 61, 2))
    assert not list((broken / "checkpoints").glob(".*"))


def test_a_kill_before_the_first_checkpoint_starts_again_from_the_beginning(tmp_path, images, tools):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    tools.go("mae", str(images), str(whole))
    process = tools.start("mae", images, broken)
    tools.wait_for(broken, 2, process)
    killed(process)
    shutil.rmtree(broken / "checkpoints", ignore_errors=True)  # in case it was quick
    tools.go("mae", str(images), str(broken), "resume")
    first, second = tools.weights(whole), tools.weights(broken)
    assert [k for k in first if not torch.equal(first[k], second[k])] == []
    assert tools.steps_written(broken) == list(range(2, 61, 2))


def test_sigkill_in_the_second_stage_then_resume_of_the_whole_gives_equal_weights(tmp_path, labelled_images, tools):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    tools.go("simclr_v2", str(labelled_images), str(whole))
    process = tools.start("simclr_v2", labelled_images, broken)
    tools.wait_for(broken / "stage-2", int(np.random.default_rng().integers(9, 50)), process)
    killed(process)
    assert (broken / "stage-1" / "encoder.safetensors").exists() and not (broken / "stage-3").exists()
    tools.go("simclr_v2", str(labelled_images), str(broken), "resume")
    for stage in ("stage-1", "stage-2", "stage-3"):
        first, second = tools.weights(whole / stage), tools.weights(broken / stage)
        assert first.keys() == second.keys()
        assert [k for k in first if not torch.equal(first[k], second[k])] == [], stage
        assert tools.steps_written(broken / stage) == list(range(2, 61, 2))
    ends = [read_tensors(run / "encoder.safetensors") for run in (whole, broken)]
    assert [k for k in ends[0] if not torch.equal(ends[0][k], ends[1][k])] == []
