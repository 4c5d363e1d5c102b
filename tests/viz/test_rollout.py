"""Rollout against a naive product, masks of attention's mass, and matches against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError
from imprint.viz import attention
from imprint.viz.attention import attention_maps, head_cells, kept_mass, masked
from imprint.viz.correspondence import (
    centre,
    likeness,
    likeness_picture,
    matches_picture,
    mutual_nearest,
    place_of,
)
from imprint.viz.rollout import rollout_maps, rollout_matrix, rollout_sheet


def small_vit(**options: object) -> Encoder:
    torch.manual_seed(0)
    size = {"image_size": 32, "patch_size": 8, "arch": {"depth": 3}}
    return build_encoder("vit_tiny_patch16_224", **{**size, **options}).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def vit() -> Encoder:
    return small_vit(registers=2)


def naive_rollout(vit: Encoder, images: torch.Tensor, residual: float) -> np.ndarray:
    out = []
    for image in images:
        total = None
        for layer in range(vit.depth):
            weights = vit.attention(image[None], layer)[0].double().mean(0).detach().numpy()
            mixed = (1 - residual) * weights + residual * np.eye(len(weights))
            mixed /= mixed.sum(1, keepdims=True)
            total = mixed if total is None else mixed @ total
        out.append(total)
    return np.stack(out)


@pytest.mark.parametrize("residual", [0.5, 0.0, 0.9])
def test_rollout_is_the_naive_product(vit: Encoder, residual: float) -> None:
    images = torch.rand(3, 3, 32, 32)
    found = rollout_matrix(vit, images, residual)
    wanted = naive_rollout(vit, images, residual)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.sum(2).numpy(), 1, rtol=1e-5)
    maps = rollout_maps(vit, images, residual)
    np.testing.assert_allclose(maps.reshape(3, -1), wanted[:, 0, vit.prefix_tokens :], rtol=1e-4)
    assert rollout_sheet([np.zeros((20, 20, 3), np.uint8)] * 3, maps, side=20).shape == (44, 3 * 24 - 4, 3)


def test_one_pass_gives_the_attention_of_every_block(vit: Encoder) -> None:
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        streamed = list(vit.attentions(images))
        assert len(streamed) == vit.depth
        for layer, weights in enumerate(streamed):
            torch.testing.assert_close(weights, vit.attention(images, layer))


def test_maps_do_not_depend_on_how_many_images_fit_in_memory(vit: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(3, 3, 32, 32)
    whole, rolled = attention_maps(vit, images), rollout_maps(vit, images)
    monkeypatch.setattr(attention, "ENTRIES", 1)
    np.testing.assert_allclose(attention_maps(vit, images), whole, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(rollout_maps(vit, images), rolled, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["vit_little_patch16_reg4_gap_256", "vit_base_patch16_siglip_224"])
def test_without_a_class_token_the_patches_ask(name: str) -> None:
    torch.manual_seed(0)
    arch = {"depth": 2, "embed_dim": 64, "num_heads": 2}
    vit = build_encoder(name, image_size=32, patch_size=8, arch=arch).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        weights = vit.attention(images)
        assert vit.encode(images).cls_BD is None
    rows = weights[:, :, vit.prefix_tokens :, vit.prefix_tokens :].mean(2)
    np.testing.assert_allclose(attention_maps(vit, images).reshape(2, 2, 16), rows.numpy(), rtol=1e-5)
    rolled = naive_rollout(vit, images, 0.5)[:, vit.prefix_tokens :, vit.prefix_tokens :].mean(1)
    np.testing.assert_allclose(rollout_maps(vit, images).reshape(2, 16), rolled, rtol=1e-4)


@pytest.mark.parametrize("name", ["resnet10t", "swin_tiny_patch4_window7_224"])
def test_no_rollout_without_attention_over_the_image(name: str) -> None:
    with pytest.raises(ConfigError, match="choose a ViT"):
        rollout_maps(build_encoder(name, image_size=64), torch.rand(1, 3, 64, 64))


def test_kept_mass_is_the_smallest_set_that_holds_it() -> None:
    rng = np.random.default_rng(0)
    maps = rng.random((4, 3, 5, 5)).astype(np.float32) ** 4
    for keep in (0.6, 0.05, 1.0):
        masks = kept_mass(maps, keep)
        for own, mask in zip(maps.reshape(12, 25), masks.reshape(12, 25), strict=True):
            total = own.astype(np.float64).sum()
            assert own[mask].astype(np.float64).sum() >= keep * total * (1 - 1e-9)
            assert own[mask].astype(np.float64).sum() - own[mask].min() < keep * total
            assert mask.all() or own[mask].min() >= own[~mask].max()
    # the public visualisation: sorted ascending, the part whose cumulated share exceeds 1 - keep
    flat = maps[0, 0].ravel().astype(np.float64) / maps[0, 0].astype(np.float64).sum()
    order = np.argsort(flat)
    theirs = np.zeros(25, bool)
    theirs[order] = np.cumsum(flat[order]) > 0.4
    assert (kept_mass(maps[0, 0], 0.6).ravel() == theirs).all()
    with pytest.raises(ConfigError, match="keep"):
        kept_mass(maps, 0.0)


def test_masked_shows_the_image_where_the_mask_is() -> None:
    image = np.full((8, 8, 3), (200, 40, 40), np.uint8)
    mask = np.zeros((2, 2), bool)
    mask[0, 1] = True
    shown = masked(image, mask)
    assert (shown[:4, 4:] == image[:4, 4:]).all() and (shown[4:, :4] < 60).all()
    cells = head_cells(image, np.random.default_rng(0).random((3, 2, 2)).astype(np.float32), heads=2, keep=0.6)
    assert len(cells) == 3


def test_mutual_neighbours_equal_brute_force() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(20, 6)), rng.normal(size=(25, 6))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one, two)]
    cosine = unit[0] @ unit[1].T
    wanted = {(i, int(cosine[i].argmax())) for i in range(20) if cosine[:, cosine[i].argmax()].argmax() == i}
    pairs, values = mutual_nearest(torch.from_numpy(one), torch.from_numpy(two))
    assert {tuple(p) for p in pairs.tolist()} == wanted and len(wanted) > 2
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose(values, [cosine[i, j] for i, j in pairs], rtol=1e-5)


def test_a_shifted_image_matches_its_shift() -> None:
    """Features of distinct places, moved by one column: every line goes one place to the left."""
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 5, 16)))
    moved = torch.roll(features, -1, dims=1)
    pairs, values = mutual_nearest(features.flatten(0, 1), moved.flatten(0, 1))
    assert len(pairs) == 25 and values.min() > 0.999
    rows, columns = np.divmod(pairs, 5)
    assert (rows[:, 0] == rows[:, 1]).all() and ((columns[:, 0] - 1) % 5 == columns[:, 1]).all()
    found = likeness(features.flatten(0, 1), place_of((0.5, 0.5), (5, 5)), moved.flatten(0, 1), (5, 5))
    assert np.unravel_index(found.argmax(), found.shape) == (2, 1)


def test_lines_start_and_end_in_the_middle_of_places() -> None:
    assert place_of((0.99, 0.0), (2, 4)) == 3 and place_of((1.0, 1.0), (2, 4)) == 7
    assert centre(3, (2, 4), 80) == (70, 20)
    with pytest.raises(ConfigError, match="point"):
        place_of((1.2, 0.5), (2, 2))
    black = np.zeros((16, 16, 3), np.uint8)
    drawn = matches_picture((black, black), np.array([[0, 3]]), (2, 2), side=80)
    for x, y in ((20, 20), (80 + 24 + 60, 60)):
        assert drawn[y - 1 : y + 2, x - 1 : x + 2].max() > 100
    assert drawn[60, 20].max() == 0
    assert matches_picture((black, black), np.zeros((0, 2), np.int64), (2, 2), side=80).shape == (80, 184, 3)
    features = torch.eye(4)
    assert likeness_picture((black, black), (features, features), 1, (2, 2), side=80).shape == (80, 184, 3)
