"""A small classifier of patches, fitted to one frame.

Shapes: P patches, D width, C classes (background, then the objects).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imprint.core.errors import HealthError
from imprint.core.rng import seed_of


class PatchClassifier(nn.Module):
    """Standardised features to logits: a linear map, or one hidden layer with GELU; (..., D) -> (..., C).

    Args:
        mean_D: of the features it is fitted to.
        std_D: likewise.
        classes: C.
        hidden: width of the hidden layer, 0 for none.
        seed: of the hidden layer's start; a linear map starts at zero.
    """

    mean_D: Tensor
    std_D: Tensor

    def __init__(self, mean_D: Tensor, std_D: Tensor, classes: int, hidden: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean_D", mean_D)
        self.register_buffer("std_D", std_D)
        width = len(mean_D)
        if hidden:
            generator = torch.Generator().manual_seed(seed_of(seed, "patch-classifier"))
            first = nn.Linear(width, hidden)
            with torch.no_grad():
                first.weight.copy_(torch.randn(hidden, width, generator=generator) / width**0.5)
                first.bias.zero_()
            self.layers = nn.Sequential(first, nn.GELU(), nn.Linear(hidden, classes))
        else:
            self.layers = nn.Sequential(nn.Linear(width, classes))
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)
        self.to(mean_D.device)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.layers((features - self.mean_D) / self.std_D)
        return logits


def fit_patches(
    features_PD: Tensor,
    targets_PC: Tensor,
    *,
    hidden: int = 0,
    penalty: float = 1e-3,
    steps: int = 200,
    seed: int = 0,
) -> PatchClassifier:
    """Fit a classifier to soft labels by L-BFGS on all patches at once; the same input gives the same classifier.

    It minimises mean_p [ - sum_c t_pc log softmax(z_p)_c ] + penalty / 2 * sum of squared weights (not biases): for a
    linear map a convex problem with one solution.

    Args:
        features_PD: features of the patches.
        targets_PC: their labels; rows sum to 1.
        hidden: width of a hidden layer, 0 for multinomial logistic regression.
        penalty: on the squared weights.
        steps: most iterations.
        seed: of the hidden layer's start.

    Raises:
        HealthError: when the features hold infinities or NaN.
    """
    if not bool(torch.isfinite(features_PD).all()):
        raise HealthError("the encoder gives features that are not finite; nothing can be fitted to them.")
    std_D, mean_D = torch.std_mean(features_PD, 0, correction=0)
    # A constant feature says nothing; dividing it by 1 leaves it at 0.
    model = PatchClassifier(mean_D, torch.where(std_D > 1e-6, std_D, 1.0), targets_PC.shape[1], hidden, seed)
    weights = [p for p in model.parameters() if p.ndim > 1]
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=steps, tolerance_grad=1e-6, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(model(features_PD), targets_PC)
        value = value + 0.5 * penalty * torch.stack([w.square().sum() for w in weights]).sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return model.requires_grad_(False).eval()
