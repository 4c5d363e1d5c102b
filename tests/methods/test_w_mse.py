import dataclasses

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.methods.w_mse import WMSE, WMSEConfig, partitions
from imprint.recipes.book import recipe

NOW = Progress(3, 10, 5)


def method_of(**changes):
    torch.manual_seed(0)
    config = recipe("w_mse/debug")
    encoder = build_encoder(config.encoder.name, image_size=32, stem="cifar", arch=config.encoder.arch)
    return WMSE(dataclasses.replace(config.method, **changes), encoder)


def batch_of(views):
    return Batch(views={"global": views}, index_B=torch.arange(views.shape[1]))


def test_defaults_are_the_papers():
    cfg = WMSEConfig()
    assert (cfg.num_views, cfg.hidden, cfg.projection, cfg.w_size, cfg.w_iter, cfg.w_eps) == (2, 1024, 64, 128, 1, 0.0)
    (view,) = WMSE.views(WMSEConfig(num_views=4), 32)
    assert view.count == 4 and view.crop.scale == (0.2, 1.0) and view.crop.interpolation == "bicubic"
    look = view.look_of(3)
    assert (look.brightness, look.contrast, look.saturation, look.hue) == (0.4, 0.4, 0.4, 0.1)
    assert (look.jitter, look.grey, look.blur, look.flip) == (0.8, 0.1, 0.0, 0.5)
    for name, views, batch, width, size, rate in (
        ("paper", 2, 512, 64, 128, 3e-3),
        ("paper_d4", 4, 256, 64, 128, 3e-3),
        ("paper_stl10", 2, 512, 128, 256, 2e-3),
        ("paper_stl10_d4", 4, 256, 128, 256, 2e-3),
    ):
        plan = recipe(f"w_mse/{name}")
        got = plan.method
        assert (got.num_views, plan.batch_size, got.projection, got.w_size) == (views, batch, width, size)
        rates = plan.optim.lr.schedule(batch)
        spe, total = 100, round(plan.length.n) * 100
        at = {step: rates(Progress(step, total, spe)) for step in (250, 500, total - 4999, total - 2499)}
        assert list(at.values()) == pytest.approx([rate / 2, rate, rate * 0.2, rate * 0.04])


def test_equal_views_are_easier_than_unrelated_ones():
    method = method_of()
    same = method(batch_of(torch.randn(1, 16, 3, 32, 32).expand(3, -1, -1, -1, -1)), NOW)
    other = method(batch_of(torch.randn(3, 16, 3, 32, 32)), NOW)
    assert float(same.loss) < 1e-6 and 1.0 < float(other.loss) < 3.0


def test_every_parameter_learns_and_all_are_in_one_decayed_group():
    method = method_of()
    method(batch_of(torch.randn(3, 16, 3, 32, 32)), NOW).loss.backward()
    assert all(p.grad is not None for p in method.parameters())
    (group,) = method.param_groups()
    assert group.decay and len(group.params) == len(list(method.parameters()))


def test_partitions_depend_on_the_step_alone():
    a, b = partitions(3, 32, NOW), partitions(3, 32, NOW.at(4))
    assert torch.equal(a, partitions(3, 32, NOW)) and not torch.equal(a, b)
    assert torch.equal(a.sort(-1).values, torch.arange(32).expand(3, -1))
    assert not torch.equal(a[0], a[1])


def test_the_batch_is_cut_by_the_partition():
    """Sub-batches of 8 of 16: another partition, another loss; one of all 16 knows no order."""
    method = method_of()
    batch = batch_of(torch.randn(3, 16, 3, 32, 32))
    assert float(method(batch, NOW).loss) != float(method(batch, NOW.at(7)).loss)
    whole = method_of(w_size=16)
    assert float(whole(batch, NOW).loss) == pytest.approx(float(whole(batch, NOW.at(7)).loss), rel=1e-5)


def test_sizes_that_cannot_be_whitened_are_named():
    with pytest.raises(ConfigError, match="w_size > 64"):
        WMSEConfig(w_size=64)
    with pytest.raises(ConfigError, match="at least 2 views"):
        WMSEConfig(num_views=1)
    with pytest.raises(ConfigError, match="multiple of w_size"):
        method_of().check_batch(12)


def test_whitening_off_is_a_danger():
    assert WMSE.dangers(WMSEConfig()) == ()
    (text,) = WMSE.dangers(WMSEConfig(whiten=False))
    assert "--method.whiten" in text
