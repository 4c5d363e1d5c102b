import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.backbones.load import load_encoder, load_normalise
from imprint.backbones.pixel_gpt import plain_palette
from imprint.backbones.pixel_transformer import PixelTransformer
from imprint.backbones.stored import save_encoder
from imprint.core.errors import ConfigError
from imprint.export.formats import export

ARCH = {"embed_dim": 16, "depth": 4, "num_heads": 2, "clusters": 12}


def make(side=6, **changes) -> PixelTransformer:
    torch.manual_seed(0)
    encoder = build_encoder("image_gpt_s", image_size=side, arch={**ARCH, **changes})
    assert isinstance(encoder, PixelTransformer)
    torch.nn.init.normal_(encoder.model.head.weight)  # it starts at zero, which would hide any leak
    return encoder


def images(count=2, side=6):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_a_later_pixel_changes_no_earlier_logit():
    encoder = make()
    tokens = torch.randint(0, 12, (1, 36))
    before = encoder.logits(tokens)
    for place in (0, 17, 35):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 5) % 12
        after = encoder.logits(changed)
        torch.testing.assert_close(after[:, : place + 1], before[:, : place + 1])
        if place < 35:  # and all later ones depend on it
            assert ((after - before)[:, place + 1 :].abs().amax(-1) > 1e-6).all()


def test_a_bidirectional_model_sees_both_sides_but_no_hidden_pixel():
    encoder = make(causal=False)
    tokens, mask = torch.randint(0, 12, (1, 36)), torch.zeros(1, 36, dtype=torch.bool)
    mask[0, 20] = True
    before = encoder.logits(tokens, mask)
    hidden, seen = tokens.clone(), tokens.clone()
    hidden[0, 20], seen[0, 30] = (tokens[0, 20] + 1) % 12, (tokens[0, 30] + 1) % 12
    torch.testing.assert_close(encoder.logits(hidden, mask), before)
    assert ((encoder.logits(seen, mask) - before).abs().amax(-1) > 1e-7).all()
    with pytest.raises(ConfigError, match="BERT"):
        encoder.generate(1)


@pytest.mark.parametrize("known", [0, 1, 20])
def test_drawing_with_kept_keys_equals_full_passes(known):
    encoder = make().eval()
    prompt = torch.randint(0, 12, (3, known))
    found = encoder.generate(prompt_BT=prompt, temperature=0.0)
    tokens = torch.cat([prompt, torch.zeros(3, 36 - known, dtype=torch.int64)], 1)
    for place in range(known, 36):
        tokens[:, place] = encoder.logits(tokens)[:, place].argmax(-1)
    assert torch.equal(found, tokens) and torch.equal(found[:, :known], prompt)


def test_draws_follow_the_models_distribution_and_the_seed():
    encoder = make(side=2).eval()
    first = encoder.generate(4000, seed=3)[:, 0]
    chance = encoder.logits(torch.zeros(1, 4, dtype=torch.int64))[0, 0].softmax(0)
    share = torch.bincount(first, minlength=12) / 4000
    assert (share - chance).abs().max() < 0.03
    assert torch.equal(encoder.generate(2, seed=5), encoder.generate(2, seed=5))
    assert not torch.equal(encoder.generate(2, seed=5), encoder.generate(2, seed=6))


def test_features_are_a_middle_blocks_behind_the_next_norm():
    encoder = make().eval()
    assert encoder.layer == 2
    features, every = encoder(images()), encoder.encode_layers(images(), range(4))
    torch.testing.assert_close(features.patches_BND, every[1].patches_BND)
    torch.testing.assert_close(features.pooled_BD, features.patches_BND.mean(1))
    raw = encoder.encode_layers(images(), [1, -1], norm=False)
    torch.testing.assert_close(encoder.model.blocks[2].norm1(raw[0].patches_BND), every[1].patches_BND)
    torch.testing.assert_close(every[3].patches_BND, encoder.states(encoder.tokens(images())))
    torch.testing.assert_close(make(layer=3).eval()(images()).pooled_BD, every[2].pooled_BD)
    assert features.grid == (6, 6) and features.cls_BD is None


