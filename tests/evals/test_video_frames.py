"""Frames to maps of features and masks to labels of patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.data.batch import Normalise
from imprint.data.davis import open_videos
from imprint.evals.pixels import PixelEncoder
from imprint.evals.video_frames import Eyes, FrameConfig, PixelPatches, patch_labels


def test_labels_of_patches_by_centre_and_by_share() -> None:
    ids = np.zeros((6, 8), np.uint8)
    ids[:3, :3], ids[4:, 6:], ids[0, 7] = 5, 2, 255
    hard = patch_labels(ids, [2, 5], 2, 2, shares=False)
    assert hard.shape == (2, 2, 3) and hard.argmax(-1).tolist() == [[2, 0], [0, 1]]  # pixels (1, 2), (1, 6), ...
    soft = patch_labels(ids, [2, 5], 2, 2, shares=True)
    assert soft[0, 0].tolist() == pytest.approx([0.25, 0, 0.75])
    assert soft[1, 1].tolist() == pytest.approx([8 / 12, 4 / 12, 0]) and soft[0, 1].tolist() == [1, 0, 0]


def test_sides_are_whole_patches(patches) -> None:
    eyes = Eyes(patches, Normalise(), FrameConfig(image_size=51, device="cpu"))
    assert eyes.sides(480, 854) == (52, 92) and eyes.sides(854, 480) == (92, 52)
    assert Eyes(patches, Normalise(), FrameConfig(image_size=None, device="cpu")).sides(33, 41) == (32, 40)


def test_every_frame_once_in_the_order_asked_for(patches, videos) -> None:
    video = open_videos(videos, ["near"]).sequences[0]
    eyes = Eyes(patches, Normalise(), FrameConfig(image_size=24, batch_size=3, device="cpu"))
    order = [5, 0, 1, 7, 2]
    seen = list(eyes.watch(video, order))
    assert [i for i, _, _ in seen] == order and patches.calls == 2 and eyes.looked == 5
    for i, frame, map_hwD in seen:
        assert np.array_equal(frame, video.frame(i)) and map_hwD.shape == (6, 9, 16)
        torch.testing.assert_close(map_hwD, eyes.look([frame])[0])


def test_pixel_patches_keep_the_aspect() -> None:
    images = torch.rand(2, 3, 16, 24)
    found = PixelPatches(8).encode(images)
    assert found.grid == (2, 3) and found.patches_BND.shape == (2, 6, 48)
    cell = images[1, 2, 8:10, 18:20].mean()  # patch (1, 2), cell (0, 1) of channel 2
    torch.testing.assert_close(found.patches_BND[1, 5, 2 * 16 + 1], cell)
    eyes = Eyes(PixelEncoder(), Normalise(), FrameConfig(image_size=16, pixel_patch=2, device="cpu"))
    assert eyes.look([np.zeros((32, 64, 3), np.uint8)]).shape == (1, 8, 16, 12)
    with pytest.raises(ConfigError, match="no tokens"):
        PixelPatches().encode(images, mask_BN=torch.zeros(2, 6))


def test_stages_of_a_cnn_and_layers_of_a_vit() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (64, 96, 3)).astype(np.uint8)
    cnn = build_encoder("resnet10t", image_size=32).eval()
    shapes = [Eyes(cnn, Normalise(), FrameConfig(image_size=64, stage=s)).look([frame]).shape for s in (0, -2, -1)]
    assert [tuple(s[1:3]) for s in shapes] == [(16, 24), (4, 6), (2, 3)]
    with pytest.raises(ConfigError, match="--stage 4: .* has 4 maps, 0 to 3"):
        Eyes(cnn, Normalise(), FrameConfig(image_size=64, stage=4)).look([frame])
    vit = build_encoder("vit_tiny_patch16_224", image_size=32).eval()
    two = Eyes(vit, Normalise(), FrameConfig(image_size=64, layers=(0, -1))).look([frame])
    last = Eyes(vit, Normalise(), FrameConfig(image_size=64)).look([frame])
    assert two.shape == (1, 4, 6, 384)
    torch.testing.assert_close(two[..., 192:], last)


def test_grey_encoders_see_grey_and_others_are_refused() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    grey = Eyes(PixelPatches(8, channels=1), Normalise(), FrameConfig(image_size=16, device="cpu"))
    assert grey.look([frame]).shape == (1, 2, 2, 16)
    with pytest.raises(ConfigError, match="takes 5 channels"):
        Eyes(PixelPatches(8, channels=5), Normalise(), FrameConfig())
    with pytest.raises(ConfigError, match="at least 1"):
        FrameConfig(image_size=0)
