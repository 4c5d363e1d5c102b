import torch

from imprint.core.rng import seed_of
from imprint.ops.keyed import keyed_uniforms


def test_a_sample_keeps_its_numbers_wherever_it_is():
    index = torch.tensor([5, 900_000_000_000, 7, 5])
    x = keyed_uniforms(seed_of("a", 3), index, 6)
    assert x.shape == (4, 6) and x.dtype == torch.float32 and (x >= 0).all() and (x < 1).all()
    assert torch.equal(x[0], x[3]) and not torch.equal(x[0], x[2])
    assert torch.equal(keyed_uniforms(seed_of("a", 3), index[2:], 6), x[2:])
    assert torch.equal(keyed_uniforms(seed_of("a", 3), index, 9)[:, :6], x)
    assert not torch.equal(keyed_uniforms(seed_of("a", 4), index, 6), x)


def test_numbers_are_uniform_and_independent():
    x = keyed_uniforms(seed_of("a", 0), torch.arange(2000), 50).double()
    assert abs(x.mean() - 0.5) < 4 * (1 / 12 / x.numel()) ** 0.5
    counts = torch.histc(x, 20, 0, 1)
    assert ((counts - x.numel() / 20).square() / (x.numel() / 20)).sum() < 50  # chi square, 19 degrees of freedom
    for a, b in ((x[:, :-1], x[:, 1:]), (x[:-1], x[1:])):
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert correlation.abs() < 4 / a.numel() ** 0.5
