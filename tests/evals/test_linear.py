"""Linear probe: the grid in one pass equals torch's own training head by head."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError, DataError
from imprint.core.rng import seed_of
from imprint.evals.features import FeatureTable
from imprint.evals.linear import Linear, LinearConfig, fit_heads, probe, split_rows
from imprint.evals.linear_heads import HeadTrainer, count_hits, moments
from imprint.evals.pixels import PixelEncoder
from imprint.evals.protocol import EvalData
from imprint.evals.represent import represent


def table(features: torch.Tensor, labels: torch.Tensor, classes: int) -> FeatureTable:
    rows = np.arange(len(labels))
    names = tuple(f"c{i}" for i in range(classes))
    return FeatureTable(features.numpy(), labels.numpy(), rows, names, [str(i) for i in rows])


def problem(count: int = 300, width: int = 12, classes: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99)) * 2
    labels = torch.randint(classes, (count,), generator=generator)
    return centres[labels] + 2 * torch.randn(count, width, generator=generator) + 5.0, labels


@pytest.mark.parametrize("standardise", [True, False])
def test_every_head_equals_torch_sgd(standardise: bool) -> None:
    x, y = problem()
    rows = torch.arange(10, 290)
    config = LinearConfig(
        lrs=(0.01, 0.1), weight_decays=(0.0, 0.01), epochs=3, minibatch=64, standardise=standardise, device="cpu"
    )
    heads = fit_heads(x, y, rows, 5, config)
    if standardise:
        mean, scale = x[rows].mean(0), (x[rows].var(0, unbiased=False) + 1e-6).rsqrt()
        torch.testing.assert_close(moments(x, rows, chunk=50), (mean, scale), rtol=1e-4, atol=1e-5)
    else:
        mean, scale = torch.zeros(12), torch.ones(12)
    total = 3 * math.ceil(280 / 64)
    for g, (lr, wd) in enumerate(config.grid):
        layer = nn.Linear(12, 5)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        groups = [{"params": [layer.weight], "weight_decay": wd}, {"params": [layer.bias], "weight_decay": 0.0}]
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
        step = 0
        for epoch in range(3):
            generator = torch.Generator().manual_seed(seed_of(0, "linear-order", epoch))
            for batch in rows[torch.randperm(280, generator=generator)].split(64):
                for group in optimizer.param_groups:
                    group["lr"] = lr * 64 / 256 * 0.5 * (1 + math.cos(math.pi * step / total))
                optimizer.zero_grad()
                nn.functional.cross_entropy(layer((x[batch] - mean) * scale), y[batch]).backward()
                optimizer.step()
                step += 1
        torch.testing.assert_close(heads.weight_DGC[:, g], layer.weight.t(), rtol=2e-4, atol=2e-5)
        torch.testing.assert_close(heads.bias_GC[g], layer.bias, rtol=2e-4, atol=2e-5)
        one = heads.pick(g).logits(x[:7])[:, 0]
        torch.testing.assert_close(one, layer((x[:7] - mean) * scale), rtol=1e-3, atol=1e-4)


def test_grid_of_one_equals_the_same_head_in_a_grid() -> None:
    x, y = problem()
    rows = torch.arange(300)
    many = fit_heads(x, y, rows, 5, LinearConfig(epochs=2, device="cpu"))
    alone = fit_heads(x, y, rows, 5, LinearConfig(epochs=2, lrs=(0.05,), device="cpu"))
    g = LinearConfig().lrs.index(0.05)
    torch.testing.assert_close(many.weight_DGC[:, g], alone.weight_DGC[:, 0], rtol=1e-4, atol=1e-6)


def test_split_is_stratified_repeatable_and_leaves_every_class_both_ways() -> None:
    labels = np.array([0] * 100 + [1] * 30 + [2] * 2 + [3])
    fit, held = split_rows(labels, 0.1, seed=3)
    assert sorted([*fit, *held]) == list(range(len(labels)))
    assert np.bincount(labels[held], minlength=4).tolist() == [10, 3, 1, 0]
    again = split_rows(labels, 0.1, seed=3)
    assert (fit == again[0]).all() and not np.array_equal(held, split_rows(labels, 0.1, seed=4)[1])
    with pytest.raises(DataError, match="one image per class"):
        split_rows(np.arange(5), 0.1, 0)


def test_hits_by_hand_and_for_broken_heads() -> None:
    x, y = problem(60)
    heads = fit_heads(x, y, torch.arange(60), 5, LinearConfig(epochs=2, lrs=(0.1, 0.2), device="cpu"))
    logits = heads.logits(x)
    for top in (1, 3):
        hits, loss = count_hits(heads, x, y, torch.arange(60), top=top, chunk=17)
        want = (logits.topk(top, dim=2).indices == y[:, None, None]).any(2).t()
        assert torch.equal(hits, want)
        want_loss = torch.stack([nn.functional.cross_entropy(logits[:, g], y) for g in range(2)])
        torch.testing.assert_close(loss, want_loss)
    heads.weight_DGC[:, 1] = float("nan")
    hits, loss = count_hits(heads, x, y, torch.arange(60))
    assert hits[0].any() and not hits[1].any() and torch.isinf(loss[1])


def test_probe_picks_on_held_out_images_and_reports_on_test() -> None:
    train, test = table(*problem(400), 5), table(*problem(200, seed=7), 5)
    metrics, details = probe(train, test, LinearConfig(epochs=20, lrs=(1e-5, 0.05, 1e6), device="cpu"))
    assert details["chosen"]["lr"] == 0.05 and not details["at_edge_of_grid"]
    assert details["fit_images"] + details["held_out_images"] == 400 and details["held_out_images"] == pytest.approx(
        40, abs=3
    )
    assert 60 < metrics["top1"].value <= 100 and metrics["top1"].n == 200
    assert metrics["top1"].low < metrics["top1"].value < metrics["top1"].high
    weighted = sum(details["per_class_top1"][f"c{c}"] * (test.labels_N == c).sum() for c in range(5)) / 200
    assert weighted == pytest.approx(metrics["top1"].value, abs=0.01)
    # the choice never looks at test: other test labels, same choice
    other = table(torch.from_numpy(np.asarray(test.features_ND)), torch.from_numpy((test.labels_N + 1) % 5), 5)
    assert (
        probe(train, other, LinearConfig(epochs=20, lrs=(1e-5, 0.05, 1e6), device="cpu"))[1]["grid"] == details["grid"]
    )


def test_labels_without_signal_stay_at_chance() -> None:
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(1000, 8, generator=generator), torch.randint(4, (1000,), generator=generator)
    metrics, _ = probe(table(x[:500], y[:500], 4), table(x[500:], y[500:], 4), LinearConfig(epochs=5, device="cpu"))
    assert metrics["top1"].low <= 25 + 3 and metrics["top1"].high >= 25 - 3


def test_protocol(train, test, unlabelled) -> None:
    config = LinearConfig(device="cpu", cache=False, epochs=10)
    report = Linear().run(PixelEncoder(8), EvalData(train=train, test=test), config)
    assert report.metrics["top1"].value > 90 and report.cost["fit_s"] > 0
    with pytest.raises(DataError, match="needs labels"):
        Linear().run(PixelEncoder(8), EvalData(train=unlabelled, test=test), config)
    for wrong in ({"lrs": ()}, {"lrs": (-1.0,)}, {"held_out": 0.0}, {"epochs": 0}, {"weight_decays": (-0.1,)}):
        with pytest.raises(ConfigError):
            LinearConfig(**wrong)


def test_augmented_probe_killed_on_its_way_goes_on_and_ends_equal(train, test, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path))
    config = LinearConfig(device="cpu", augment=True, crop_scale=(0.5, 1.0), epochs=6, minibatch=50, batch_size=32)
    config = dataclasses.replace(config, checkpoint_every=0.0, workers=1)
    data = EvalData(train=train, test=test)
    want = Linear().run(PixelEncoder(8), data, dataclasses.replace(config, cache=False))
    assert want.metrics["top1"].value > 80 and want.cost["images"] == 320 + 6 * 240
    real, calls = HeadTrainer.step, []

    def dying(self, *args):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 10:
            raise KeyboardInterrupt
        real(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(HeadTrainer, "step", dying)
        Linear().run(PixelEncoder(8), data, config)
    counted = []
    monkeypatch.setattr(HeadTrainer, "step", lambda self, *args: (counted.append(1), real(self, *args)))
    again = Linear().run(PixelEncoder(8), data, config)
    assert len(counted) == 4 * 6 - 9  # 216 images to fit, steps of 50, the last partial one left out
    assert again.metrics == want.metrics and again.details == want.details


def test_every_layer_equals_probes_of_single_layers(tiny, train, test) -> None:
    config = LinearConfig(device="cpu", cache=False, epochs=5, tokens="cls")
    data = EvalData(train=train, test=test)
    report = Linear().run(tiny, data, dataclasses.replace(config, each_layer=True))
    assert [row["layer"] for row in report.details["layers"]] == [0, 1, 2]
    for row in report.details["layers"]:
        alone = Linear().run(tiny, data, dataclasses.replace(config, layers=(row["layer"],)))
        assert row["top1"] == round(alone.metrics["top1"].value, 3) and row["width"] == 6
    best = report.details["layers"][report.details["layer"]]
    assert best["held_out_top1"] == max(row["held_out_top1"] for row in report.details["layers"])
    (figure,) = report.figures
    assert figure.picture.ndim == 3 and figure.picture.dtype == np.uint8
    with pytest.raises(ConfigError, match="each-layer"):
        Linear().run(tiny, data, dataclasses.replace(config, each_layer=True, layers=(1,)))


@pytest.mark.parametrize(
    ("name", "tokens", "width"),
    [
        ("vit_tiny_patch16_224", "cls", 4 * 192),
        ("vit_tiny_patch16_224", "cls+patch_mean", 5 * 192),
        ("swin_tiny_patch4_window7_224", "patch_mean", 96 + 192 + 384 + 768),
        ("resnet18", "pooled", 64 + 128 + 256 + 512),
        ("image_gpt_s", "pooled", 4 * 32),
    ],
)
def test_last_layers_of_every_family_are_joined(name: str, tokens: str, width: int) -> None:
    small = {"embed_dim": 32, "depth": 5, "num_heads": 2, "clusters": 8}
    igpt = name.startswith("image_gpt")
    encoder = build_encoder(name, image_size=8, arch=small) if igpt else build_encoder(name, image_size=64)
    with torch.no_grad():
        images = torch.rand(2, 3, encoder.image_size, encoder.image_size)
        joined = represent(encoder.eval(), images, tokens, (-4, -3, -2, -1))
        assert joined.shape == (2, width) and torch.isfinite(joined).all()
        if tokens != "cls+patch_mean":
            last = represent(encoder, images, tokens, (-1,))
            torch.testing.assert_close(joined[:, -last.shape[1] :], last)
