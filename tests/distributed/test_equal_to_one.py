"""N processes equal one: losses, gradients, weights after steps, batch statistics, teacher and centre."""

from __future__ import annotations

import pytest
import torch

from imprint.dist.world import World
from imprint.methods.catalog import CATALOG

METHODS = tuple(row.name for row in CATALOG)


def test_loss_gradients_and_moved_state_equal_one_process(work, in_two):
    two = in_two(work.gradients, METHODS)
    for name in METHODS:
        one = work.one_step(name, World())
        for rank in two:
            torch.testing.assert_close(rank[name]["loss"], one["loss"], rtol=1e-4, atol=1e-5)
            assert rank[name]["grads"].keys() == one["grads"].keys(), name
            for key, grad in one["grads"].items():
                scale = float(grad.norm()) + 1e-6
                error = float((rank[name]["grads"][key] - grad).norm()) / scale
                # Biases before a batch norm have no gradient but rounding noise.
                assert error < 5e-3 or scale < 1e-4, (name, key, error, scale)
            assert rank[name]["state"].keys() == one["state"].keys()
            for key, value in one["state"].items():
                torch.testing.assert_close(
                    rank[name]["state"][key], value, rtol=1e-3, atol=2e-4, msg=lambda m, k=key: f"{k}: {m}"
                )
        for key, value in two[0][name]["state"].items():  # and the two are the same to the bit
            assert torch.equal(value, two[1][name]["state"][key]), (name, key)


def test_batch_norms_over_two_processes_equal_one(work, in_two):
    two = in_two(work.batch_norms)
    for name, net, shape in work.norm_cases():
        x = work.norm_input(shape).requires_grad_()
        out = net(x)
        (out * work.norm_input(tuple(out.shape), seed=5)).sum().backward()
        net.eval()
        evaluated = net(x).detach()
        for key in ("out", "grad", "eval"):
            expected = {"out": out.detach(), "grad": x.grad, "eval": evaluated}[key]
            found = torch.cat([rank[name][key] for rank in two])
            torch.testing.assert_close(
                found, expected, rtol=1e-4, atol=1e-5, msg=lambda m, k=key, n=name: f"{n} {k}: {m}"
            )
        for rank in two:
            assert rank[name]["state"].keys() == net.state_dict().keys()
            for key, value in net.state_dict().items():
                torch.testing.assert_close(rank[name]["state"][key], value, rtol=1e-4, atol=1e-5)
            for key, parameter in net.named_parameters():
                torch.testing.assert_close(rank[name]["grads"][key], parameter.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["simclr"])
def test_a_whole_run_of_two_processes_follows_that_of_one(work, tmp_path, method):
    import dataclasses

    import numpy as np

    from imprint.core.progress import Steps
    from imprint.train.entry import pretrain_run

    images = np.random.default_rng(0).integers(0, 255, (48, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    base = work.config_of(method)
    # Small rates: over many steps rounding differences grow, and the runs would part company.
    optim = dataclasses.replace(base.optim, name="sgd", lr=dataclasses.replace(base.optim.lr, base=0.01))
    runs = {}
    for devices in (1, 2):
        config = dataclasses.replace(
            base,
            data=dataclasses.replace(base.data, train=(str(tmp_path / "images.npy"),)),
            optim=optim,
            length=Steps(4),
            probe_every=Steps(4),
            workers=1,
            device="cpu",
            devices=devices,
        )
        runs[devices] = pretrain_run(config, tmp_path / str(devices))
    losses = {n: [line["loss"] for line in run.metrics() if "loss" in line] for n, run in runs.items()}
    assert len(losses[2]) == 4
    np.testing.assert_allclose(losses[1], losses[2], rtol=1e-3)
    assert runs[2].finished
    one, two = (run.encoder().state_dict() for run in runs.values())
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-2, atol=2e-3)
