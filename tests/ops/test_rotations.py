import numpy as np
import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.ops.rotations import quarter_turns, turn_each


def test_turns_are_numpys_to_the_bit():
    images = torch.randn(3, 2, 7, 7)
    turned = quarter_turns(images, (0, 1, 2, 3)).unflatten(0, (4, 3))
    for k in range(4):
        np.testing.assert_array_equal(turned[k].numpy(), np.rot90(images.numpy(), k, (2, 3)))
    for image in turned.transpose(0, 1).flatten(2).sort(-1).values:  # pixels are moved, none is made
        assert all(torch.equal(image[0], other) for other in image)


def test_a_quarter_is_the_public_codes_flip_of_a_transpose():
    image = torch.randn(1, 3, 5, 5)
    (turned,) = quarter_turns(image, (1,))
    np.testing.assert_array_equal(
        turned.permute(1, 2, 0).numpy(), np.flipud(np.transpose(image[0].permute(1, 2, 0).numpy(), (1, 0, 2)))
    )


def test_layout_in_memory_is_kept():
    images = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    turned = quarter_turns(images, (0, 1))
    assert turned.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(turned, quarter_turns(images.contiguous(), (0, 1)))


def test_each_image_by_its_own_turn_and_back():
    images = torch.randn(5, 3, 6, 6)
    quarters = torch.tensor([0, 1, 2, 3, -1])
    turned = turn_each(images, quarters)
    for b, k in enumerate(quarters.tolist()):
        assert torch.equal(turned[b], torch.rot90(images[b], k, (1, 2)))
    assert torch.equal(turn_each(turned, -quarters), images)


def test_only_squares_are_turned():
    with pytest.raises(ConfigError, match="6 x 8"):
        quarter_turns(torch.zeros(1, 3, 6, 8), (0, 1))
