"""Text towers against transformers' own with the same weights, and what their rows may and may not depend on."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from imprint.backbones.text_tokenizer import SPECIAL, train_tokenizer
from imprint.backbones.text_tower import TextTower, TowerShape, TowerTokenizer
from imprint.core.errors import ConfigError, DataError

WORDS = ["a red dog on the grass", "two cats", "the blue car near a tree and a house by the sea"]
END = 3


def shape(kind="clip", **changes):
    pool = "end" if kind == "clip" else "last"
    sizes = {"vocabulary": 40, "context": 12, "width": 16, "layers": 2, "heads": 4, "joint": 8, "pool": pool}
    return TowerShape(**{"kind": kind, **sizes, **changes})


def tower(kind="clip", **changes):
    torch.manual_seed(0)
    return TextTower(shape(kind, **changes)).eval()


def rows():
    ids = torch.randint(5, 40, (3, 9), generator=torch.Generator().manual_seed(1))
    for row, size in enumerate((9, 4, 6)):
        ids[row, 0], ids[row, size - 1], ids[row, size:] = 2, END, -1
    return ids


def theirs(kind, ours):
    """Transformers' tower with our weights."""
    importlib.import_module("imprint.backbones.torchvision_compat")  # transformers' models import torchvision
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 40, "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 12, "projection_dim": 8, "eos_token_id": END, "bos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    if kind == "clip":
        model = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**sizes)).eval()
        tensors = {"text_projection.weight": ours.head.weight}
    else:
        model = transformers.SiglipTextModel(transformers.SiglipTextConfig(**{**sizes, "projection_size": 8})).eval()
        tensors = {"text_model.head.weight": ours.head.weight, "text_model.head.bias": ours.head.bias}
    tensors |= {
        "text_model.embeddings.token_embedding.weight": ours.token_embedding.weight,
        "text_model.embeddings.position_embedding.weight": ours.pos_embed,
        "text_model.final_layer_norm.weight": ours.norm.weight,
        "text_model.final_layer_norm.bias": ours.norm.bias,
    }
    for i, block in enumerate(ours.blocks):
        at = f"text_model.encoder.layers.{i}."
        for part in ("weight", "bias"):
            for name, piece in zip("qkv", getattr(block.qkv, part).chunk(3), strict=True):
                tensors[f"{at}self_attn.{name}_proj.{part}"] = piece
            for name, module in (
                ("self_attn.out_proj", block.out), ("layer_norm1", block.norm1), ("layer_norm2", block.norm2),
                ("mlp.fc1", block.fc1), ("mlp.fc2", block.fc2),
            ):  # fmt: skip
                tensors[f"{at}{name}.{part}"] = getattr(module, part)
    own = model.state_dict()
    prefixed = any(name.startswith("text_model.") for name in own)  # some releases name the whole, some its parts
    loaded = {k if prefixed else k.removeprefix("text_model."): v.detach() for k, v in tensors.items()}
    assert {name for name in own if not name.endswith("position_ids")} == loaded.keys()
    model.load_state_dict(loaded, strict=False)
    return model


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_vectors_are_those_of_transformers(kind):
    ours = tower(kind)
    for module in ours.modules():  # so that biases and gains count
        for parameter in module.parameters(recurse=False):
            parameter.data += 0.1 * torch.randn_like(parameter)
    model, ids = theirs(kind, ours), rows()
    with torch.no_grad():
        if kind == "clip":
            filled = ids.masked_fill(ids < 0, 0)
            expected = model(input_ids=filled, attention_mask=(ids >= 0).long()).text_embeds
        else:  # filled up with end tokens, nothing masked
            filled = nn.functional.pad(ids, (0, 3), value=-1).masked_fill(
                nn.functional.pad(ids, (0, 3), value=-1) < 0, END
            )
            expected = model(input_ids=filled).pooler_output
        torch.testing.assert_close(ours.rows(ids), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "pool"), [("clip", "end"), ("clip", "mean"), ("siglip", "last"), ("siglip", "end"), ("siglip", "mean")]
)
def test_padding_and_neighbours_change_nothing(kind, pool):
    ours, ids = tower(kind, pool=pool), rows()
    with torch.no_grad():
        together = ours.rows(ids)
        for row, size in enumerate((9, 4, 6)):
            torch.testing.assert_close(ours.rows(ids[row : row + 1, :size])[0], together[row], rtol=1e-4, atol=1e-5)
        changed = ids.clone()
        changed[1, 1] = 5 + (changed[1, 1] - 4) % 35
        moved = ours.rows(changed)
    assert not torch.allclose(moved[1], together[1], atol=1e-5)
    assert torch.equal(moved[0], together[0]) and torch.equal(moved[2], together[2])


