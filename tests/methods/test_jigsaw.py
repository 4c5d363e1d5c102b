import dataclasses

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.methods.jigsaw import Jigsaw, JigsawConfig
from imprint.ops.tiles import normalise_tiles
from imprint.recipes.book import recipe

T = Progress(3, 10, 5)
SMALL = {"permutations": 12, "tile_width": 16, "fusion_width": 32, "dropout": 0.0}


def make(size=32, vit=False, **changes):
    torch.manual_seed(0)
    config = recipe("jigsaw/debug").encoder
    if vit:
        arch = dataclasses.replace(config.arch, layers=None, channels=None, embed_dim=32, depth=1, num_heads=2)
        encoder = build_encoder("vit_tiny_patch16_224", image_size=size, patch_size=8, arch=arch)
    else:
        encoder = build_encoder(config.name, image_size=size, stem="cifar", arch=config.arch)
    return Jigsaw(JigsawConfig(**SMALL | changes), encoder)


def batch_of(count=4, size=32, first=0):
    torch.manual_seed(1)
    images = torch.randn(1, 12, 3, size, size)[:, first : first + count]
    return Batch(views={"global": images}, index_B=torch.arange(first, first + count))


def test_defaults_are_the_papers():
    cfg = JigsawConfig()
    assert (cfg.permutations, cfg.grid, cfg.spread) == (1000, 3, "mean")
    assert (cfg.tile_width, cfg.fusion_width, cfg.dropout) == (1024, 4096, 0.5)
    assert cfg.normalise_tiles and cfg.grey == 0.66 and cfg.puzzles == 1
    (view,) = Jigsaw.views(cfg, 255)
    assert view.look.grey == 0.66 and view.look.flip == 0.5
    assert make(255).side_of(255) == 64  # of cells of 85
    assert recipe("jigsaw/paper").method.permutations == 2000


def test_tiles_lie_in_their_cells_and_jitter_fills_the_slack():
    method = make()
    size, side = 32, method.side_of(32)
    assert side == 8  # of cells of 10: jitter 0 to 2
    rows = torch.arange(size).view(1, 1, 1, size, 1).expand(1, 400, 1, size, size)
    columns = rows.transpose(3, 4)
    batch = Batch(views={"global": torch.cat([rows, columns, rows], 2).float()}, index_B=torch.arange(400))
    tiles, names = method.puzzles(batch, T)
    assert tiles.shape == (400, 9, 3, 8, 8) and names.shape == (400, 1)
    for axis in (0, 1):
        corner = tiles[:, :, axis, 0, 0]
        cell = torch.arange(9) // 3 if axis == 0 else torch.arange(9) % 3
        jitter = corner - (cell * 10 + 1)  # two pixels are left over, one on each side
        assert jitter.unique().tolist() == [0, 1, 2]
        assert tiles[:, :, axis].amax() <= 30
        assert jitter.std(1).mean() > 0.5, "tiles of an image jitter together"


def test_draws_belong_to_the_sample_and_the_step():
    method = make(puzzles=3, channel_shift=1)
    whole_tiles, whole_names = method.puzzles(batch_of(8), T)
    tiles, names = method.puzzles(batch_of(3, first=4), T)
    assert torch.equal(tiles, whole_tiles[4:7]) and torch.equal(names, whole_names[4:7])
    later_tiles, later_names = method.puzzles(batch_of(8), T.at(4))
    assert not torch.equal(later_names, whole_names) and not torch.equal(later_tiles, whole_tiles)


def test_names_cover_the_set_evenly():
    method = make()
    index = torch.arange(12_000)
    batch = Batch(views={"global": torch.zeros(1, 1, 1, 1, 1).expand(1, 12_000, 3, 32, 32)}, index_B=index)
    names = torch.cat([method.puzzles(batch.part(i, i + 3000), T)[1] for i in range(0, 12_000, 3000)])
    counts = names.flatten().bincount(minlength=12).double()
    assert ((counts - 1000).square() / 1000).sum() < 40  # chi square, 11 degrees of freedom


