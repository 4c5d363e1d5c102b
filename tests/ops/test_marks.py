import torch

from imprint.data.batch import Normalise
from imprint.ops.marks import framed


def test_frames_are_green_for_right_and_red_for_wrong_and_leave_the_middle():
    images = torch.randn(2, 3, 32, 32)
    marked = framed(images, torch.tensor([True, False]))
    assert torch.equal(marked[:, :, 1:-1, 1:-1], images[:, :, 1:-1, 1:-1])
    drawn = Normalise().undo(marked)
    for edge in (drawn[..., 0, :], drawn[..., -1, :], drawn[..., :, 0], drawn[..., :, -1]):
        torch.testing.assert_close(edge[0].mean(-1), torch.tensor([0.0, 1.0, 0.0]))
        torch.testing.assert_close(edge[1].mean(-1), torch.tensor([1.0, 0.0, 0.0]))


def test_without_colour_frames_are_white_and_black():
    marked = framed(torch.zeros(2, 1, 8, 8), torch.tensor([True, False]))
    assert (marked[0, 0, 0] > 10).all() and (marked[1, 0, 0] < -10).all()
