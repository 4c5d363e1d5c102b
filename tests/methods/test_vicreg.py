import dataclasses

import numpy as np
import pytest
import torch

from imprint.backbones.arch import Arch
from imprint.backbones.build import build_encoder
from imprint.backbones.load import load_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress, Steps
from imprint.data.arrays import ArraySource
from imprint.data.batch import Batch
from imprint.methods.vicreg import VICReg, VICRegConfig
from imprint.recipes.book import recipe
from imprint.train.config import DataConfig
from imprint.train.loop import train

NOW = Progress(0, 10, 5)
SMALL = Arch(layers=(1, 1, 1, 1), channels=(16, 16, 24, 48))


def method_of(channels=3, **changes):
    torch.manual_seed(0)
    config = recipe("vicreg/debug")
    encoder = build_encoder(
        config.encoder.name, image_size=32, stem="cifar", arch=config.encoder.arch, channels=channels
    )
    return VICReg(dataclasses.replace(config.method, **changes), encoder)


def batch_of(views):
    return Batch(views={"global": views}, index_B=torch.arange(views.shape[1]))


def test_defaults_are_the_papers():
    cfg = VICRegConfig()
    assert (cfg.sim_coeff, cfg.std_coeff, cfg.cov_coeff, cfg.gamma, cfg.eps) == (25.0, 25.0, 1.0, 1.0, 1e-4)
    assert cfg.expander == (8192, 8192, 8192) and cfg.second is None
    (view,) = VICReg.views(cfg, 224)
    assert (view.look_of(0).blur, view.look_of(1).blur, view.look_of(1).solarise) == (1.0, 0.1, 0.2)


def test_loss_is_the_weighted_sum_and_equal_views_have_no_distance():
    method = method_of()
    out = method(batch_of(torch.randn(1, 16, 3, 32, 32).expand(2, -1, -1, -1, -1)), NOW)
    m = {name: float(value) for name, value in out.metrics.items()}
    assert m["vicreg/invariance"] == 0.0
    assert float(out.loss) == pytest.approx(25 * m["vicreg/variance"] + m["vicreg/covariance"], rel=1e-5)


def test_shared_branches_store_their_weights_once():
    method = method_of()
    assert method.second is None and not any(name.startswith("second") for name in method.state_dict())
    method(batch_of(torch.randn(2, 16, 3, 32, 32)), NOW).loss.backward()
    assert all(p.grad is not None for p in method.parameters())


@pytest.mark.parametrize("second", ["same", "resnet34"])
def test_a_second_encoder_has_weights_of_its_own_and_both_learn(second):
    own = {} if second == "same" else {"second_arch": SMALL, "second_stem": "cifar"}
    method = method_of(second=second, **own)
    assert method.encoder is method.branch.backbone
    first, other = method.branch.backbone, method.second.backbone
    assert other.embed_dim == (first.embed_dim if second == "same" else 48)
    if second == "same":
        assert not torch.equal(next(first.parameters()), next(other.parameters()))
    method(batch_of(torch.randn(2, 16, 3, 32, 32)), NOW).loss.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_two_kinds_of_input_reach_one_branch_each():
    method = method_of(second="same", second_channels=(3,))
    views = torch.randn(2, 16, 4, 32, 32)
    plain = method(batch_of(views), NOW).loss
    unseen = views.clone()
    unseen[0, :, 3] = 0  # the first branch does not see depth
    unseen[1, :, :3] = 0  # nor the second colours
    torch.testing.assert_close(method(batch_of(unseen), NOW).loss, plain)
    views[1, :, 3] *= torch.randn(16, 1, 1)
    assert abs(float(method(batch_of(views), NOW).loss - plain)) > 1e-4


def test_channels_that_do_not_fit_are_named():
    with pytest.raises(ConfigError, match="--method.second same"):
        method_of(second_channels=(3,))
    with pytest.raises(ConfigError, match="the images have 3"):
        method_of(second="same", second_channels=(3,))(batch_of(torch.randn(2, 4, 3, 32, 32)), NOW)


def test_weights_at_zero_are_dangers():
    assert VICReg.dangers(VICRegConfig()) == ()
    std, cov = VICReg.dangers(VICRegConfig(std_coeff=0.0, cov_coeff=0.0))
    assert "--method.std-coeff" in std and "--method.cov-coeff" in cov


@pytest.fixture
def rgbd():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (48, 6, 6, 4), dtype=np.uint8)
    return ArraySource(coarse.repeat(8, 1).repeat(8, 2), np.arange(48) % 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"second": "same", "second_channels": (3,)},
        {"second": "resnet34", "second_arch": SMALL, "second_stem": "cifar", "second_channels": (2, 3)},
        {"second": "vit_tiny_patch16_224", "second_arch": Arch(embed_dim=24, depth=1, num_heads=2),
         "second_patch_size": 8, "second_channels": (0, 3)},
    ],
    ids=["same", "resnet34", "vit"],
)  # fmt: skip
def test_two_branches_train_end_to_end_on_four_channels(changes, rgbd, tmp_path):
    base = recipe("vicreg/debug")
    plan = dataclasses.replace(
        base,
        method=dataclasses.replace(base.method, **changes),
        encoder=dataclasses.replace(base.encoder, channels=3),
        data=DataConfig(mean=(0.5, 0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25, 0.25)),
        length=Steps(4),
        probe_every=Steps(2),
        device="cpu",
        workers=1,
    )
    run = train(plan, tmp_path / "run", source=rgbd)
    stored = run.checkpoints.latest().tensors("model")
    assert any(name.startswith("second.backbone") for name in stored)
    assert any("probe/knn_top1" in line for line in run.metrics())
    encoder = load_encoder(str(run.path))
    assert encoder.channels == 3
    assert encoder(torch.zeros(2, 3, 32, 32)).pooled_BD.shape == (2, encoder.embed_dim)
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(value, stored[f"branch.backbone.{name}"])
