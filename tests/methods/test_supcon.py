import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from imprint.backbones.build import build_encoder
from imprint.core.errors import DataError
from imprint.core.progress import Epochs, Progress
from imprint.data.arrays import ArraySource
from imprint.data.batch import Batch
from imprint.losses.supcon import supcon
from imprint.methods.supcon import SupCon, SupConConfig, _only_of_its_class
from imprint.recipes import supcon as recipes
from imprint.recipes.book import recipe
from imprint.train.loop import train

NOW = Progress(0, 10, 5)
PIXELS = np.random.default_rng(0).integers(0, 255, (32, 32, 32, 3), dtype=np.uint8)


def make(**changes):
    torch.manual_seed(0)
    config = recipe("supcon/debug")
    encoder = build_encoder(config.encoder.name, image_size=32, stem="cifar", arch=config.encoder.arch)
    return SupCon(dataclasses.replace(config.method, **changes), encoder)


@pytest.fixture
def method():
    return make()


def batch_of(count=6, labels=(0, 0, 1, 1, 1, 2)):
    torch.manual_seed(1)
    views = {"global": torch.randn(2, count, 3, 32, 32)}
    return Batch(
        views=views, index_B=torch.arange(count), labels_B=None if labels is None else torch.tensor(labels[:count])
    )


def test_defaults_are_the_public_codes():
    cfg = SupConConfig()
    assert (cfg.temperature, cfg.base_temperature, cfg.contrast, cfg.projection) == (0.1, 0.07, "all", 128)
    (view,) = SupCon.views(cfg, 224)
    look = view.look_of(0)
    assert (view.count, view.crop.scale, look.blur, look.grey, look.jitter) == (2, (0.2, 1.0), 0.0, 0.2, 0.8)
    assert (look.brightness, look.contrast, look.saturation, look.hue) == (0.4, 0.4, 0.4, 0.1)
    run = recipes.paper()
    assert (run.optim.lr.base, run.batch_size, run.length) == (0.4, 6144, Epochs(350))
    rate = recipes.paper_cifar10().optim.lr.schedule(1024)
    clock = Progress(0, 10_000, 10)
    assert rate(clock) == pytest.approx(0.01) and rate(clock.at(100)) == pytest.approx(0.5)


def test_the_head_has_no_batch_norm(method):
    assert [type(m) for m in method.branch.head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert all(m.bias is not None for m in method.branch.head if isinstance(m, nn.Linear))


def test_loss_is_that_of_normalised_embeddings_and_labels(method):
    batch, twin = batch_of(), make()
    out = method(batch, NOW)
    features = F.normalize(twin.branch(batch.views["global"]), dim=-1).transpose(0, 1)
    torch.testing.assert_close(out.loss, supcon(features, batch.labels_B))
    out.loss.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    assert method.encoder is method.branch.backbone


def test_labels_matter(method):
    method.eval()
    losses = [method(batch_of(labels=labels), NOW).loss for labels in ((0, 0, 1, 1, 1, 2), (0, 1, 0, 1, 2, 1))]
    assert abs(float(losses[0] - losses[1])) > 1e-6


def test_share_of_images_alone_in_their_class():
    assert _only_of_its_class(torch.tensor([3, 1, 3, 2])).item() == 0.5
    assert _only_of_its_class(torch.tensor([1, 1])).item() == 0.0
    assert _only_of_its_class(torch.tensor([4])).item() == 1.0
    method = make()
    assert method(batch_of(), NOW).metrics["supcon/only_of_its_class"].item() == pytest.approx(1 / 6)


def test_refuses_images_without_labels_before_anything_is_built(method, tmp_path):
    config = dataclasses.replace(recipe("supcon/debug"), device="cpu", workers=1)
    with pytest.raises(DataError, match="supcon learns from labels.*one folder per class"):
        train(config, tmp_path / "run", source=ArraySource(PIXELS))
    with pytest.raises(DataError, match="labels"):
        method(batch_of(labels=None), NOW)


def test_refuses_a_folder_without_classes(tmp_path):
    import cv2

    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(PIXELS[:4]):
        cv2.imwrite(str(folder / f"{i}.png"), image)
    config = recipe("supcon/debug")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, train=(str(folder),)), device="cpu")
    with pytest.raises(DataError, match="has none: use one folder per class"):
        train(config, tmp_path / "run")


def test_refuses_a_single_class_and_negative_labels(tmp_path):
    config = dataclasses.replace(recipe("supcon/debug"), device="cpu", workers=1)
    with pytest.raises(DataError, match="one class only"):
        train(config, tmp_path / "run", source=ArraySource(PIXELS, np.zeros(32, dtype=int)))
    with pytest.raises(DataError, match="must not be negative"):
        ArraySource(PIXELS, np.full(32, -1))
