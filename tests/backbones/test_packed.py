"""Packed forwards, stochastic depth that leaves samples out, and kept tokens against masked attention."""

import copy

import pytest
import torch

from imprint.backbones import packed
from imprint.backbones.build import build_encoder
from imprint.backbones.packed import Group, packable, run_block
from imprint.core.errors import ConfigError

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}
KINDS = {
    "plain": ("vit_tiny_patch16_224", {}),
    "registers": ("vit_tiny_patch16_224", {"registers": 3}),
    "dinov2": ("vit_small_patch14_dinov2", {}),
    "swiglu": ("vit_tiny_patch16_224", {"mlp": "swiglu", "qk_norm": True, "layer_scale": 1e-5}),
    "map_pool": ("vit_base_patch16_siglip_224", {}),
    "dinov3": ("vit_small_patch16_dinov3", {}),
    "eva02": ("eva02_tiny_patch14_224", {}),
    "beit": ("beit_base_patch16_224", {}),
    "shared_bias": ("beit_base_patch16_224", {"relative_positions": "shared", "absolute_positions": False}),
}


def vit(kind="plain", **more):
    name, options = KINDS[kind]
    options = dict(options)
    registers = options.pop("registers", None)
    torch.manual_seed(0)
    encoder = build_encoder(
        name, image_size=32, patch_size=8, registers=registers, arch={**SMALL, **options}, mask_token=True, **more
    )
    for parameter in encoder.parameters():  # fresh zeros would hide a forgotten part
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder


def crops(seed=1):
    g = torch.Generator().manual_seed(seed)
    images = [torch.randn(2, 3, 32, 32, generator=g), torch.randn(3, 3, 16, 24, generator=g)]
    return images, [torch.rand(2, 16, generator=g) > 0.5, None]


@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_one_forward_per_size_also_in_its_gradients(kind):
    one, many = vit(kind).eval(), vit(kind).eval()
    images, masks = crops()
    rows = []
    many.model.blocks[1].mlp.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape[:-1]))
    apart = [one.encode(x, m) for x, m in zip(images, masks, strict=True)]
    together = many.encode_many(images, masks)
    assert rows == [(2 * (16 + many.prefix_tokens) + 3 * (6 + many.prefix_tokens),)]
    for a, b in zip(apart, together, strict=True):
        assert a.grid == b.grid
        for name in ("pooled_BD", "cls_BD", "registers_BRD", "patches_BND"):
            mine, theirs = getattr(a, name), getattr(b, name)
            assert (mine is None) == (theirs is None)
            if mine is not None:
                torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-4)
    for features in (apart, together):
        sum(f.patches_BND.sin().sum() + f.pooled_BD.cos().sum() for f in features).backward()
    largest = max(float(p.grad.abs().max()) for p in one.parameters() if p.grad is not None)
    for (name, p), q in zip(one.named_parameters(), many.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            scale = float(p.grad.abs().max()) + 1e-3 * largest
            torch.testing.assert_close(q.grad / scale, p.grad / scale, rtol=1e-3, atol=1e-4, msg=name)


def test_checkpointing_the_packed_pass_gives_the_same_gradients():
    encoder = vit("shared_bias", drop_path=0.5, drop_samples=True).train()
    other = copy.deepcopy(encoder)
    other.set_grad_checkpointing()
    images, masks = crops()
    for model in (encoder, other):
        torch.manual_seed(3)
        sum(f.patches_BND.square().sum() for f in model.encode_many(images, masks)).backward()
    for (name, p), q in zip(encoder.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q[1].grad, msg=name)


def test_blocks_of_other_kinds_take_one_size_after_the_other():
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, arch={**SMALL, "attn_layer": "diff"})
    encoder.eval()
    assert not packable(encoder.model.blocks[0])
    images, _ = crops()
    for a, x in zip(encoder.encode_many(images), images, strict=True):
        torch.testing.assert_close(a.patches_BND, encoder(x).patches_BND)
    with pytest.raises(ConfigError, match="drop_samples"):
        build_encoder(
            "vit_tiny_patch16_224", image_size=32, patch_size=8, arch={**SMALL, "attn_layer": "diff"}, drop_samples=True
        )


def test_other_encoders_loop():
    encoder = build_encoder("resnet10t", image_size=32).eval()
    images, _ = crops()
    grids = [f.grid for f in encoder.encode_many([images[0], images[0][..., :16]])]
    assert grids == [(1, 1), (1, 1)]


