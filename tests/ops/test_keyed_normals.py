import torch

from imprint.ops.keyed_normals import keyed_normals


def test_moments_are_those_of_a_standard_normal():
    z = keyed_normals(3, torch.arange(2000), (3, 5, 7)).double()
    assert z.shape == (2000, 3, 5, 7) and torch.isfinite(z).all()
    flat = z.flatten()
    assert abs(flat.mean()) < 0.01 and abs(flat.var() - 1) < 0.01
    assert abs((flat**3).mean()) < 0.03 and abs((flat**4).mean() - 3) < 0.1
    across = torch.corrcoef(z.flatten(1).t())
    assert (across - torch.eye(105)).abs().max() < 0.12  # no two numbers of a sample go together


def test_a_sample_has_the_same_noise_wherever_it_stands():
    whole = keyed_normals(9, torch.arange(10, 20), (2, 3))
    part = keyed_normals(9, torch.tensor([17, 12]), (2, 3))
    assert torch.equal(part, whole[[7, 2]])
    assert not torch.equal(keyed_normals(8, torch.arange(10, 20), (2, 3)), whole)
