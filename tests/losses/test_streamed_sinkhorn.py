import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.losses.distillation import centred_softmax
from imprint.losses.streamed_sinkhorn import sinkhorn_centre
from imprint.ops.sinkhorn import sinkhorn


def case(rows=23, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(11, 6, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(z, dim=1).to(dtype), torch.nn.functional.normalize(weight, dim=1).to(dtype)


@pytest.mark.parametrize("rows", [None, 7, 1])
@pytest.mark.parametrize("iterations", [0, 1, 3, 10])
def test_codes_are_those_of_the_whole_matrix(rows, iterations):
    z, weight = case()
    center = sinkhorn_centre(z, weight, 0.05, iterations, rows=rows)
    codes = centred_softmax(z @ weight.T, center, 0.05)
    torch.testing.assert_close(codes, sinkhorn(z @ weight.T, 0.05, iterations), rtol=1e-9, atol=1e-12)


def test_large_scores_stay_finite():
    z, weight = case(dtype=torch.float32)
    center = sinkhorn_centre(z * 1e4, weight, 0.04, 3, rows=5)
    assert torch.isfinite(center).all() and torch.isfinite(centred_softmax(z @ weight.T * 1e4, center, 0.04)).all()


def test_rows_of_several_processes_are_balanced_together():
    """Each process holds a part, one of them none; reductions are played by what the others would bring."""
    z, weight = case()
    whole = sinkhorn_centre(z, weight, 0.05, 1)
    parts = [z[:9], z[9:], z[:0]]
    found: dict[str, list[torch.Tensor]] = {"max": [], "sum": []}

    def note(name):
        return lambda x: (found[name].append(x.clone()), x)[1]

    for part in parts:
        sinkhorn_centre(part, weight, 0.05, 1, reduce_max=note("max"))
    top = torch.stack(found["max"]).amax()
    for part in parts:
        sinkhorn_centre(part, weight, 0.05, 1, reduce_max=lambda _: top, reduce=note("sum"))
    total = torch.stack(found["sum"]).sum(0)
    for part in parts:
        center = sinkhorn_centre(part, weight, 0.05, 1, reduce_max=lambda _: top, reduce=lambda _: total)
        torch.testing.assert_close(center, whole, rtol=1e-9, atol=1e-12)


def test_what_does_not_fit_is_refused():
    z, weight = case()
    with pytest.raises(ConfigError, match="temperature"):
        sinkhorn_centre(z, weight, 0.0, 3)
    with pytest.raises(ConfigError, match="not"):
        sinkhorn_centre(z, weight[:, :3], 0.05, 3)
