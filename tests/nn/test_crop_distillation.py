"""DINOv2's class-token loss with and without holding all logits."""

import copy

import pytest
import torch

from imprint.nn import crop_distillation
from imprint.nn.crop_distillation import Centres, Objective, _image_loss, make_heads


class Parts(torch.nn.Module):
    """Heads alone."""

    def __init__(self):
        super().__init__()
        self.image_head, self.patch_head = make_heads(8, 16, (8, 24), None)


@pytest.mark.parametrize("centring", ["sinkhorn", "mean"])
def test_streamed_logits_give_the_loss_gradients_and_centre_of_held_ones(centring, monkeypatch):
    torch.manual_seed(0)
    student, teacher = Parts().double(), Parts().double()
    objective = Objective(
        student_temp=0.1, centring=centring, iterations=3, patch_weight=1.0, koleo_weight=0.0, koleo_across=False
    )
    unit = torch.nn.functional.normalize
    z = unit(torch.randn(5, 6, 8, dtype=torch.float64), dim=-1)
    taught = unit(torch.randn(2, 6, 8, dtype=torch.float64), dim=-1)
    found = []
    for many in (2**25, 0):
        monkeypatch.setattr(crop_distillation, "_MANY", many)
        own, leaf = copy.deepcopy(student), z.clone().requires_grad_()
        centres = Centres(24, 24, 0.9).double() if centring == "mean" else None
        for _ in range(2):  # the second time with a centre that has moved
            loss, spread = _image_loss(leaf, taught, own, teacher, centres, objective, 0.05)
        loss.backward()
        gradients = [leaf.grad, own.image_head.prototypes.direction.grad, own.image_head.prototypes.gain.grad]
        found.append([loss.detach(), *gradients, *(centres.buffers() if centres else ())])
        assert 0 < float(spread) <= torch.log(torch.tensor(24.0))
    for held, streamed in zip(*found, strict=True):
        torch.testing.assert_close(streamed, held, rtol=1e-7 if centring == "sinkhorn" else 1e-9, atol=1e-9)
