"""Pictures of a ViT's tokens, on a real small one."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError
from imprint.viz.attention import attention_maps, attention_sheet, overlay, save_attention
from imprint.viz.patch_pca import component_pictures, patch_components, save_pca
from imprint.viz.token_norms import histogram, norms_sheet, save_norms, token_norms, tokens_before_norm


@pytest.fixture(scope="module")
def vit() -> Encoder:
    torch.manual_seed(0)
    return build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, registers=2, arch={"depth": 2}).eval()


def test_attention_is_the_class_tokens_row(vit: Encoder) -> None:
    images = torch.rand(3, 3, 32, 32)
    maps = attention_maps(vit, images)
    full = vit.attention(images).detach()
    assert maps.shape == (3, full.shape[1], 4, 4)
    np.testing.assert_allclose(maps.reshape(3, -1, 16), full[:, :, 0, vit.prefix_tokens :].numpy(), rtol=1e-6)
    assert (maps.sum((2, 3)) <= 1 + 1e-5).all() and (maps > 0).all()


def test_attention_of_a_cnn_is_refused() -> None:
    with pytest.raises(ConfigError, match="attention"):
        attention_maps(build_encoder("resnet10t", image_size=32), torch.rand(1, 3, 32, 32))


def test_overlay_is_strongest_where_attention_is(tmp_path: Path) -> None:
    image = np.full((64, 64, 3), 100, np.uint8)
    attention = np.zeros((4, 4), np.float32)
    attention[1, 2] = 1
    change = np.abs(overlay(image, attention).astype(int) - image).sum(2)
    y, x = np.unravel_index(change.argmax(), change.shape)
    assert 16 <= y < 32 and 32 <= x < 48
    assert np.isfinite(overlay(image, np.zeros((4, 4), np.float32)).astype(float)).all()
    maps = np.random.default_rng(0).random((2, 3, 4, 4)).astype(np.float32)
    assert attention_sheet([image] * 2, maps, side=32).shape == (5 * 36 - 4, 2 * 36 - 4, 3)
    assert save_attention([image] * 2, maps, tmp_path / "a.png").is_file()


def test_components_are_those_of_an_svd_with_foreground_in_front() -> None:
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(2, 36, 5)) * np.array([3, 1, 0.5, 0.2, 0.1])
    inside = np.zeros((6, 6), bool)
    inside[1:-1, 1:-1] = True
    patches[:, inside.ravel(), 0] -= 30  # the object has the lower raw score: the sign must be turned
    found = patch_components(patches.astype(np.float32))
    flat = patches.reshape(-1, 5) - patches.reshape(-1, 5).mean(0)
    _, _, vectors = np.linalg.svd(flat, full_matrices=False)
    np.testing.assert_allclose(np.abs(found.reshape(-1, 4)), np.abs(flat @ vectors[:4].T), rtol=1e-3, atol=1e-3)
    assert ((found[..., 0] > 0) == inside.ravel()).all()
    grey, colours = component_pictures(found, (6, 6))[0]
    assert grey[inside].min() > grey[~inside].max()
    assert colours[inside].mean() > 2 * colours[~inside].mean()


def test_components_of_constant_or_narrow_features(tmp_path: Path) -> None:
    assert (patch_components(np.ones((2, 9, 6), np.float32)) == 0).all()
    assert patch_components(np.random.default_rng(0).normal(size=(2, 9, 2)).astype(np.float32)).shape == (2, 9, 4)
    images = [np.zeros((24, 24, 3), np.uint8)] * 2
    path = save_pca(images, np.ones((2, 9, 6), np.float32), (3, 3), tmp_path / "p.png")
    assert cv2.imread(str(path)).shape == (3 * 112 + 8, 2 * 112 + 4, 3)


def test_outlier_tokens_are_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(4, 25, 16)).astype(np.float32)
    patches[0, 3] *= 40
    patches[2, 7] *= 40
    found = token_norms(patches)
    assert found.outlier_share == pytest.approx(0.02)
    assert found.largest == pytest.approx(np.linalg.norm(patches, axis=2).max(), rel=1e-5)
    chart = histogram(found)
    assert sum(chart.series[0].y) == pytest.approx(100)
    images = [np.zeros((20, 20, 3), np.uint8)] * 4
    assert norms_sheet(images, found, (5, 5), side=20).shape == (44, 4 * 24 - 4, 3)
    assert save_norms(images, found, (5, 5), tmp_path / "n.png").is_file()
    assert token_norms(np.ones((2, 9, 4), np.float32)).outlier_share == 0


def test_norms_are_taken_before_the_final_norm(vit: Encoder) -> None:
    images = torch.rand(2, 3, 32, 32)
    before, after = tokens_before_norm(vit, images), vit.encode(images).patches_BND
    assert before.shape == after.shape and not torch.allclose(before, after)
    norm = vit.model.norm
    torch.testing.assert_close(norm(before), after)
    assert not any(module._forward_hooks for module in vit.modules())


def test_norms_of_a_swin_are_taken_before_its_final_norm() -> None:
    torch.manual_seed(0)
    swin = build_encoder("swin_tiny_patch4_window7_224", image_size=64, arch={"layers": (1, 1, 1, 1)}).eval()
    images = torch.rand(2, 3, 64, 64)
    before, after = tokens_before_norm(swin, images), swin.encode(images).patches_BND
    assert before.shape == after.shape
    torch.testing.assert_close(swin.model.norm(before), after)
    assert not torch.allclose(before, after)
