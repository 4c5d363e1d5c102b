import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
KINDS = {
    "plain": ("vit_tiny_patch16_224", {}),
    "qk_norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "no_bias": ("vit_tiny_patch16_224", {"qkv_bias": False}),
    "rotary": ("vit_small_patch16_dinov3", {}),
    "separate_bias": ("eva02_tiny_patch14_224", {}),
    "separate_projections": ("eva02_base_patch14_224", {}),
}


def encoder_of(kind):
    name, more = KINDS[kind]
    torch.manual_seed(0)
    encoder = build_encoder(name, image_size=32, patch_size=8, arch={**SMALL, **more}).eval()
    for parameter in encoder.parameters():  # fresh biases are zero, which would hide a forgotten one
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [0, -1])
def test_rows_sum_to_one_and_reproduce_the_blocks_own_output(kind, layer):
    encoder = encoder_of(kind)
    x = torch.randn(2, 3, 32, 32)
    block = encoder.model.blocks[layer]
    seen = {}
    block.attn.register_forward_hook(lambda module, inputs, output: seen.update(out=output, x=inputs[0]))
    with torch.no_grad():
        probabilities = encoder.attention(x, layer)
        encoder.encode(x)
        attn = block.attn
        tokens = seen["x"]
        if attn.qkv is None:
            values = attn.v_proj(tokens)
        else:
            values = torch.nn.functional.linear(tokens, attn.qkv.weight, attn.qkv.bias).chunk(3, dim=-1)[2]
            if getattr(attn, "v_bias", None) is not None:
                values = values + attn.v_bias
        values = values.reshape(2, tokens.shape[1], 2, 16).transpose(1, 2)
        mixed = (probabilities @ values).transpose(1, 2).flatten(2)
        again = attn.proj(attn.norm(mixed))
    count = encoder.prefix_tokens + 16
    assert probabilities.shape == (2, 2, count, count)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 2, count))
    torch.testing.assert_close(again, seen["out"], rtol=1e-4, atol=1e-4)


def test_cnns_have_no_attention():
    encoder = build_encoder("resnet10t", image_size=32)
    with pytest.raises(ConfigError, match="choose a ViT"):
        encoder.attention(torch.randn(1, 3, 32, 32))


def test_attention_without_plain_probabilities_is_refused():
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, arch={**SMALL, "attn_layer": "diff"})
    with pytest.raises(ConfigError, match="DiffAttention"):
        encoder.attention(torch.randn(1, 3, 32, 32))
