from __future__ import annotations

import math

import pytest
import torch

from imprint.train.collapse import CollapseMonitor
from imprint.train.health import watched


def test_the_first_module_with_a_bad_output_is_found():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(2, 2)))
    with torch.no_grad():
        net[1][1].weight.fill_(float("inf"))
    with watched(net) as found:
        net(torch.ones(1, 2))
    assert found[0] == "1.1"
    assert not any(module._forward_hooks for module in net.modules())


def judged(values, sizes=None):
    return CollapseMonitor().look(100, values, sizes or {})


@pytest.mark.parametrize(
    ("values", "sizes", "says"),
    [
        ({"embedding/std": 0.02}, {}, "nearly the same embedding"),
        ({"rank/rankme": 1.4}, {"rank": 192}, "dimensional"),
        ({"dino/teacher_entropy": math.log(1024) * 0.9999}, {"prototypes": 1024}, "uniform distribution"),
        ({"dino/teacher_entropy": 0.001}, {"prototypes": 1024}, "one prototype"),
        ({"dino/center_norm": 5e4}, {}, "centre runs away"),
    ],
)
def test_each_sign_gives_a_warning_with_cures(values, sizes, says):
    (text,) = judged(values, sizes)
    assert says in text
    assert "Usual cures" in text


def test_healthy_values_are_silent():
    assert (
        judged(
            {
                "embedding/std": 0.9,
                "rank/rankme": 60.0,
                "rank/std": 0.2,
                "dino/teacher_entropy": 4.0,
                "dino/center_norm": 3.0,
            },
            {"rank": 192, "prototypes": 1024},
        )
        == []
    )


def test_a_warning_comes_once_and_again_after_recovery():
    monitor = CollapseMonitor(warmup=10)
    assert monitor.look(5, {"embedding/std": 0.0}, {}) == []  # too early to judge
    assert len(monitor.look(20, {"embedding/std": 0.0}, {})) == 1
    assert monitor.look(30, {"embedding/std": 0.0}, {}) == []
    assert monitor.look(35, {"rank/rankme": 50.0}, {"rank": 64}) == []  # another measure does not count as recovery
    assert monitor.look(36, {"embedding/std": 0.0}, {}) == []
    assert monitor.look(40, {"embedding/std": 0.8}, {}) == []
    assert len(monitor.look(50, {"embedding/std": 0.0}, {})) == 1
    assert monitor.look(60, {"embedding/std": float("nan")}, {}) == []


def test_a_collapsing_run_warns(tmp_path, tiny, source, monkeypatch):
    from imprint.core.progress import Steps
    from imprint.methods.simclr import SimCLR
    from imprint.train.loop import train

    real = SimCLR.forward

    def collapsed(self, batch, t):
        output = real(self, batch, t)
        output.metrics["embedding/std"] = torch.tensor(0.001)
        return output

    monkeypatch.setattr(SimCLR, "forward", collapsed)
    run = train(tiny(length=Steps(8)), tmp_path / "run", source=source)
    warnings = [line["warning"] for line in run.metrics() if "warning" in line]
    assert len(warnings) == 1
    assert "embedding/std" in warnings[0]


def test_a_safeguard_that_is_switched_off_is_named_before_any_cure():
    monitor = CollapseMonitor(family="self-distillation", dangers=("stop_gradient is off",))
    (text,) = monitor.look(100, {"embedding/std": 0.01}, {})
    assert text.index("stop_gradient is off") < text.index("Usual cures")
    assert "slower target" in text
    assert monitor.look(100, {"embedding/std": 0.9}, {}) == []


def test_cures_follow_the_family():
    assert "Sinkhorn" in CollapseMonitor(family="clustering").look(9, {"embedding/std": 0.0}, {})[0]
    assert "variance" in CollapseMonitor(family="redundancy reduction").look(9, {"embedding/std": 0.0}, {})[0]
    redundant = {"embedding/correlation": 0.9}
    assert "repeat one another" in CollapseMonitor(family="redundancy reduction").look(9, redundant, {})[0]
    assert CollapseMonitor(family="contrastive").look(9, redundant, {}) == []
