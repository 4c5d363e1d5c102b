"""Random erasing by keys: the stated rectangles, standard normal noise, nothing else, the same in any batch."""

import torch

from imprint.ops.erasing import random_erasing, rectangles

INDEX = torch.arange(20000)


def test_rectangles_have_the_stated_share_and_shape():
    top, bottom, left, right = rectangles(INDEX, 0.25, 64, 48, key=3)
    tall, wide = bottom - top, right - left
    hit = tall > 0
    assert abs(hit.float().mean() - 0.25) < 0.01 and (wide[~hit] == 0).all()
    share, aspect = (tall * wide)[hit] / (64 * 48), (tall / wide)[hit]
    assert share.min() > 0.015 and share.max() < 0.36 and abs(share.mean() - (0.02 + 1 / 3) / 2) < 0.02
    assert aspect.min() > 0.25 and aspect.max() < 4 and abs(aspect.log().mean()) < 0.1
    assert top.min() >= 0 and bottom.max() == 64 and left.min() == 0 and right.max() == 48
    assert not rectangles(INDEX[:50], 0.0, 64, 48, key=3).any()


def test_only_the_rectangle_changes_and_holds_standard_normal_noise():
    images = torch.full((64, 3, 24, 16), 7.0)
    found = random_erasing(images, INDEX[:64], 0.5, key=1, noise_key=2)
    inside = torch.zeros_like(images, dtype=torch.bool)
    for b, (top, bottom, left, right) in enumerate(rectangles(INDEX[:64], 0.5, 24, 16, key=1).T.tolist()):
        inside[b, :, top:bottom, left:right] = True
    assert (found[~inside] == 7).all() and (images == 7).all() and 0.05 < inside.float().mean() < 0.15
    noise = found[inside]
    assert noise.isfinite().all() and abs(noise.mean()) < 0.06 and abs(noise.std() - 1) < 0.05
    channels = found.permute(1, 0, 2, 3)[:, inside[:, 0]]
    assert abs(torch.corrcoef(channels) - torch.eye(3)).max() < 0.08  # every channel its own
    assert noise.unique().numel() > 0.99 * noise.numel()


def test_it_is_a_function_of_sample_and_key():
    images = torch.randn(12, 3, 16, 16)
    whole = random_erasing(images, INDEX[:12], 0.9, key=1, noise_key=2)
    part = random_erasing(images[[7, 3]], torch.tensor([7, 3]), 0.9, key=1, noise_key=2)
    assert torch.equal(part, whole[[7, 3]])
    assert not torch.equal(random_erasing(images, INDEX[:12], 0.9, key=5, noise_key=2), whole)
    assert not torch.equal(random_erasing(images, INDEX[:12], 0.9, key=1, noise_key=5), whole)
