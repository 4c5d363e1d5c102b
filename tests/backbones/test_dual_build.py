"""Two towers built, stored, loaded, left untrained, and taken apart again."""

from __future__ import annotations

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.backbones.dual_build import build_dual
from imprint.backbones.dual_encoder import DualEncoder
from imprint.backbones.load import load_encoder
from imprint.backbones.stored import save_encoder
from imprint.backbones.text_tokenizer import train_tokenizer
from imprint.backbones.text_tower import TowerShape
from imprint.core.errors import CheckpointError, ConfigError
from imprint.export.formats import export

TEXTS = ["a red dog", "two cats on the grass", "a"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 3, "wordpiece", vocabulary=60)


@pytest.fixture(params=["clip", "siglip"])
def dual(request, tokenizer):
    torch.manual_seed(0)
    kind = request.param
    vision = build_encoder(
        "vit_tiny_patch16_224", image_size=32, patch_size=8, arch={"embed_dim": 32, "depth": 2, "num_heads": 2}
    )
    shape = TowerShape(
        kind=kind, vocabulary=60, context=10, width=16, layers=2, heads=2,
        joint=24 if kind == "clip" else 32, pool="end" if kind == "clip" else "last", dropout=0.1,
    )  # fmt: skip
    made = build_dual(vision, shape, scale=10.0, bias=None if kind == "clip" else -10.0)
    made.tokenizer = tokenizer
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made.eval()


def images(size=32):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def answers(encoder):
    with torch.no_grad():
        return encoder.project(encoder(images()).pooled_BD), encoder.encode_text(TEXTS)


def test_stored_and_loaded_it_is_the_same_model(dual, tokenizer, tmp_path):
    save_encoder(dual, tmp_path, provenance={"method": "clip"})
    assert (tmp_path / "encoder.tokenizer.json").is_file()
    for name in (tmp_path, tmp_path / "encoder.safetensors"):
        back = load_encoder(name)
        assert isinstance(back, DualEncoder) and back.config == dual.config
        for mine, theirs in zip(answers(dual), answers(back), strict=True):
            assert torch.equal(mine, theirs)
        assert back.log_scale.item() == dual.log_scale.item()
        assert (back.bias is None) == (dual.bias is None) and back.logit_bias.item() == dual.logit_bias.item()
        assert back.tokenizer is not None and back.tokenizer.fingerprint == tokenizer.fingerprint
        assert back.text.tokenizer.fingerprint == dual.text.tokenizer.fingerprint


def test_its_config_builds_it_again(dual):
    again = build_encoder(**dual.config)
    assert isinstance(again, DualEncoder) and again.config == dual.config
    again.load_state_dict(dual.state_dict())
    again.tokenizer = dual.tokenizer
    assert torch.equal(answers(again.eval())[1], answers(dual)[1])


def test_its_untrained_twin_has_its_shape_and_tokenizer(dual, tmp_path):
    save_encoder(dual, tmp_path)
    twin = load_encoder(f"random:{tmp_path}")
    assert isinstance(twin, DualEncoder) and twin.config == dual.config
    assert not torch.allclose(answers(twin)[0], answers(dual)[0], atol=1e-3)
    assert twin.encode_text(TEXTS).shape == (3, dual.joint_dim)


def test_another_image_size_interpolates_positions_of_the_image_tower(dual, tmp_path):
    save_encoder(dual, tmp_path)
    large = load_encoder(tmp_path, image_size=64)
    assert large.image_size == 64 and large(images(64)).patches_BND.shape[1] == 64
    assert torch.equal(answers(large)[1], answers(dual)[1])


def test_its_name_stands_for_the_image_tower_in_training(dual, tmp_path):
    save_encoder(dual, tmp_path)
    for tower in (
        build_encoder(str(tmp_path), image_size=32),
        build_encoder(**dual.vision.config, weights=tmp_path / "encoder.safetensors"),
    ):
        assert not isinstance(tower, DualEncoder)
        with torch.no_grad():
            assert torch.equal(tower.eval()(images()).pooled_BD, dual(images()).pooled_BD)


def test_damaged_or_foreign_towers_are_refused(dual, tmp_path):
    save_encoder(dual, tmp_path)
    config = dual.config
    with pytest.raises(CheckpointError, match="another version"):
        build_encoder(**{**config, "text": {**config["text"], "colour": 3}})
    with pytest.raises(CheckpointError, match="does not fit its text tower"):
        build_encoder(**{**config, "text": {**config["text"], "width": 8}}, weights=tmp_path / "encoder.safetensors")
    reader = build_encoder("text:bert", image_size=32, arch={"embed_dim": 16, "depth": 1, "num_heads": 2},
                           vocabulary=60, context=10)  # fmt: skip
    with pytest.raises(ConfigError, match="must see images"):
        build_dual(reader, TowerShape(**{k: v for k, v in config["text"].items() if k != "biased"}))


def test_exported_it_keeps_both_towers_or_gives_its_image_tower(dual, tmp_path):
    done = export(dual, "safetensors", tmp_path / "both")
    assert done.max_abs_diff < 1e-5 and torch.equal(answers(load_encoder(done.path))[1], answers(dual)[1])
    alone = export(done.path, "timm", tmp_path / "timm")
    assert alone.max_abs_diff < 1e-4
