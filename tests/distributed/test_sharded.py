"""Optimizer state divided over two processes: the weights of the undivided run to the bit, half the memory; streams."""

from __future__ import annotations

import dataclasses
import importlib

import numpy as np
import pytest
import torch

from imprint.core.progress import Steps
from imprint.recipes.book import recipe
from imprint.train.config import DataConfig
from imprint.train.entry import pretrain_run
from imprint.train.loop import train


@pytest.fixture(scope="module")
def sharded(work):
    return importlib.import_module("sharded_work")


def test_sharded_steps_and_states_are_the_whole_ones(sharded, in_two):
    two = in_two(sharded.optimizers)
    for name in sharded.OPTIMIZERS:
        for rank in two:
            for kind in ("sharded", "again", "unsharded"):
                for key, value in rank[name]["whole"].items():
                    assert torch.equal(rank[name][kind][key], value), (name, kind, key)
            assert rank[name]["rates"][0] == (0.1 / 5, 0.05 * 4)
        held = [rank[name]["bytes"] for rank in two]
        assert held[0]["whole"] == held[1]["whole"] == held[0]["sharded"] + held[1]["sharded"]
        for bytes_held in held:  # the largest matrix alone is more than half
            assert 0.05 < bytes_held["sharded"] / bytes_held["whole"] < 0.95
    initial = sharded.network().state_dict()
    assert not torch.equal(two[0]["lars"]["whole"]["3.weight"], initial["3.weight"])
    assert torch.equal(two[0]["lars"]["whole"]["5.weight"], initial["5.weight"]), "frozen"


def small(name, data, **changes):
    base = recipe(f"{name}/debug")
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, train=(str(data),)),
        device="cpu",
        precision="fp32",
        workers=1,
        length=Steps(4),
        checkpoint_every=Steps(2),
        **changes,
    )


def tensors(run, step):
    checkpoint = run.checkpoints.load(step)
    return {f"{g}:{k}": v for g in ("model", "optimizer") for k, v in checkpoint.tensors(g).items()}


def test_a_run_of_two_with_sharded_state_writes_the_checkpoints_of_one_without(tmp_path):
    data = tmp_path / "images.npy"
    np.save(data, np.random.default_rng(0).integers(0, 255, (48, 32, 32, 3), dtype=np.uint8))
    plain = pretrain_run(small("dino", data, devices=2), tmp_path / "plain")
    shared = pretrain_run(small("dino", data, devices=2, shard="optimizer"), tmp_path / "shared")
    for step in (2, 4):
        a, b = tensors(plain, step), tensors(shared, step)
        assert a.keys() == b.keys() and [k for k in a if not torch.equal(a[k], b[k])] == []
    assert shared.finished
    # One process goes on from what two left, and ends where two do, within rounding.
    import shutil

    shutil.rmtree(shared.checkpoints.path(4))
    alone = train(None, shared.path, resume=True)
    for key, value in alone.encoder().state_dict().items():
        torch.testing.assert_close(value, plain.encoder().state_dict()[key], rtol=1e-2, atol=2e-3)


def test_a_stream_of_two_processes_is_that_of_one(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    folder = tmp_path / "shards"
    folder.mkdir()
    import io
    import tarfile

    for s in range(4):
        with tarfile.open(folder / f"{s}.tar", "w") as archive:
            for k in range(13):
                stream = io.BytesIO()
                coarse = rng.integers(0, 255, (5, 5, 3), dtype=np.uint8)
                Image.fromarray(coarse.repeat(8, 0).repeat(8, 1)).save(stream, "jpeg")
                info = tarfile.TarInfo(f"{k}.jpg")
                info.size = stream.tell()
                stream.seek(0)
                archive.addfile(info, stream)
    runs = {}
    for devices in (1, 2):
        config = small("simclr", folder / "*.tar", devices=devices)
        optim = dataclasses.replace(config.optim, name="sgd", lr=dataclasses.replace(config.optim.lr, base=0.01))
        data = DataConfig(train=config.data.train, stream="on", window=32)
        config = dataclasses.replace(config, optim=optim, data=data, length=Steps(9))
        runs[devices] = pretrain_run(config, tmp_path / str(devices))
    losses = {n: [line["loss"] for line in run.metrics() if "loss" in line] for n, run in runs.items()}
    assert len(losses[1]) == 3 and runs[2].finished, "52 images make three batches of 16"
    np.testing.assert_allclose(losses[1], losses[2], rtol=1e-3)