def test_a_causal_block_sees_nothing_that_comes_later():
    block = tower().blocks[0]
    x = torch.randn(1, 6, 16)
    later = x.clone()
    later[:, 4:] += 1
    with torch.no_grad():
        assert torch.equal(block(x, None)[:, :4], block(later, None)[:, :4])


def test_first_weights_are_those_of_the_public_code():
    torch.manual_seed(0)
    ours = TextTower(shape(width=256, heads=4, layers=3, vocabulary=2000, joint=128))
    block = ours.blocks[1]
    for weight, std in (
        (ours.token_embedding.weight, 0.02), (ours.pos_embed, 0.01), (block.qkv.weight, 256**-0.5),
        (block.out.weight, 256**-0.5 * 6**-0.5), (block.fc1.weight, 512**-0.5), (ours.head.weight, 256**-0.5),
    ):  # fmt: skip
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert ours.head.bias is None and not block.qkv.bias.any()


def test_dropout_acts_in_training_only_and_recomputation_changes_nothing():
    ours, ids = tower(dropout=0.5), rows()
    assert torch.equal(ours.rows(ids), ours.rows(ids))
    ours.train()
    assert not torch.equal(ours.rows(ids), ours.rows(ids))
    plain = tower().train()
    grads = []
    for again in (False, True):
        plain.recompute = again
        grads.append(torch.autograd.grad(plain.rows(ids).square().sum(), list(plain.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(WORDS * 3, "wordpiece", vocabulary=80)


def test_strings_become_the_rows_that_training_sees(tokenizer):
    ours = tower(vocabulary=80)
    ours.tokenized_by(tokenizer)
    assert ours.learned is tokenizer
    batch = ours.tokenizer(WORDS)
    start, end = SPECIAL.index("[CLS]"), SPECIAL.index("[SEP]")
    ids = [[start, *list(found)[:10], end] for found in tokenizer.ids(WORDS)]
    assert [row[mask].tolist() for row, mask in zip(batch.ids_BL, batch.mask_BL, strict=True)] == ids
    assert batch.cut_B.tolist() == [False, False, len(tokenizer.ids(WORDS)[2]) > 10] and batch.cut_B[2]
    as_rows = torch.full((3, 12), -1)
    for i, row in enumerate(ids):
        as_rows[i, : len(row)] = torch.tensor(row)
    with torch.no_grad():
        torch.testing.assert_close(ours(batch), ours.rows(as_rows), rtol=1e-5, atol=1e-6)
    assert TowerTokenizer(tokenizer, 12).fingerprint == ours.tokenizer.fingerprint
    assert TowerTokenizer(tokenizer, 13).fingerprint != ours.tokenizer.fingerprint
    with pytest.raises(DataError, match="empty"):
        ours.tokenizer(["a dog", " "])


def test_what_does_not_fit_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="no tokenizer yet"):
        tower().tokenizer(["a"])
    with pytest.raises(ConfigError, match="do not belong together"):
        tower(vocabulary=20).tokenized_by(tokenizer)
    with pytest.raises(ConfigError, match="longer than the 12"):
        tower().rows(torch.zeros(1, 13, dtype=torch.int64))
    with pytest.raises(ConfigError, match="divisor"):
        shape(heads=3)
    with pytest.raises(ConfigError, match="dropout"):
        shape(dropout=1.0)
