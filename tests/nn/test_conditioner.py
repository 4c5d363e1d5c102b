import pytest
import torch
from torch import nn

from imprint.backbones.build import build_encoder
from imprint.methods.catalog import method_class
from imprint.nn.conditioner import Conditioner, find_projector
from imprint.nn.heads import PrototypeHead
from imprint.recipes.book import recipe


def build(name):
    config = recipe(f"{name}/debug")
    options = {k: v for k, v in vars(config.encoder).items() if k != "channels"}
    return method_class(name)(config.method, build_encoder(**options))


@pytest.mark.parametrize("name", ["simclr", "byol", "moco_v2", "vicreg", "dino", "ibot", "swav"])
def test_projectors_of_methods_are_found(name):
    method = build(name)
    found = find_projector(method, method.encoder)
    assert found is not None
    whole = Conditioner(method.encoder, found)
    out = whole(torch.randn(3, 3, 32, 32))
    assert out.shape == (3, whole.width) and whole.width < 3000
    if isinstance(found, PrototypeHead):
        torch.testing.assert_close(out.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("name", ["mae", "beit", "simmim", "dvae"])
def test_heads_of_patches_are_no_projectors(name):
    config = recipe(f"{name}/debug")
    options = {k: v for k, v in vars(config.encoder).items() if k != "channels"}
    method = method_class(name)(config.method, build_encoder(**options))
    assert find_projector(method, method.encoder) is None


def test_vectors_are_standardised_and_nothing_moves():
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", image_size=32, stem="cifar", arch={"layers": (1,) * 4, "channels": (16,) * 4})
    conditioner = Conditioner(encoder, nn.Linear(16, 5))
    assert conditioner.width == 5 and not conditioner.train().encoder.training
    assert not any(p.requires_grad for p in conditioner.parameters())
    images = torch.randn(70, 3, 32, 32)
    before = {n: v.clone() for n, v in encoder.state_dict().items()}
    conditioner.learn_scale(images)
    out = conditioner(images)
    torch.testing.assert_close(out.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.square().mean(), torch.ones(()), atol=1e-4, rtol=0)
    assert all(torch.equal(before[n], v) for n, v in encoder.state_dict().items())
