import pytest
import torch

from imprint.nn.regressor import CrossBlock, DropBranch, LatentDecoder, LatentRegressor


def test_queries_see_visible_latents_and_each_other():
    torch.manual_seed(0)
    regressor = LatentRegressor(16, depth=2, heads=2, layer_scale=1.0)
    visible, where_v, where_m = torch.randn(2, 5, 16), torch.randn(2, 5, 16), torch.randn(2, 3, 16)
    before = regressor(visible, where_v, where_m)
    assert before.shape == (2, 3, 16)
    other = visible.clone()
    other[:, 4] += torch.randn(16)
    assert (regressor(other, where_v, where_m) - before).abs().amax(-1).min() > 1e-3
    moved = where_m.clone()
    moved[:, 2] += torch.randn(16)
    assert (regressor(visible, where_v, moved) - before)[:, 0].abs().max() > 1e-5
    # The order of the visible latents says nothing; their positions do.
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(regressor(visible[:, order], where_v[:, order], where_m), before)
    assert (regressor(visible[:, order], where_v, where_m) - before).abs().max() > 1e-4


def test_the_cross_block_equals_its_equations():
    torch.manual_seed(0)
    block = CrossBlock(8, 2, 0.3, 0.0).double()
    x, visible = torch.randn(1, 3, 8).double(), torch.randn(1, 4, 8).double()
    where_m, where = torch.randn(1, 3, 8).double(), torch.randn(1, 7, 8).double()
    context = torch.cat([visible, x], 1)
    q, k, v = block.q(block.norm_q(x + where_m)), block.k(block.norm_k(context + where)), block.v(block.norm_v(context))
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        heads.append(((q[..., part] @ k[..., part].transpose(1, 2)) / 2.0).softmax(-1) @ v[..., part])
    middle = block.norm(x + 0.3 * block.proj(torch.cat(heads, -1)))
    torch.testing.assert_close(block(x, visible, where_m, where), middle + 0.3 * block.mlp(middle))


def test_layer_scale_of_zero_is_none():
    assert [n for n, p in LatentDecoder(8, 2, 2, layer_scale=0.0).named_parameters() if not p.requires_grad] == [
        f"blocks.{b}.scale{s}" for b in (0, 1) for s in (1, 2)
    ]
    assert all(p.requires_grad for p in LatentDecoder(8, 2, 2).parameters())


def test_dropped_branches_keep_their_mean_and_whole_samples():
    torch.manual_seed(0)
    drop = DropBranch(0.25)
    out = drop(torch.ones(4000, 2, 3))
    assert sorted(out.unique().tolist()) == pytest.approx([0.0, 1 / 0.75]) and abs(out.mean().item() - 1.0) < 0.05
    assert (out.flatten(1).std(1) == 0).all()
    assert torch.equal(drop.eval()(torch.ones(4, 2, 3)), torch.ones(4, 2, 3))
    assert [b.drop.drop_prob for b in LatentDecoder(8, 3, 2, drop_path=0.1).blocks] == [0.0, 0.05, 0.1]
