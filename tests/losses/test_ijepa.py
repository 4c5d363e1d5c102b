import pytest
import torch
import torch.nn.functional as F

from imprint.core.errors import ConfigError
from imprint.losses.ijepa import block_prediction, block_targets


def places(blocks=3, images=2, count=4, patches=9):
    return torch.stack([torch.stack([torch.randperm(patches)[:count] for _ in range(images)]) for _ in range(blocks)])


def test_targets_are_the_normalised_tokens_at_their_places():
    tokens, where = torch.randn(2, 9, 6, dtype=torch.float64), places()
    found = block_targets(tokens, where)
    normal = F.layer_norm(tokens, (6,))
    for t in range(3):
        for b in range(2):
            torch.testing.assert_close(found[t, b], normal[b, where[t, b]])


def test_prediction_is_torchs_smooth_l1_with_targets_repeated_for_every_context():
    torch.manual_seed(0)
    target = torch.randn(3, 2, 4, 6, dtype=torch.float64)
    pred = (2 * torch.randn(3 * 2 * 2, 4, 6, dtype=torch.float64)).requires_grad_()
    repeated = torch.cat([torch.cat([block, block]) for block in target])
    for name, function in (("smooth_l1", F.smooth_l1_loss), ("l2", F.mse_loss)):
        loss = block_prediction(pred, target, name)
        torch.testing.assert_close(loss, function(pred, repeated))
    assert torch.autograd.grad(loss, pred)[0].abs().sum() > 0


def test_low_precision_is_computed_in_float32():
    pred, target = torch.randn(3 * 2, 4, 6).bfloat16().requires_grad_(), block_targets(
        1e4 * torch.randn(2, 9, 6).bfloat16(), places()
    )  # fmt: skip
    assert target.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = block_prediction(pred * 1e4, target)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss) and pred.grad.isfinite().all()


def test_what_does_not_fit_is_refused():
    target = torch.zeros(3, 2, 4, 6)
    with pytest.raises(ConfigError, match="do not fit"):
        block_prediction(torch.zeros(5, 4, 6), target)
    with pytest.raises(ConfigError, match="distance"):
        block_prediction(torch.zeros(6, 4, 6), target, "l3")
    with pytest.raises(ConfigError, match="do not fit"):
        block_targets(torch.zeros(3, 9, 6), places())
