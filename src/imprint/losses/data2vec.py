"""data2vec: averaged teacher layers as targets, and the regression on them (arXiv 2202.03555).

Shape suffixes: B samples, N tokens, D width, M masked tokens, K layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.losses.masked_regression import Width, masked_smooth_l1


@torch.no_grad()
def averaged_layers(
    layers: Sequence[Tensor],
    places_M: Tensor | None = None,
    *,
    layer_norm: bool = True,
    instance_norm: bool = False,
    batch_norm: bool = False,
    post_layer_norm: bool = False,
    post_instance_norm: bool = False,
) -> Tensor:
    r"""Return the targets (1/K) sum_k norm(a_k), the mean of K normalised layers of the teacher (Sec. 3.3, Eq. 1).

    No norm has a gain or a shift; eps is 1e-5. Layer norm is taken over D, instance norm over the tokens of a sample
    (speech), batch norm over all tokens of the batch; where several are on, in the order batch, instance, layer.

    Args:
        layers: K of (B, N, D), the patch tokens only.
        places_M: flat int64 indices into (B N) of the tokens wanted; None keeps all.
        layer_norm: normalise each token of each layer.
        instance_norm: normalise each channel of each layer over a sample's tokens.
        batch_norm: normalise each channel of each layer over all tokens of this process.
        post_layer_norm: normalise each token of the average (the images' public recipe).
        post_instance_norm: normalise each channel of the average over a sample's tokens.

    Returns:
        (M, D), or (B N, D); float32 (float64 for float64 layers).

    Raises:
        ConfigError: without layers.
    """
    if not layers:
        raise ConfigError("averaged_layers: no layers to average; choose at least one.")
    with torch.autocast(layers[0].device.type, enabled=False):
        dtype = torch.float64 if layers[0].dtype == torch.float64 else torch.float32
        # A norm over tokens needs all of them; otherwise only those wanted are worked on.
        whole = instance_norm or batch_norm or post_instance_norm or places_M is None
        total: Tensor | None = None
        for layer_BND in layers:
            x = layer_BND.to(dtype) if whole else _chosen(layer_BND, places_M).to(dtype)
            if batch_norm:
                x = F.batch_norm(x.transpose(1, 2), None, None, training=True).transpose(1, 2)
            if instance_norm:
                x = _over_tokens(x)
            if layer_norm:
                x = F.layer_norm(x, x.shape[-1:])
            total = x if total is None else total + x
        assert total is not None
        mean = total / len(layers)
        if post_instance_norm:
            mean = _over_tokens(mean)
        if whole:
            mean = _chosen(mean, places_M)
        return F.layer_norm(mean, mean.shape[-1:]) if post_layer_norm else mean


def _chosen(x_BND: Tensor, places_M: Tensor | None) -> Tensor:
    rows = x_BND.flatten(0, 1)
    return rows if places_M is None else rows.index_select(0, places_M)


def _over_tokens(x_BND: Tensor) -> Tensor:
    return F.instance_norm(x_BND.transpose(1, 2)).transpose(1, 2)


def data2vec_loss(
    outputs_MD: Tensor,
    targets_MD: Tensor,
    *,
    beta: float = 2.0,
    width: Width = "mean",
    var_weight: float = 0.0,
    var_margin: float = 0.5,
    scale: float = 1.0,
    rows: Tensor | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    r"""Return scale (smooth_l1(y, f) + var_weight (1/D) sum_d relu(var_margin - std_d(f))) (Eq. 2; public code).

    Args:
        outputs_MD: f, the student's predictions of masked tokens.
        targets_MD: y.
        beta: of the smooth L1; 0 is the squared error.
        width: `mean` over D (images' code) or `sqrt`: sum / sqrt(D) (fairseq).
        var_weight: of the variance term, which the public code has and its recipes leave at 0.
        var_margin: standard deviation below which it pushes.
        scale: factor on all; the public code's -1 means 1.
        rows: see `masked_smooth_l1`.
        reduce: sums over processes with gradient; None for one process.

    Returns:
        0-d loss.
    """
    loss = masked_smooth_l1(outputs_MD, targets_MD, beta, width=width, rows=rows)
    if var_weight > 0:
        loss = loss + var_weight * F.relu(var_margin - spread(outputs_MD, reduce)).mean()
    return loss if scale == -1 else loss * scale


def spread(outputs_MD: Tensor, reduce: Callable[[Tensor], Tensor] | None = None, eps: float = 1e-6) -> Tensor:
    """Return sqrt(var_d + eps) of every column, over the rows of all processes; (D,), float32 (float64 for float64)."""
    with torch.autocast(outputs_MD.device.type, enabled=False):
        x = outputs_MD.to(torch.float64 if outputs_MD.dtype == torch.float64 else torch.float32)
        count = x.new_full((1,), x.shape[0])
        first = torch.cat([count, x.detach().sum(0)])
        first = first if reduce is None else reduce(first)
        mean = first[1:] / first[0].clamp_min(1)
        # No gradient is due to the mean: the deviations from it add up to zero.
        second = (x - mean).square().sum(0)
        second = second if reduce is None else reduce(second)
        return torch.sqrt(second / (first[0] - 1).clamp_min(1) + eps)
