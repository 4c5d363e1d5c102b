import pytest
import torch
from torch import nn

from imprint.backbones.build import build_encoder, published_config
from imprint.backbones.stored import save_encoder
from imprint.backbones.teacher import Teacher, load_teacher
from imprint.core.errors import CheckpointError, ConfigError
from imprint.data.batch import Normalise

KINDS = {
    "resnet18": (64, (0.485, 0.456, 0.406)),
    "convnext_atto": (64, (0.485, 0.456, 0.406)),
    "mobilenetv3_small_050": (64, (0.485, 0.456, 0.406)),
    "vit_tiny_patch16_224": (224, (0.5, 0.5, 0.5)),
    "deit_tiny_distilled_patch16_224": (224, (0.485, 0.456, 0.406)),
}


@pytest.fixture
def file(request, tmp_path):
    """A timm model with a classifier of 7 classes, random throughout, and its weights in a file."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(request.param, num_classes=7)
    for name, parameter in model.named_parameters():
        if name.startswith(("head", "fc", "classifier")):
            nn.init.normal_(parameter, std=0.2)
    path = tmp_path / "weights.pth"
    torch.save({"model": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    return request.param, model.eval(), path


@pytest.mark.parametrize("file", KINDS, indirect=True)
def test_a_timm_teacher_says_what_timm_says_whatever_the_normalisation(file):
    name, model, path = file
    size, mean = KINDS[name]
    teacher = load_teacher(f"timm:{name}", image_size=size, weights=path)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    ours, theirs = Normalise((0.3, 0.4, 0.5), (0.2, 0.3, 0.1)), Normalise(mean, tuple(published_config(name)["std"]))
    with torch.no_grad():
        want = model(theirs(images))
    assert teacher.classes == 7
    said = teacher(theirs(images))  # before `normalised_by`: as the teacher's own
    torch.testing.assert_close(said.logits_BK, want, rtol=1e-4, atol=1e-4)
    teacher.normalised_by(ours)
    torch.testing.assert_close(teacher(ours(images)).logits_BK, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("file", ["resnet18"], indirect=True)
def test_published_weights_bring_their_classifier(file, monkeypatch):
    import timm

    name, model, path = file
    real = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained=False, **k: model if pretrained else real(name, **k)
    )
    monkeypatch.setattr("timm.models.get_pretrained_cfg", lambda name: type("C", (), {
        "has_weights": True, "fixed_input_size": False, "to_dict": lambda self: {"classifier": "fc"},
    })())  # fmt: skip
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(load_teacher(f"timm:{name}", image_size=64)(x).logits_BK, model(x))


@pytest.mark.parametrize("file", ["resnet18"], indirect=True)
def test_images_are_shown_at_the_teachers_size_and_grey_ones_too(file):
    name, model, path = file
    teacher = load_teacher(f"timm:{name}", image_size=64, weights=path)
    x = torch.randn(2, 3, 32, 32)
    large = torch.nn.functional.interpolate(x, size=(64, 64), mode="bicubic", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(teacher(x).logits_BK, model(large))
    grey = load_teacher(f"timm:{name}", image_size=64, channels=1, weights=path)
    grey.normalised_by(Normalise((0.5,), (0.25,)))
    assert grey(torch.randn(2, 1, 64, 64)).logits_BK.shape == (2, 7)


def test_weights_without_a_classifier_give_features(tmp_path):
    import timm

    model = timm.create_model("resnet18", num_classes=0).eval()
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    teacher = load_teacher("timm:resnet18", image_size=32, weights=tmp_path / "bare.pth")
    x = torch.randn(2, 3, 32, 32)
    said = teacher(x)
    assert said.logits_BK is None and teacher.classes == 0
    with torch.no_grad():
        torch.testing.assert_close(said.pooled_BD, model(x))


def test_an_exported_encoder_gives_tokens_and_a_grid(tmp_path):
    arch = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, arch=arch).eval()
    save_encoder(encoder, tmp_path, mean=[0.5], std=[0.5])
    teacher = load_teacher(tmp_path, image_size=32)
    teacher.normalised_by(Normalise((0.5,), (0.5,)))
    x = torch.randn(2, 3, 32, 32)
    said = teacher(x)
    with torch.no_grad():
        assert torch.equal(said.pooled_BD, encoder(x).pooled_BD)
    assert said.logits_BK is None and said.patches_BND.shape == (2, 16, 32) and said.grid == (4, 4)


def test_it_never_trains():
    encoder = build_encoder("resnet18", image_size=32, stem="cifar", arch={"channels": [8, 8, 8, 8]})
    head = nn.Linear(8, 3)
    teacher = Teacher(encoder, (head,), Normalise())
    holder = nn.ModuleDict({"teacher": teacher}).train()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    x = torch.randn(4, 3, 32, 32, requires_grad=True)
    said = holder["teacher"](x)
    assert not any(m.training for m in teacher.modules()) and not said.logits_BK.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert "scale" not in before and "shift" not in before  # a function of the configuration


def test_what_cannot_teach_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="timm:NAME"):
        load_teacher("random:resnet18", image_size=32, weights=tmp_path / "x.pth")
    with pytest.raises(ConfigError, match="Did you mean|nearest|resnet18"):
        load_teacher("timm:resnet81", image_size=32)
    with pytest.raises(CheckpointError, match="no such file"):
        load_teacher("timm:resnet18", image_size=32, weights=tmp_path / "absent.pth")
    encoder = build_encoder("resnet18", image_size=32, channels=4, stem="cifar", arch={"channels": [8, 8, 8, 8]})
    save_encoder(encoder, tmp_path / "four", mean=[0.5], std=[0.5])
    with pytest.raises(ConfigError, match="4 channels and these have 3"):
        load_teacher(tmp_path / "four", image_size=32)
    with pytest.raises(ConfigError, match="4 channels and these have 3"):
        Teacher(encoder, (), Normalise())(torch.randn(1, 3, 32, 32))