def test_attention_is_what_the_block_mixes_with():
    encoder = make().eval()
    weights = encoder.attention(images(), 1)
    assert weights.shape == (2, 2, 36, 36) and weights.triu(1).abs().max() == 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 36))
    block = encoder.model.blocks[1]
    x = encoder.encode_layers(images(), [0], norm=False)[0].patches_BND
    own = block.after_attention(x, weights @ block.heads_of(x)[2])
    torch.testing.assert_close(own, encoder.encode_layers(images(), [1], norm=False)[0].patches_BND)


def test_the_palette_travels_with_the_file(tmp_path):
    encoder = make(layer=3, causal=False).eval()
    encoder.set_palette(torch.randn(12, 3))
    path = save_encoder(encoder, tmp_path, mean=(0.4,) * 3, std=(0.2,) * 3)
    back = load_encoder(path)
    assert isinstance(back, PixelTransformer) and back.config == encoder.config and not back.causal
    assert torch.equal(back.model.palette, encoder.model.palette) and bool(back.model.fitted)
    torch.testing.assert_close(back(images()).pooled_BD, encoder(images()).pooled_BD)
    assert load_normalise(path)[0] == (0.4,) * 3
    larger = load_encoder(path, image_size=8)
    assert larger(images(side=8)).grid == (8, 8)
    result = export(path, "safetensors", tmp_path / "out")
    assert result.max_abs_diff == 0.0 and "imprint.load_encoder" in result.how_to_load
    with pytest.raises(ConfigError, match="onnx"):
        export(path, "timm", tmp_path / "timm")


@pytest.mark.slow
def test_onnx_holds_the_pixels_way_to_colours(tmp_path):
    pytest.importorskip("onnxruntime")
    assert export(make().eval(), "onnx", tmp_path).max_abs_diff < 1e-4


def test_activations_are_recomputed_alike():
    plain, thrifty = make(), make()
    thrifty.set_grad_checkpointing()
    for encoder in (plain, thrifty):
        encoder.logits(encoder.tokens(images())).square().mean().backward()
    for a, b in zip(plain.parameters(), thrifty.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_other_sizes_and_channels():
    encoder = make()
    assert encoder(images(side=5)).grid == (5, 5)
    with pytest.raises(ConfigError, match="channels"):
        encoder(torch.zeros(1, 1, 6, 6))
    grey = build_encoder("image_gpt_s", image_size=4, channels=1, arch=ARCH)
    assert grey(torch.randn(2, 1, 4, 4)).pooled_BD.shape == (2, 16)
    assert plain_palette(512, 3).unique(dim=0).shape == (512, 3) and plain_palette(2, 1).tolist() == [[-2.0], [2.0]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"patch_size": 4}, "patch_size"),
        ({"registers": 4}, "registers"),
        ({"arch": {"mlp_ratio": 2.0}}, "mlp_ratio"),
        ({"arch": {"embed_dim": 10, "num_heads": 4}}, "divide"),
        ({"arch": {"depth": 2, "layer": 3}}, "layer=3"),
        ({"init": "mae"}, "init"),
        ({"pretrained": True}, "publishes no weights"),
    ],
)
def test_what_does_not_fit_is_said(settings, words):
    with pytest.raises(ConfigError, match=words):
        build_encoder("image_gpt_s", image_size=4, **settings)


def test_masks_are_refused_with_a_way_out():
    encoder = make()
    with pytest.raises(ConfigError, match="igpt"):
        encoder(images(), torch.zeros(2, 36, dtype=torch.bool))
    with pytest.raises(ConfigError, match="mask token"):
        encoder.enable_mask_token()
    with pytest.raises(ConfigError, match="prompt"):
        encoder.generate(prompt_BT=torch.zeros(1, 36, dtype=torch.int64))
    with pytest.raises(ConfigError, match="palette"):
        encoder.set_palette(torch.zeros(3, 3))
