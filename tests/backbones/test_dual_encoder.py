"""CLIP and SigLIP folders under the contracts: equal to transformers' own model, and every other protocol's encoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from imprint.backbones.dual_encoder import DualEncoder, require_dual
from imprint.backbones.layer_decay import layer_scales
from imprint.backbones.load import load_encoder, load_normalise
from imprint.backbones.text_encoder import StoredTokenizer, pad
from imprint.core.errors import CheckpointError, ConfigError, DataError
from imprint.evals.pixels import PixelEncoder

TEXTS = ["a red square", "the big black dog runs over the grass", "a cat"]
KINDS = ("clip", "siglip")
Folder = Callable[[str], Path]


@pytest.fixture(params=KINDS)
def dual(request: pytest.FixtureRequest, image_text_folder: Folder) -> DualEncoder:
    encoder = load_encoder(f"hf:{image_text_folder(request.param)}")
    assert isinstance(encoder, DualEncoder)
    return encoder


def reference(folder: Path, images: torch.Tensor):
    import transformers

    kind = json.loads((folder / "config.json").read_text())["model_type"]
    cls = transformers.CLIPModel if kind == "clip" else transformers.SiglipModel
    model = cls.from_pretrained(folder, local_files_only=True, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    how = {"padding": True} if kind == "clip" else {"padding": "max_length", "max_length": 12}
    words = tokenizer(TEXTS, return_tensors="pt", truncation=True, **how)
    mask = words["attention_mask"] if kind == "clip" else None
    with torch.no_grad():
        return model(input_ids=words["input_ids"], attention_mask=mask, pixel_values=images, output_attentions=True)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_logits_and_attention_are_those_of_transformers(kind: str, image_text_folder: Folder) -> None:
    encoder = load_encoder(image_text_folder(kind))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    told = reference(image_text_folder(kind), images)
    with torch.no_grad():
        features = encoder(images)
        pictures, texts = encoder.project(features.pooled_BD), encoder.encode_text(TEXTS)
        logits = encoder.logit_scale * pictures @ texts.T + encoder.logit_bias
        torch.testing.assert_close(pictures, told.image_embeds, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(texts, told.text_embeds, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(logits, told.logits_per_image, atol=1e-4, rtol=1e-4)
        for layer in (0, -1):
            expected = told.vision_model_output.attentions[layer]
            torch.testing.assert_close(encoder.attention(images, layer), expected, atol=1e-5, rtol=1e-4)


def test_image_side_is_an_encoder(dual: DualEncoder) -> None:
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = dual(images)
        first, last = dual.encode_layers(images, [0, -1])
        assert features.grid == (4, 4) and features.patches_BND.shape == (2, 16, dual.embed_dim)
        assert (features.cls_BD is None) == (dual.vision.prefix_tokens == 0)
        torch.testing.assert_close(last.patches_BND, features.patches_BND)
        torch.testing.assert_close(last.pooled_BD, features.pooled_BD)
        assert not torch.allclose(first.patches_BND, last.patches_BND)
        assert dual.encode_maps(torch.randn(1, 3, 48, 32))[0].shape == (1, dual.embed_dim, 6, 4)
    assert dual.attention(images).shape == (2, 4, 16 + dual.prefix_tokens, 16 + dual.prefix_tokens)
    json.dumps(dual.config)
    with pytest.raises(ConfigError, match="whole patches"):
        dual(torch.randn(1, 3, 33, 32))
    with pytest.raises(ConfigError, match="whole images"):
        dual.encode(images, mask_BN=torch.zeros(2, 16, dtype=torch.bool))
    with pytest.raises(ConfigError, match="it has 3"):
        dual.encode_layers(images, [3])


def test_layer_decay_knows_the_blocks_of_the_image_tower_only(dual: DualEncoder) -> None:
    scales = layer_scales(dual, 0.5)
    named = {name: scales.get(id(p)) for name, p in dual.named_parameters()}
    assert named["vision.tower.encoder.layers.2.mlp.fc1.weight"] == 0.5
    assert named["vision.tower.encoder.layers.0.mlp.fc1.weight"] == 0.125
    assert named["vision.tower.embeddings.patch_embedding.weight"] == 0.0625
    assert named["text.tower.encoder.layers.0.mlp.fc1.weight"] is None


def test_texts_are_cut_counted_padded_and_refused_when_empty(dual: DualEncoder) -> None:
    tokenizer = dual.text.tokenizer
    long = " ".join(["red"] * 40)
    batch = tokenizer([long, "a cat"])
    assert batch.cut_B.tolist() == [True, False] and batch.ids_BL.shape == (2, tokenizer.context) and len(batch) == 2
    assert isinstance(tokenizer, StoredTokenizer) and batch.ids_BL[0, -1] == tokenizer.end_id
    assert int(batch.ids_BL.max()) < tokenizer.vocabulary
    with torch.no_grad():
        together = dual.encode_text(["a cat", long, "the dog"])
        alone = torch.cat([dual.encode_text([text]) for text in ("a cat", long, "the dog")])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)  # padding says nothing
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    assert dual.encode_text([]).shape == (0, dual.joint_dim)
    with pytest.raises(DataError, match="text 2 of 2 is empty"):
        dual.encode_text(["a cat", "  "])
    assert pad([[1, 2], [3]], [False, True], 9).ids_BL.tolist() == [[1, 2], [3, 9]]


def test_learned_scale_is_clamped(dual: DualEncoder) -> None:
    with torch.no_grad():
        dual.log_scale.fill_(9.0)
    assert dual.logit_scale.item() == 100.0
    with pytest.raises(ConfigError, match="must be the same"):
        DualEncoder(dual.vision, dual.text, nn.Linear(32, 7), dual.log_scale)


def test_normalisation_is_the_kinds_own_or_the_processors(image_text_folder: Folder, tmp_path: Path) -> None:
    assert load_normalise(image_text_folder("siglip"))[0] == (0.5, 0.5, 0.5)
    assert load_normalise(f"hf:{image_text_folder('clip')}")[1][0] == pytest.approx(0.26862954)
    copy = shutil.copytree(image_text_folder("clip"), tmp_path / "clip")
    (copy / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1] * 3, "image_std": [0.2] * 3}))
    assert load_normalise(copy) == ((0.1,) * 3, (0.2,) * 3)


def test_foreign_damaged_or_missing_folders_are_named(image_text_folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        load_encoder("hf:openai/clip-vit-base-patch32")
    copy = shutil.copytree(image_text_folder("clip"), tmp_path / "a")
    (copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_encoder(copy)
    copy = shutil.copytree(image_text_folder("clip"), tmp_path / "b")
    (copy / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_encoder(copy)
    # A model that looks for another end token would read every text at its start, without any error.
    copy = shutil.copytree(image_text_folder("clip"), tmp_path / "c")
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 1
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="do not belong together"):
        load_encoder(copy)
    with pytest.raises(ConfigError, match="text tower"):
        require_dual(PixelEncoder(), "zeroshot")