@torch.no_grad()
def test_logits_are_those_of_tiles_shuffled_before_the_encoder():
    method = make(puzzles=2).eval()
    batch = batch_of()
    tiles, names = method.puzzles(batch, T)
    logits = method.predict(tiles, names)
    assert logits.shape == (4, 2, 12)
    for b in range(4):
        for k in range(2):
            shown = tiles[b, method.permutations_PT[names[b, k]]]
            features = [method.encoder(normalise_tiles(tile[None, None])[:, 0]).pooled_BD for tile in shown]
            embedded = torch.cat([method.head.embed(f) for f in features])
            torch.testing.assert_close(method.head(embedded[None])[0], logits[b, k], atol=1e-4, rtol=1e-3)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), names.flatten())
    out = method(batch, T)
    torch.testing.assert_close(out.loss, loss)
    assert out.metrics["jigsaw/accuracy"] == (logits.argmax(-1) == names).float().mean()
    assert out.metrics["jigsaw/distance_min"] >= 6 and 8 < out.metrics["jigsaw/distance_mean"] < 9


def test_brightness_and_contrast_of_a_tile_tell_nothing():
    method, batch = make().eval(), batch_of()
    tiles, names = method.puzzles(batch, T)
    changed = tiles * (1 + torch.rand(4, 9, 1, 1, 1)) + torch.randn(4, 9, 1, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(method.predict(changed, names), method.predict(tiles, names), atol=1e-4, rtol=1e-3)
        bare = make(normalise_tiles=False).eval()
        assert not torch.allclose(bare.predict(changed, names), bare.predict(tiles, names), atol=1e-2)


def test_channels_are_shifted_within_bounds():
    method = make(channel_shift=2)
    ramp = torch.arange(32.0).expand(1, 200, 3, 32, 32)
    tiles, _ = method.puzzles(Batch(views={"global": ramp}, index_B=torch.arange(200)), T)
    middle = tiles[:, 4, :, 4, 4]
    apart = middle - middle.mean(1, keepdim=True)
    assert 0 < apart.abs().max() <= 4 and set((middle[:, 0] - middle[:, 1]).unique().tolist()) <= set(range(-4, 5))


def test_grey_share_of_the_views():
    import numpy as np

    from imprint.data.arrays import ArraySource
    from imprint.data.loader import sweep

    images = np.random.default_rng(0).integers(0, 255, (600, 8, 8, 3), dtype=np.uint8)
    (view,) = Jigsaw.views(JigsawConfig(), 8)
    grey = [
        (batch.views["global"][0].float().std(1).amax((1, 2)) == 0)
        for batch in sweep(ArraySource(images), view, batch_size=200, workers=1)
    ]
    assert abs(float(torch.cat(grey).float().mean()) - 0.66) < 3.5 * (0.66 * 0.34 / 600) ** 0.5


def test_the_set_is_part_of_the_checkpoint():
    method, other = make(), make(permutation_seed=5)
    assert not torch.equal(method.permutations_PT, other.permutations_PT)
    other.load_state_dict(method.state_dict())
    assert torch.equal(method.permutations_PT, other.permutations_PT)


def test_a_vit_gets_whole_patches_or_says_what_to_do():
    method = make(64, vit=True)
    assert method.side_of(64) == 16  # two patches of cells of 21 px
    assert method(batch_of(size=64), T).loss.isfinite()
    with pytest.raises(ConfigError, match="smaller than a patch of 8 px"):
        make(24, vit=True)
    with pytest.raises(ConfigError, match="multiple of 8"):
        make(32, vit=True, tile_size=12)
    assert make(24, vit=True, tile_size=16)(batch_of(size=24), T).loss.isfinite()


def test_pictures_show_the_puzzle_and_the_solution():
    method, batch = make().eval(), batch_of()
    pictures = method.reconstruct(batch, T)
    assert list(pictures) == ["image", "puzzle", "solution"] and pictures["puzzle"].shape == (4, 3, 30, 30)
    tiles, names = method.puzzles(batch, T)
    guess = method.predict(tiles, names)[:, 0].argmax(-1)
    for b in range(4):
        shown = tiles[b, method.permutations_PT[names[b, 0]]]
        assert torch.equal(pictures["puzzle"][b, :, 1:9, 11:19], shown[1])
        first = method.permutations_PT[guess[b]].tolist().index(0)  # what the guess says belongs to the first place
        assert torch.equal(pictures["solution"][b, :, 1:9, 1:9], shown[first])
        assert (pictures["solution"][b, 1, 0, 0] > 0) == (guess[b] == names[b, 0])
