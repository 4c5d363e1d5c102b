import json
import os

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.backbones.load import is_stored, load_encoder, load_normalise
from imprint.backbones.stored import encoder_state, save_encoder, write_aside
from imprint.core.errors import CheckpointError, ConfigError, ImprintError

ENCODERS = {
    "vit": ("vit_tiny_patch16_224", {"patch_size": 8, "arch": {"embed_dim": 64, "depth": 2, "num_heads": 2}}),
    "masked": (
        "vit_tiny_patch16_224",
        {"patch_size": 8, "mask_token": True, "registers": 2, "arch": {"embed_dim": 32, "depth": 1, "num_heads": 2}},
    ),
    "sincos": ("vit_tiny_patch16_224", {"positions": "sincos", "arch": {"embed_dim": 32, "depth": 1, "num_heads": 2}}),
    "cifar": (
        "resnet18",
        {"stem": "cifar", "channels": 4, "arch": {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 24]}},
    ),
}


def make(kind="vit"):
    name, options = ENCODERS[kind]
    torch.manual_seed(0)
    encoder = build_encoder(name, image_size=32, **options)
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return encoder


def same(a, b):
    x = torch.randn(2, a.channels, 32, 32)
    with torch.no_grad():
        first, second = a.eval()(x), b(x)
    return torch.equal(first.pooled_BD, second.pooled_BD) and torch.equal(first.patches_BND, second.patches_BND)


@pytest.mark.parametrize("kind", ENCODERS)
def test_what_is_saved_loads_equal_from_every_name_of_it(kind, tmp_path):
    encoder = make(kind)
    path = save_encoder(encoder, tmp_path / "run", mean=[0.5], std=[0.2], provenance={"method": "dino", "step": 7})
    assert path == tmp_path / "run" / "encoder.safetensors"
    for name in (path, path.with_suffix(".json"), tmp_path / "run", str(tmp_path / "run")):
        loaded = load_encoder(name)
        assert same(encoder, loaded) and not loaded.training
        assert loaded.config == encoder.config
        assert load_normalise(name) == ((0.5,), (0.2,))
    described = json.loads(path.with_suffix(".json").read_text())
    assert described["provenance"] == {"method": "dino", "step": 7}
    assert sorted(p.name for p in path.parent.iterdir()) == ["encoder.json", "encoder.safetensors"]


def test_tensors_are_stored_under_timms_names():
    encoder = make("masked")
    assert set(encoder_state(encoder)) == {*encoder.model.state_dict(), "mask_token"}


def test_a_stored_encoder_may_start_another_size(tmp_path):
    encoder = make()
    save_encoder(encoder, tmp_path)
    larger = load_encoder(tmp_path, image_size=64)
    assert larger.image_size == 64 and larger.model.pos_embed.shape[1] == 65
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(larger(x).pooled_BD, encoder.eval()(x).pooled_BD, rtol=1e-5, atol=1e-5)


def test_build_encoder_takes_a_run_as_name_or_as_weights(tmp_path):
    encoder = make()
    save_encoder(encoder, tmp_path)
    by_name = build_encoder(str(tmp_path), image_size=32, drop_path=0.1)
    assert by_name.config["drop_path"] == 0.1 and same(encoder, by_name.eval())
    name, options = ENCODERS["vit"]
    assert same(encoder, build_encoder(name, image_size=32, weights=tmp_path, **options).eval())


def test_damage_is_found(tmp_path):
    path = save_encoder(make(), tmp_path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum"):
        load_encoder(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match="missing beside"):
        load_encoder(tmp_path)


def test_a_damaged_or_newer_description_is_named(tmp_path):
    path = save_encoder(make(), tmp_path).with_suffix(".json")
    described = json.loads(path.read_text())
    path.write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        load_encoder(tmp_path)
    path.write_text(json.dumps({**described, "version": 99}))
    with pytest.raises(CheckpointError, match="newer Imprint"):
        load_encoder(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_aside(path, b"old")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_aside(path / "below", b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_said_and_leaves_nothing_behind(tmp_path, monkeypatch):
    import imprint.backbones.stored as stored

    real = open

    class Full:
        def __init__(self, path, mode):
            self.file = real(path, mode)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, content):
            with real("/dev/full", "wb", buffering=0) as device:
                device.write(content)

    monkeypatch.setattr(stored, "open", Full, raising=False)
    with pytest.raises(CheckpointError, match="No space left"):
        save_encoder(make(), tmp_path)
    assert os.listdir(tmp_path) == []


def test_names_that_are_no_encoder():
    for name, message in (
        ("resnet18", "timm:resnet18"),
        ("runs/absent", "no run or exported encoder there"),
        ("absent.pth", "no run or exported encoder there"),
        ("random:resnet19", "Did you mean"),
    ):
        with pytest.raises(ImprintError, match=message):
            load_encoder(name)
        with pytest.raises(ImprintError, match=message):
            load_normalise(name)
    assert not is_stored("resnet18")


def test_an_empty_folder_is_no_encoder(tmp_path):
    with pytest.raises(CheckpointError, match="no run or exported encoder there"):
        load_encoder(tmp_path)


def test_random_models_take_timms_size_and_normalisation():
    encoder = load_encoder("random:resnet10t")
    assert encoder.image_size == 176 and not encoder.training
    assert load_normalise("random:vit_tiny_patch16_224") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert load_encoder("random:resnet10t", image_size=32).image_size == 32


@pytest.mark.parametrize("registers", [None, 2])
def test_a_public_vit_file_tells_its_own_architecture(tmp_path, registers):
    arch = {"embed_dim": 128, "depth": 3, "num_heads": 2, "init_values": 0.1}
    torch.manual_seed(0)
    source = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, arch=arch, registers=registers)
    torch.save({"teacher": {f"backbone.{k}": v for k, v in source.model.state_dict().items()}}, tmp_path / "dino.pth")
    loaded = load_encoder(tmp_path / "dino.pth")
    assert same(source, loaded) and (loaded.depth, loaded.patch_size, loaded.image_size) == (3, 8, 32)
    assert load_normalise(tmp_path / "dino.pth")[0] == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_a_public_resnet_file_tells_its_own_architecture(tmp_path, stem):
    source = build_encoder("resnet18", image_size=32, stem=stem)
    torch.save(
        {"state_dict": {f"module.encoder_q.{k}": v for k, v in source.model.state_dict().items()}}, tmp_path / "moco.pt"
    )
    loaded = load_encoder(tmp_path / "moco.pt")
    assert loaded.config["stem"] == stem and same(source, loaded)


def test_a_file_that_does_not_tell_asks_for_a_name(tmp_path):
    torch.save(build_encoder("regnetx_002", image_size=32).model.state_dict(), tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="--encoder NAME"):
        load_encoder(tmp_path / "net.pth")
    encoder = build_encoder("regnetx_002", image_size=32, weights=tmp_path / "net.pth")
    assert encoder.name == "regnetx_002"


def test_network_is_needed_only_when_asked_for(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    load_encoder("random:resnet10t", image_size=32)
    with pytest.raises(ConfigError, match="need the network once"):
        load_encoder("timm:resnet10t", image_size=32)


def test_untrained_twin_of_a_stored_encoder(tmp_path):
    trained = make()
    save_encoder(trained, tmp_path, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    torch.manual_seed(1)
    twin = load_encoder(f"random:{tmp_path}")
    assert twin.config == trained.config and not same(trained, twin)
    torch.manual_seed(1)
    assert same(twin, load_encoder(f"random:{tmp_path}"))
    assert load_normalise(f"random:{tmp_path}") == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