def test_kept_tokens_equal_the_full_sequence_with_attention_masked_to_them(monkeypatch):
    """Encoding M of N patches is encoding all while nobody looks at the others."""
    encoder = vit("registers").eval()
    images, _ = crops()
    x = images[0]
    keep = torch.tensor([[0, 5, 3, 9], [15, 2, 7, 1]])
    with torch.no_grad():
        kept = encoder.encode(x, keep_BM=keep)
    seen = torch.zeros(2, 16, dtype=torch.bool).scatter(1, keep, True)
    seen = torch.cat([torch.ones(2, encoder.prefix_tokens, dtype=torch.bool), seen], dim=1)[:, None, None, :]
    real = torch.nn.functional.scaled_dot_product_attention
    calls = []

    def masked(q, k, v, attn_mask=None, **more):
        calls.append(attn_mask)
        return real(q, k, v, attn_mask=seen, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", masked)
    with torch.no_grad():
        full = encoder.encode(x)
    assert calls == [None] * 3
    expected = full.patches_BND.gather(1, keep[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(kept.patches_BND, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kept.cls_BD, full.cls_BD, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kept.registers_BRD, full.registers_BRD, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["dinov2", "dinov3", "shared_bias"])
@pytest.mark.parametrize("drop_samples", [True, False])
def test_stochastic_depth_is_unbiased(kind, drop_samples):
    encoder = vit(kind, drop_path=0.4, uniform_drop_path=True).train()
    block = encoder.model.blocks[0]
    torch.nn.init.normal_(block.attn.proj.weight, std=0.05)
    block.mlp.requires_grad_(False)
    for weight in (block.mlp.fc2.weight, block.mlp.fc2.bias):  # one random branch: the mean over two is no plain sum
        torch.nn.init.zeros_(weight)
    x, rope, grid = encoder._embed(torch.randn(4, 3, 32, 32), None, None)
    y, rope_small, grid_small = encoder._embed(torch.randn(2, 3, 16, 16), None, None)
    groups = [
        Group(4, x.shape[1], rope, encoder._biases(grid)[0]),
        Group(2, y.shape[1], rope_small, encoder._biases(grid_small)[0]),
    ]
    tokens = torch.cat([x.flatten(0, 1), y.flatten(0, 1)])
    with torch.no_grad():
        torch.manual_seed(0)
        total = sum(run_block(block, tokens, groups, drop_samples) for _ in range(600)) / 600
        expected = run_block(block.eval(), tokens, groups)
    moved = (expected - tokens).abs().mean()
    assert (total - expected).abs().mean() < 0.1 * moved
    with torch.no_grad():
        single = run_block(block.train(), tokens, groups, drop_samples)
    assert (single - expected).abs().mean() > 0.3 * moved


def test_left_out_samples_are_not_computed():
    encoder = vit(drop_path=0.5, uniform_drop_path=True, drop_samples=True).train()
    rows = []
    for block in encoder.model.blocks:
        block.attn.proj.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape[0]))
    encoder(torch.randn(8, 3, 32, 32))
    assert rows == [4 * 17] * 3
    rows.clear()
    encoder.encode_many([torch.randn(8, 3, 32, 32), torch.randn(6, 3, 16, 16)])
    assert rows == [4 * 17 + 3 * 5] * 3
    rows.clear()
    encoder.eval()(torch.randn(8, 3, 32, 32))
    assert rows == [8] * 3


def test_small_rates_keep_all_samples():
    encoder = vit(drop_path=packed.DROP_FROM, uniform_drop_path=True, drop_samples=True).train()
    rows = []
    encoder.model.blocks[0].mlp.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape[0]))
    encoder(torch.randn(4, 3, 32, 32))
    assert rows == [4 * 17]


def test_kept_tokens_with_rotary_positions_may_lose_samples():
    encoder = vit("dinov3", drop_path=0.5, uniform_drop_path=True, drop_samples=True).train()
    keep = torch.stack([torch.randperm(16)[:5] for _ in range(4)])
    assert encoder(torch.randn(4, 3, 32, 32), keep_BM=keep).patches_BND.shape == (4, 5, 32)


def test_every_parameter_still_gets_a_gradient():
    encoder = vit("dinov2", drop_path=0.9, uniform_drop_path=True, drop_samples=True).train()
    features = encoder.encode_many([torch.randn(2, 3, 32, 32), torch.randn(2, 3, 16, 16)])
    sum(f.patches_BND.sum() + f.pooled_BD.sum() for f in features).backward()
    idle = [n for n, p in encoder.named_parameters() if p.grad is None]
    assert idle == ["mask_token"]


def test_uniform_rates_and_their_limits():
    uniform = vit(drop_path=0.3, uniform_drop_path=True)
    assert [b.drop_path1.drop_prob for b in uniform.model.blocks] == [0.3] * 3
    assert [b.drop_path2.drop_prob for b in uniform.model.blocks] == [0.3] * 3
    with pytest.raises(ConfigError, match="uniform_drop_path"):
        build_encoder("resnet18", image_size=32, drop_path=0.2, uniform_drop_path=True)
    with pytest.raises(ConfigError, match="drop_samples"):
        build_encoder("resnet18", image_size=32, drop_samples=True)


def test_packed_runs_in_bfloat16_autocast_and_compiled():
    encoder = vit("registers", drop_path=0.5, drop_samples=True).train()
    images, masks = crops()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(bool(f.pooled_BD.isfinite().all()) for f in encoder.encode_many(images, masks))
    encoder.eval()
    with torch.no_grad():
        expected = encoder.encode_many(images, masks)
        torch._dynamo.reset()
        encoder.compile(backend="aot_eager")
        compiled = encoder.encode_many(images, masks)
    for a, b in zip(expected, compiled, strict=True):
        torch.testing.assert_close(a.pooled_BD, b.pooled_BD, rtol=1e-4, atol=1e-4)
