import dataclasses
import importlib

import pytest
import torch
import torch.nn.functional as F

from imprint.backbones.build import build_encoder
from imprint.core.progress import Epochs, Progress, Steps
from imprint.data.batch import Batch
from imprint.methods.seer import SEER, SEERConfig
from imprint.ops.sinkhorn import sinkhorn
from imprint.recipes import seer as recipes
from imprint.recipes.book import recipe

LATE = Progress(10, 20, 5)


@pytest.fixture
def method():
    torch.manual_seed(0)
    config = recipe("seer/debug")
    return SEER(config.method, build_encoder(config.encoder.name, image_size=32))


def batch_of(count=8):
    generator = torch.Generator().manual_seed(0)
    views = {name: torch.randn(2, count, 3, 32, 32, generator=generator) for name in ("global", "local")}
    return Batch(views=views, index_B=torch.arange(count))


def test_defaults_are_the_papers():
    cfg = SEERConfig()
    assert (cfg.hidden, cfg.projection, cfg.prototypes) == (8192, 256, 16_000)
    assert (cfg.temperature, cfg.epsilon, cfg.sinkhorn_iterations) == (0.1, 0.05, 10)
    large, small = SEER.views(cfg, 160)
    assert (large.count, large.crop.size, small.count, small.crop.size) == (2, 160, 4, 96)
    assert large.crop.scale == (0.14, 1.0) and small.crop.scale == (0.05, 0.14)


def test_the_head_is_three_layers_without_batch_norm(method):
    kinds = [type(layer) for layer in method.branch.head]
    assert kinds == [torch.nn.Linear, torch.nn.ReLU, torch.nn.Linear, torch.nn.ReLU, torch.nn.Linear]
    assert all(layer.bias is not None for layer in method.branch.head if isinstance(layer, torch.nn.Linear))


def test_the_loss_is_the_swapped_prediction_of_its_definition(method):
    batch = batch_of()
    state = {k: v.clone() for k, v in method.state_dict().items()}
    with torch.no_grad():
        z = F.normalize(method.branch(batch.views["global"], batch.views["local"]), dim=-1)
    method.load_state_dict(state)
    scores = z @ method.prototypes.weight.detach().T
    codes = [sinkhorn(s, 0.05, 10) for s in scores[:2]]
    terms = [
        -(codes[w] * F.log_softmax(scores[v] / 0.1, -1)).sum(-1).mean() for w in range(2) for v in range(4) if v != w
    ]
    output = method(batch, LATE)
    torch.testing.assert_close(output.loss.detach(), torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)
    assert {"seer/code_entropy", "seer/prototypes_used"} < output.metrics.keys()


def test_prototypes_are_frozen_then_free_and_stay_on_the_sphere(method):
    method(batch_of(), LATE).loss.backward()
    assert method.prototypes.weight.grad is not None
    method.before_optimizer_step(Progress(2, 20, 5))
    assert method.prototypes.weight.grad is not None, "free from step 2 on"
    method.before_optimizer_step(Progress(1, 20, 5))
    assert method.prototypes.weight.grad is None
    with torch.no_grad():
        method.prototypes.weight.mul_(3)
        method.after_optimizer_step(LATE)
    torch.testing.assert_close(method.prototypes.weight.norm(dim=-1), torch.ones(24))


def test_switching_sinkhorn_off_is_called_dangerous():
    assert SEER.dangers(SEERConfig()) == ()
    assert "sinkhorn" in SEER.dangers(SEERConfig(sinkhorn_iterations=0))[0]


def test_paper_recipes_have_the_papers_schedule():
    for name in recipes.__all__:
        config = recipe(f"seer/{name}")
        if not name.startswith("paper"):
            continue
        lr = config.optim.lr.schedule(config.batch_size)
        clock = Progress(0, 122_000, 122_000)
        assert lr(clock) == pytest.approx(0.15) and lr(clock.at(8000)) == pytest.approx(9.6, rel=1e-3)
        assert lr(clock.at(122_000)) == pytest.approx(0.0096, rel=1e-3)
        assert config.length == Steps(122_000) and config.optim.weight_decay(clock) == 1e-5
        assert config.checkpoint_activations and config.shard == "optimizer" and config.data.stream == "auto"
    assert recipe("seer/paper").encoder.name == "regnety_2560"
    assert recipe("seer/small").length == Epochs(1)


def test_the_papers_network_is_the_one_of_the_public_code():
    importlib.import_module("imprint.backbones.torchvision_compat")  # makes timm importable everywhere
    from timm import create_model

    with torch.device("meta"):
        net = create_model("regnety_2560", num_classes=0)
    assert net.num_features == 10_444 and 1.2e9 < sum(p.numel() for p in net.parameters()) < 1.35e9


def test_small_fits_the_backbone_to_the_image():
    assert recipe("seer/small", image_size=32).encoder.name == "resnet18"
    assert recipe("seer/small", image_size=160).encoder.name == "regnety_004"
    assert dataclasses.replace(recipe("seer/small")).optim.name == "adamw"
