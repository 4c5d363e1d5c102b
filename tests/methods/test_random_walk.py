import dataclasses

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.methods.random_walk import RandomWalk, RandomWalkConfig
from imprint.recipes.book import recipe

T = Progress(3, 10, 5)


def make(**changes):
    torch.manual_seed(0)
    config = recipe("random_walk/debug")
    encoder = build_encoder("resnet18", image_size=32, stem="cifar", arch=config.encoder.arch)
    return RandomWalk(dataclasses.replace(config.method, **changes), encoder)


def clips_of(count=4, frames=3, size=32):
    generator = torch.Generator().manual_seed(7)
    clips = torch.randn(1, count, frames, 3, size, size, generator=generator)
    return Batch(clips={"walk": clips}, index_B=torch.arange(count) + 5)


def test_defaults_are_the_papers_and_the_codes():
    cfg = RandomWalkConfig()
    assert (cfg.patch, cfg.patch_stride, cfg.edge_dropout, cfg.temperature) == (64, 32, 0.1, 0.05)
    assert (cfg.shortest, cfg.projection, cfg.jitter) == (1, 128, (0.7, 0.9))
    (clip,) = RandomWalk.clips(cfg, 256)
    assert (clip.frames, clip.stride, clip.steady) == (4, 4, False)
    assert clip.crop.scale == (0.8, 0.95) and clip.crop.ratio == (0.7, 1.3)


@pytest.mark.parametrize("nodes", ["patches", "map"])
def test_the_loss_is_near_chance_at_first_and_everything_learns(nodes):
    method = make(nodes=nodes)
    batch = clips_of()
    out = method(batch, T)
    count = 9 if nodes == "patches" else 16
    assert method.walkable(batch.clips["walk"][0], method._boxes(batch.clips["walk"][0], batch.index_B, T)).shape == (
        4, 3, count, 16,
    )  # fmt: skip
    assert 0 < float(out.loss) < 20 and 0 <= float(out.metrics["random_walk/returned"]) <= 1
    out.loss.backward()
    assert [n for n, p in method.named_parameters() if p.grad is None] == []


def test_a_still_clip_of_distinct_patches_is_walked_home():
    method = make(temperature=0.002).eval()
    batch = clips_of()
    batch.clips["walk"][:] = batch.clips["walk"][:, :, :1].clone()
    out = method(batch, T)
    assert float(out.loss) < 0.05 and float(out.metrics["random_walk/returned"]) == 1.0


def test_random_choices_belong_to_the_clip_and_the_step():
    method = make(edge_dropout=0.5)
    batch, part = clips_of(), clips_of().part(1, 3)
    frames = batch.clips["walk"][0]
    boxes = method._boxes(frames, batch.index_B, T)
    assert boxes.shape == (4 * 3, 9, 4)
    torch.testing.assert_close(boxes[3:9], method._boxes(part.clips["walk"][0], part.index_B, T), rtol=0, atol=0)
    nodes = torch.zeros(4, 3, 9, 16)
    dropped = method._dropped(nodes, batch.index_B, T)
    assert dropped.shape == (4, 2, 2, 9, 9) and abs(float(dropped.float().mean()) - 0.5) < 0.05
    assert torch.equal(dropped[1:3], method._dropped(nodes[1:3], part.index_B, T))
    later = Progress(4, 10, 5)
    assert not torch.equal(dropped, method._dropped(nodes, batch.index_B, later))
    assert not torch.equal(boxes, method._boxes(frames, batch.index_B, later))
    method.eval()
    assert method._dropped(nodes, batch.index_B, T) is None and method._boxes(frames, batch.index_B, T).shape == (9, 4)


@pytest.mark.parametrize("nodes", ["patches", "map"])
def test_pictures_show_the_first_frame_made_of_the_last(nodes):
    method = make(nodes=nodes).eval()
    batch = clips_of()
    pictures = method.reconstruct(batch, T)
    first, last, walked = pictures.values()
    assert torch.equal(first, batch.clips["walk"][0][:, 0]) and torch.equal(last, batch.clips["walk"][0][:, -1])
    assert walked.shape == first.shape and torch.isfinite(walked).all() and walked.abs().sum() > 0


def test_vits_encode_patches_that_their_own_divide_and_others_are_refused():
    vit = {"image_size": 32, "patch_size": 8, "arch": recipe("mae/debug").encoder.arch}
    cfg = RandomWalkConfig(frames=3, stride=1, patch=16, patch_stride=8, projection=16)
    method = RandomWalk(cfg, build_encoder("vit_tiny_patch16_224", **vit))
    method(clips_of(), T).loss.backward()
    with pytest.raises(ConfigError, match="multiple of 8"):
        RandomWalk(dataclasses.replace(cfg, patch=12), build_encoder("vit_tiny_patch16_224", **vit))


def test_what_cannot_be_walked_is_refused():
    with pytest.raises(ConfigError, match="at least 2 frames"):
        RandomWalkConfig(frames=1)
    with pytest.raises(ConfigError, match="shortest"):
        RandomWalkConfig(frames=3, shortest=3)
    with pytest.raises(ConfigError, match="edge-dropout"):
        RandomWalkConfig(edge_dropout=1.0)
    with pytest.raises(ConfigError, match="jitter"):
        RandomWalkConfig(jitter=(0.9, 0.7))
    with pytest.raises(ConfigError, match="--method.patch 8"):
        RandomWalk.clips(RandomWalkConfig(), 32)
    assert RandomWalk.dangers(RandomWalkConfig(nodes="map")) and not RandomWalk.dangers(RandomWalkConfig())
