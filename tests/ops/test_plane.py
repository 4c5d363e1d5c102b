import torch

from imprint.ops.plane import dots


def test_points_land_where_they_are_up_is_up():
    picture = dots(torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]]), 1.0, 5)
    assert picture.nonzero().tolist() == [[0, 4], [2, 2], [4, 0]]


def test_points_outside_stay_on_the_edge_and_unreal_ones_are_left_out():
    points = torch.tensor([[9.0, 0.0], [0.0, 0.0], [float("nan"), 0.0]])
    assert dots(points[:1], 1.0, 5).nonzero().tolist() == [[2, 4]]
    assert not dots(points[1:2], 1.0, 5, real_N=torch.tensor([False])).any()
    assert dots(points[2:], 1.0, 5)[2, 2]


def test_dots_have_their_size():
    assert int(dots(torch.zeros(1, 2), 1.0, 9, size=3).sum()) == 9
