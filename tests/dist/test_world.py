from __future__ import annotations

import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.dist.world import World, current, first_host, init_from_env, pick_device, ranks_of, shutdown


def test_alone_is_rank_0_of_1():
    shutdown()
    assert init_from_env("cpu", env={}) == World(0, 1, 0, torch.device("cpu"))
    assert current().main
    assert not current().distributed


def test_torchrun_is_adopted():
    ranks = ranks_of({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert (ranks.rank, ranks.size, ranks.local_rank, ranks.init_method) == (3, 8, 1, "env://")


def test_slurm_counts_only_inside_a_step_of_several_tasks():
    batch_script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "77"}
    assert ranks_of(batch_script) is None
    step = {**batch_script, "SLURM_PROCID": "2", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4"}
    ranks = ranks_of({**step, "SLURM_STEP_NODELIST": "gpu[03-05],cpu1"})
    assert (ranks.rank, ranks.size, ranks.local_rank, ranks.init_method) == (2, 4, 1, "tcp://gpu03:20077")
    assert ranks_of({**step, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5"}).init_method == "tcp://10.0.0.1:5"


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu01", "gpu01"), ("gpu01,gpu02", "gpu01"), ("gpu[01-04,7]", "gpu01"), ("n[7,9]-ib,x", "n7-ib"), ("", "")],
)
def test_first_host(nodes, host):
    assert first_host(nodes) == host


@pytest.mark.parametrize(
    "env", [{"RANK": "0"}, {"WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}]
)
def test_half_a_description_is_refused(env):
    with pytest.raises(ConfigError, match="RANK"):
        ranks_of(env)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
def test_a_missing_device_is_refused():
    with pytest.raises(ConfigError, match="no CUDA GPU"):
        pick_device("cuda")
    assert pick_device("auto").type in ("cpu", "mps")
