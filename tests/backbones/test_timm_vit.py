import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.backbones.timm_vit import TimmViT
from imprint.core.errors import ConfigError
from imprint.ops.positions import sincos_2d

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}
VITS = {
    "plain": ("vit_tiny_patch16_224", {"patch_size": 8}),
    "registers": ("vit_tiny_patch16_224", {"patch_size": 8, "registers": 3}),
    "average": ("vit_base_patch16_siglip_gap_224", {}),
    "map_pool": ("vit_base_patch16_siglip_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {"patch_size": 8}),
    "dinov2": ("vit_small_patch14_dinov2", {"patch_size": 8}),
    "dinov3": ("vit_small_patch16_dinov3", {"patch_size": 8}),
    "eva02": ("eva02_tiny_patch14_224", {"patch_size": 8}),
    "clip": ("vit_base_patch32_clip_224", {"patch_size": 8}),
}


def vit(kind: str = "plain", **more) -> TimmViT:
    name, options = VITS[kind]
    torch.manual_seed(0)
    encoder = build_encoder(name, image_size=32, arch=SMALL, **{**options, **more})
    assert isinstance(encoder, TimmViT)
    return encoder


def images(batch: int = 2, height: int = 32, width: int = 32, channels: int = 3) -> torch.Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", VITS)
def test_encode_equals_timms_own_forward(kind):
    encoder = vit(kind).eval()
    x = images()
    with torch.no_grad():
        features = encoder.encode(x)
        tokens = encoder.model.forward_features(x)
        torch.testing.assert_close(features.pooled_BD, encoder.model(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(features.patches_BND, tokens[:, encoder.prefix_tokens :], rtol=0, atol=1e-6)
    assert features.pooled_BD.shape == (2, encoder.embed_dim)
    assert features.grid == (32 // encoder.patch_size,) * 2
    assert (features.cls_BD is not None) == (encoder.model.cls_token is not None)
    others = encoder.prefix_tokens - (features.cls_BD is not None)
    assert (0 if features.registers_BRD is None else features.registers_BRD.shape[1]) == others


@pytest.mark.parametrize("kind", VITS)
def test_keeping_every_patch_in_another_order_changes_nothing_but_the_order(kind):
    encoder = vit(kind).eval()
    x = images()
    count = (32 // encoder.patch_size) ** 2
    keep = torch.stack([torch.randperm(count), torch.randperm(count)])
    with torch.no_grad():
        full, kept = encoder.encode(x), encoder.encode(x, keep_BM=keep)
    expected = full.patches_BND.gather(1, keep[..., None].expand(-1, -1, encoder.embed_dim))
    torch.testing.assert_close(kept.patches_BND, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kept.pooled_BD, full.pooled_BD, rtol=1e-5, atol=1e-5)
    assert kept.grid == full.grid


@pytest.mark.parametrize("kind", ["plain", "dinov3"])
def test_dropped_patches_cannot_be_seen_and_never_enter_the_blocks(kind):
    encoder = vit(kind).eval()
    x = images()
    keep = torch.tensor([[0, 5, 3], [15, 2, 7]])
    changed = x.clone()
    changed[0, :, 8:16, 0:8] += 3.0  # patch 4 of the first image, dropped
    lengths = []
    encoder.model.blocks[0].register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    with torch.no_grad():
        first, second = encoder.encode(x, keep_BM=keep), encoder.encode(changed, keep_BM=keep)
        assert not torch.equal(encoder.encode(x).pooled_BD, encoder.encode(changed).pooled_BD)
    assert torch.equal(first.patches_BND, second.patches_BND)
    assert lengths[:2] == [encoder.prefix_tokens + 3] * 2
    assert lengths[2:] == [encoder.prefix_tokens + 16] * 2


def test_kept_patches_carry_the_positions_of_the_full_grid():
    encoder = vit().eval()
    encoder.model.pos_embed.data.normal_()
    x = images(1).expand(2, -1, -1, -1)
    with torch.no_grad():
        here, there = encoder.encode(x, keep_BM=torch.tensor([[3], [3]])).patches_BND
        tokens, _, _ = encoder._embed(x, None, torch.tensor([[3], [9]]))
        full, _, _ = encoder._embed(x, None, None)
    assert torch.equal(here, there)
    assert torch.equal(tokens[0, 1], full[0, 4]) and torch.equal(tokens[1, 1], full[1, 10])


def test_mask_token_replaces_masked_patches_only():
    encoder = vit(mask_token=True).eval()
    x = images()
    nothing, some = torch.zeros(2, 16, dtype=torch.bool), torch.zeros(2, 16, dtype=torch.bool)
    some[0, 4] = True
    changed = x.clone()
    changed[0, :, 8:16, 0:8] += 3.0  # patch 4
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode(x, nothing).patches_BND, encoder.encode(x).patches_BND)
        masked = encoder.encode(x, some)
        assert torch.equal(masked.patches_BND, encoder.encode(changed, some).patches_BND)
    assert not torch.allclose(masked.patches_BND[0], encoder.encode(x).patches_BND[0])
    torch.testing.assert_close(masked.patches_BND[1], encoder.encode(x).patches_BND[1])
    encoder.encode(x, some).pooled_BD.sum().backward()
    assert encoder.mask_token is not None and encoder.mask_token.grad is not None
    assert float(encoder.mask_token.grad.abs().sum()) > 0


def test_masking_without_a_mask_token_says_how_to_get_one():
    with pytest.raises(ConfigError, match="mask_token=True"):
        vit().encode(images(), torch.ones(2, 16, dtype=torch.bool))


def test_mask_token_is_made_once_and_dropped_on_request():
    encoder = vit()
    assert "mask_token" not in encoder.state_dict()
    encoder.enable_mask_token()
    token = encoder.mask_token
    encoder.enable_mask_token()
    assert encoder.mask_token is token and encoder.config["mask_token"]
    encoder.drop_mask_token()
    assert "mask_token" not in encoder.state_dict() and not encoder.config["mask_token"]


@pytest.mark.parametrize("kind", VITS)
@pytest.mark.parametrize("size", [(16, 16), (48, 24)])
def test_other_image_sizes(kind, size):
    encoder = vit(kind).eval()
    if size[0] % encoder.patch_size or size[1] % encoder.patch_size:
        with pytest.raises(ConfigError, match="multiples of 16"):
            encoder.encode(images(2, *size))
        return
    features = encoder.encode(images(2, *size))
    grid = (size[0] // encoder.patch_size, size[1] // encoder.patch_size)
    assert features.grid == grid and features.patches_BND.shape == (2, grid[0] * grid[1], 32)
    assert bool(features.pooled_BD.isfinite().all())


def test_positions_at_the_built_size_are_the_learned_ones():
    encoder = vit()
    assert encoder._positions((4, 4)) is encoder.model.pos_embed
    other = encoder._positions((2, 6))
    assert other is not None and other.shape == (1, 13, 32)
    assert torch.equal(other[:, :1], encoder.model.pos_embed[:, :1])


def test_smooth_positions_survive_interpolation():
    encoder = vit().eval()
    row = torch.arange(4.0)[:, None].expand(4, 4).reshape(1, 16, 1).expand(-1, -1, 32)
    encoder.model.pos_embed.data[:, 1:] = row
    wide = encoder._positions((4, 8))
    assert wide is not None
    grid = wide[0, 1:, 0].reshape(4, 8)
    torch.testing.assert_close(grid, grid[:, :1].expand(4, 8), rtol=0, atol=1e-3)
    assert bool((grid[1:, 0] > grid[:-1, 0]).all())


def test_registers_have_no_position_and_cost_nothing_when_absent():
    plain, four = vit(), vit(registers=4)
    assert plain.encode(images()).registers_BRD is None and plain.prefix_tokens == 1
    assert four.prefix_tokens == 5 and four.position_prefix == 0
    registers = four.encode(images()).registers_BRD
    assert registers is not None and registers.shape == (2, 4, 32)
    assert four.model.pos_embed.shape[1] == 16
    assert vit("dinov3", registers=0).encode(images()).registers_BRD is None


def test_sincos_positions_are_fixed_and_the_class_token_gets_none():
    encoder = vit(positions="sincos")
    assert not encoder.model.pos_embed.requires_grad
    table = sincos_2d(32, (4, 4)).float()
    torch.testing.assert_close(encoder.model.pos_embed[0, 1:], table)
    assert not encoder.model.pos_embed[0, 0].any()
    with pytest.raises(ConfigError, match="no positions"):
        vit("dinov3", positions="sincos")


@pytest.mark.parametrize("kind", VITS)
def test_layers_agree_with_timm_and_the_last_with_encode(kind):
    encoder = vit(kind).eval()
    x = images()
    with torch.no_grad():
        first, last, middle = encoder.encode_layers(x, [0, -1, 1])
        full = encoder.encode(x)
        maps = encoder.model.forward_intermediates(
            x, indices=[0, 1], norm=True, output_fmt="NLC", intermediates_only=True
        )
    torch.testing.assert_close(last.patches_BND, full.patches_BND)
    torch.testing.assert_close(last.pooled_BD, full.pooled_BD)
    torch.testing.assert_close(first.patches_BND, maps[0])
    torch.testing.assert_close(middle.patches_BND, maps[1])


def test_layers_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="0 to 2"):
        vit().encode_layers(images(), [3])


@pytest.mark.parametrize("kind", VITS)
def test_every_parameter_takes_part_in_a_step(kind):
    encoder = vit(kind, drop_path=0.0)
    x = images(2, 32, 32)
    features = encoder.encode(x)
    (features.pooled_BD.square().sum() + features.patches_BND.square().sum()).backward()
    assert [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("kind", ["plain", "dinov3"])
def test_checkpointing_gives_the_same_gradients(kind):
    encoder = vit(kind).train()
    other = copy.deepcopy(encoder)
    other.set_grad_checkpointing()
    for model in (encoder, other):
        model.encode(images()).pooled_BD.square().sum().backward()
    for (name, p), q in zip(encoder.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_drop_path_grows_linearly_and_acts_in_training_only():
    encoder = vit(drop_path=0.4)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.model.blocks]
    assert rates == pytest.approx([0.0, 0.2, 0.4])
    x = images(4)
    encoder.eval()
    assert torch.equal(encoder(x).pooled_BD, encoder(x).pooled_BD)
    encoder.train()
    assert not torch.equal(encoder(x).pooled_BD, encoder(x).pooled_BD)


def test_runs_in_bfloat16_autocast():
    encoder = vit(mask_token=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encoder.encode(images(2, 16, 16), torch.tensor([[True, False, False, True]] * 2))
        kept = encoder.encode(images(), keep_BM=torch.tensor([[1, 2]] * 2))
    assert bool(features.pooled_BD.isfinite().all()) and kept.patches_BND.shape == (2, 2, 32)


@pytest.mark.parametrize("kind", ["plain", "registers"])
def test_compiles_without_graph_breaks(kind):
    encoder = vit(kind, mask_token=True).eval()
    torch._dynamo.reset()
    compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)
    x, mask = images(), torch.rand(2, 16) > 0.5
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, mask).pooled_BD, encoder(x, mask).pooled_BD)
        small = images(2, 16, 16)
        torch.testing.assert_close(compiled(small).patches_BND, encoder(small).patches_BND)


def test_other_channels():
    encoder = vit(channels=5)
    assert encoder.encode(images(channels=5)).pooled_BD.shape == (2, 32)
    with pytest.raises(ConfigError, match=r"\(B, 5, H, W\)"):
        encoder.encode(images())


def test_timms_own_patch_dropping_is_refused():
    with pytest.raises(ConfigError, match="keep"):
        build_encoder("vit_tiny_patch16_224", image_size=32, arch={**SMALL, "patch_drop_rate": 0.5})


@pytest.mark.parametrize("kind", ["plain", "registers", "average"])
def test_works_under_ddp_without_unused_parameters(kind, tmp_path):
    # In a process of its own: a group that is torn down inside the test process can take others' threads with it.
    program = f"""
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from test_timm_vit import images, vit
encoder = vit({kind!r})
dist.init_process_group("gloo", init_method="file://{tmp_path}/store", rank=0, world_size=1)
model = DistributedDataParallel(encoder)
for _ in range(2):  # a parameter without gradient is only complained about in the next forward
    features = model(images())
    features.pooled_BD.square().sum().backward()
assert features.grid == (32 // encoder.patch_size,) * 2
assert all(p.grad is not None for p in encoder.parameters())
print("whole", flush=True)
"""
    path = os.pathsep.join((str(Path(__file__).parent), *sys.path))
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert "whole" in done.stdout, done.stderr


@pytest.mark.parametrize("kind", ["plain", "registers", "dinov3"])
def test_layers_take_masks_and_may_skip_the_norm(kind):
    encoder = vit(kind, mask_token=True).eval()
    x = images(2, 8 * 4, 8 * 4)
    mask = torch.rand(2, 16) > 0.5
    with torch.no_grad():
        plain, masked = encoder.encode_layers(x, [-1])[0], encoder.encode_layers(x, [-1], mask_BN=mask)[0]
        raw = encoder.encode_layers(x, [0, -1], mask_BN=mask, norm=False)
        torch.testing.assert_close(masked.patches_BND, encoder.encode(x, mask).patches_BND)
        torch.testing.assert_close(encoder.model.norm(raw[1].patches_BND), masked.patches_BND)
    assert not torch.allclose(plain.patches_BND, masked.patches_BND)
    assert not torch.allclose(raw[0].patches_BND, raw[1].patches_BND)


def test_vits_can_do_what_methods_ask_for():
    from imprint.backbones.encoder import require_tokens

    encoder = vit()
    assert encoder.has_tokens and encoder.can_mask and encoder.can_drop
    require_tokens(encoder, "ibot", (), mask=True)
    require_tokens(encoder, "mae", (), drop=True)


def test_token_norms_are_those_of_the_patches_beside_registers():
    from imprint.viz.token_norms import token_norms, tokens_before_norm

    encoder = vit("registers").eval()
    x = images()
    with torch.no_grad():
        raw = encoder.encode_layers(x, [-1], norm=False)[0].patches_BND
    before = tokens_before_norm(encoder, x)
    torch.testing.assert_close(before, raw)
    assert token_norms(before.numpy()).norms_BN.shape == (2, 16)
