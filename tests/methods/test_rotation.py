import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.methods.rotation import Rotation, RotationConfig
from imprint.recipes.book import recipe

T = Progress(0, 10, 5)


def make(**changes):
    torch.manual_seed(0)
    config = recipe("rotation/debug").encoder
    encoder = build_encoder(config.name, image_size=32, stem="cifar", arch=config.arch)
    return Rotation(RotationConfig(**changes), encoder)


def batch_of(count=4):
    return Batch(views={"global": torch.randn(1, count, 3, 32, 32)}, index_B=torch.arange(count))


def test_defaults_are_the_papers():
    cfg = RotationConfig()
    assert cfg.angles == (0, 90, 180, 270) and cfg.quarters == (0, 1, 2, 3)
    (view,) = Rotation.views(cfg, 224)
    assert view.count == 1 and view.crop.scale == (0.08, 1.0) and view.look.flip == 0.5 and view.look.jitter == 0.0


def test_loss_is_the_mean_over_rotations_one_by_one():
    method, batch = make().eval(), batch_of()
    images = batch.views["global"][0]
    total, right = 0.0, 0
    for label in range(4):
        for image in images:
            turned = torch.rot90(image, label, (1, 2))[None]
            logits = method.classifier(method.encoder(turned).pooled_BD)
            total += float(-logits.detach().log_softmax(-1)[0, label])
            right += int(logits.argmax() == label)
    out = method(batch, T)
    assert float(out.loss.detach()) == pytest.approx(total / 16, rel=1e-4)
    assert float(out.metrics["rotation/accuracy"]) == pytest.approx(right / 16)
    assert float(method.solved(batch, T).mean()) == pytest.approx(right / 16)


def test_an_undecided_network_is_at_chance():
    method = make()
    torch.nn.init.zeros_(method.classifier.weight)
    torch.nn.init.zeros_(method.classifier.bias)
    out = method(batch_of(), T)
    assert float(out.loss.detach()) == pytest.approx(torch.tensor(4.0).log().item())
    out.loss.backward()
    assert method.classifier.weight.grad.abs().sum() > 0


def test_two_rotations_are_two_classes():
    method = make(angles=(0, 180))
    assert method.classifier.out_features == 2 and method(batch_of(), T).loss.isfinite()


@pytest.mark.parametrize("angles", [(0, 45), (0, 360), (0,), ()])
def test_other_angles_are_refused(angles):
    with pytest.raises(ConfigError, match="multiples of 90"):
        make(angles=angles)


def test_pictures_show_what_was_predicted():
    method, batch = make().eval(), batch_of(8)
    images = batch.views["global"][0]
    pictures = method.reconstruct(batch, T)
    assert list(pictures) == ["image", "rotated", "turned back"]
    for n in range(8):
        turned = torch.rot90(images[n], n % 4, (1, 2))
        assert torch.equal(pictures["rotated"][n], turned)
        guess = int(method.classifier(method.encoder(turned[None]).pooled_BD).argmax())
        undone = torch.rot90(turned, -guess, (1, 2))
        assert torch.equal(pictures["turned back"][n, :, 1:-1, 1:-1], undone[:, 1:-1, 1:-1])
        assert (pictures["turned back"][n, 1, 0, 0] > 0) == (guess == n % 4)
