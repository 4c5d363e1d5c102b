"""Losses of pairs of images and texts: CLIP's symmetric cross entropy and SigLIP's pairwise sigmoid, streamed.

The matrix of similarities is never whole in memory: a part of its rows is made, turned into its part of the gradients,
and forgotten, so memory is linear in the number of pairs. Loss and gradients are found together in the forward pass.

Shape suffixes: B pairs of this process, A pairs of all processes, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from imprint.core.errors import ConfigError


def clip_loss(
    image_BD: Tensor,
    text_BD: Tensor,
    log_scale: Tensor,
    *,
    image_all: Tensor | None = None,
    text_all: Tensor | None = None,
    offset: int = 0,
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Return CLIP's loss (arXiv 2103.00020, Sec. 2.3 and Fig. 3), mean over the B pairs.

    L = (CE(S, own) + CE(S^T, own)) / 2, S_ij = exp(log_scale) cos(image_i, text_j): every image among all texts and
    every text among all images.

    Alone, both directions share one matrix, of which each part is made twice (sums first, then gradients): four
    products of B x B x D in all, three where one part is the whole. With several processes each passes its own pairs
    and the vectors of all: the mean of the losses over processes is that of the whole batch, and the gradients that
    reach `image_all` and `text_all`, summed over processes, complete it.

    Args:
        image_BD: vectors of images, any scale but zero.
        text_BD: vectors of texts; row i belongs to image i.
        log_scale: logarithm of the factor on cosines, of one element.
        image_all: vectors of the images of all processes (A, D), or None for this process alone.
        text_all: vectors of the texts of all processes (A, D).
        offset: row of `image_all` that holds this process's first pair.
        label_smoothing: share of the target that is spread evenly over all A, in [0, 1); CLIP has none.

    Returns:
        0-d loss, float32 (float64 for float64 vectors), also under autocast; gradients reach vectors and `log_scale`.
        A zero vector has cosine 0 with all and takes no gradient.

    Raises:
        ConfigError: for shapes that do not fit together, or a smoothing outside [0, 1).
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ConfigError(f"clip_loss: label_smoothing {label_smoothing} must lie in [0, 1).")
    alone = _check("clip_loss", image_BD, text_BD, log_scale, image_all, text_all, offset)
    with torch.autocast(image_BD.device.type, enabled=False):
        x_BD, y_BD = _unit(image_BD), _unit(text_BD)
        log_scale = log_scale.reshape(()).to(x_BD.dtype)
        if alone or image_all is None or text_all is None:
            loss: Tensor = _Square.apply(x_BD, y_BD, log_scale, label_smoothing)
            return loss
        x_AD, y_AD = _unit(image_all.to(x_BD.dtype)), _unit(text_all.to(x_BD.dtype))
        to_texts: Tensor = _OneWay.apply(x_BD, y_AD, log_scale, offset, label_smoothing)
        to_images: Tensor = _OneWay.apply(y_BD, x_AD, log_scale, offset, label_smoothing)
        return (to_texts + to_images) / 2


def sigmoid_loss(
    image_BD: Tensor,
    text_BD: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    *,
    text_all: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    r"""Return SigLIP's loss (arXiv 2303.15343, Eq. 1), mean over the B images.

    L = -1/B sum_i sum_j log sigmoid(z_ij (exp(log_scale) cos(image_i, text_j) + bias)), z_ij = 1 for a pair and -1
    else. Every image meets the texts of all processes, so that every two meet once: the mean of the losses over
    processes is that of the whole batch, and the gradients that reach `text_all`, summed over processes, complete it.

    Args:
        image_BD: vectors of images, any scale but zero.
        text_BD: vectors of texts; row i belongs to image i.
        log_scale: logarithm of the factor on cosines, of one element.
        bias: added to every similarity, of one element.
        text_all: vectors of the texts of all processes (A, D), or None for this process alone.
        offset: row of `text_all` that holds this process's first pair.

    Returns:
        0-d loss, float32 (float64 for float64 vectors), also under autocast; gradients reach vectors, scale and bias.

    Raises:
        ConfigError: for shapes that do not fit together.
    """
    alone = _check("sigmoid_loss", image_BD, text_BD, log_scale, text_all, text_all, offset)
    if bias.numel() != 1:
        raise ConfigError(f"sigmoid_loss: the bias must be one number, got {tuple(bias.shape)}.")
    with torch.autocast(image_BD.device.type, enabled=False):
        x_BD = _unit(image_BD)
        y_AD = _unit((text_BD if alone or text_all is None else text_all).to(x_BD.dtype))
        shared = log_scale.reshape(()).to(x_BD.dtype), bias.reshape(()).to(x_BD.dtype)
        loss: Tensor = _Pairwise.apply(x_BD, y_AD, *shared, 0 if alone else offset)
    return loss


def similarities(image_BD: Tensor, text_AD: Tensor, log_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return exp(log_scale) cos(image, text) + bias, (B, A): for figures and small monitors, never for training."""
    x_BD = _unit(image_BD)
    scores = log_scale.reshape(()).to(x_BD.dtype).exp() * (x_BD @ _unit(text_AD.to(x_BD.dtype)).t())
    return scores if bias is None else scores + bias.reshape(()).to(x_BD.dtype)


@torch.no_grad()
def matched(image_BD: Tensor, text_AD: Tensor, offset: int = 0, *, rows: int = 256) -> Tensor:
    """Return the share of images whose own text, row offset + i, is the nearest of all; 0-d, over the first `rows`."""
    some_RD = image_BD[:rows].detach()
    nearest_R = (some_RD.float() @ _unit(text_AD.detach()).float().t()).argmax(dim=1)
    own_R = torch.arange(len(some_RD), device=some_RD.device) + offset
    return (nearest_R == own_R).float().mean()


_EXP_SAFE = {torch.float32: 60.0, torch.float64: 600.0}
"""Up to this scale exp(S) needs no shift by a maximum: sums neither overflow nor lose a row to underflow."""


def _check(
    name: str,
    image_BD: Tensor,
    text_BD: Tensor,
    log_scale: Tensor,
    image_all: Tensor | None,
    text_all: Tensor | None,
    offset: int,
) -> bool:
    """Return whether this process's pairs are all there are."""
    if image_BD.ndim != 2 or image_BD.shape != text_BD.shape or image_BD.shape[0] == 0:
        raise ConfigError(
            f"{name}: images and texts must be equal non-empty (B, D) matrices, got {tuple(image_BD.shape)} and "
            f"{tuple(text_BD.shape)}."
        )
    if log_scale.numel() != 1:
        raise ConfigError(f"{name}: the logarithm of the scale must be one number, got {tuple(log_scale.shape)}.")
    if (image_all is None) != (text_all is None):
        raise ConfigError(f"{name}: pass both image_all and text_all (gathered vectors), or neither.")
    if image_all is None or text_all is None:
        return True
    rows, width = image_BD.shape
    if text_all.ndim != 2 or text_all.shape != image_all.shape or text_all.shape[1] != width:
        raise ConfigError(
            f"{name}: gathered vectors must be equal (A, {width}) matrices, got {tuple(image_all.shape)} and "
            f"{tuple(text_all.shape)}."
        )
    if not 0 <= offset <= text_all.shape[0] - rows:
        raise ConfigError(f"{name}: {rows} pairs at offset {offset} do not lie in {text_all.shape[0]} pairs.")
    return text_all.shape[0] == rows


def _unit(x_BD: Tensor) -> Tensor:
    """Return rows of length 1 in float32 (float64 for float64); a zero row stays zero."""
    if x_BD.dtype != torch.float64:
        x_BD = x_BD.float()
    length_B1 = torch.linalg.vector_norm(x_BD, dim=1, keepdim=True)
    return x_BD * length_B1.masked_fill(length_B1 == 0.0, torch.inf).reciprocal()


def _parts(scaled_BD: Tensor, keys_AD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, their similarities to all keys); the memory is reused.

    A part has four megabytes on CPUs, to stay near the cache; a GPU wants larger kernels.
    """
    rows, count = scaled_BD.shape[0], keys_AD.shape[0]
    room = 2**20 if scaled_BD.device.type == "cpu" else 2**24
    height = min(rows, max(16, room // count))
    memory = scaled_BD.new_empty(height, count)
    for start in range(0, rows, height):
        i = slice(start, min(start + height, rows))
        tile = memory[: i.stop - i.start]
        torch.mm(scaled_BD[i], keys_AD.t(), out=tile)
        yield i, tile


class _Square(torch.autograd.Function):
    """Both directions over one square matrix of unit rows.

    With P the softmax of rows and Q that of columns, d loss / d S = (P + Q) / 2B - target / B; the gradient by the
    logarithm of the scale is sum_i <x_i, d loss / d x_i>, since S is linear in x.
    """

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, y_BD: Tensor, log_scale: Tensor, smoothing: float) -> Tensor:
        rows, factor = x_BD.shape[0], log_scale.exp()
        scaled_BD = x_BD * factor
        # Asking a GPU for the scale would wait for it, so there the shifted sums are always taken.
        bounded = x_BD.device.type == "cpu" and float(factor) <= _EXP_SAFE[x_BD.dtype]
        of_rows, of_columns = x_BD.new_zeros(rows), x_BD.new_full((rows,), 0.0 if bounded else -torch.inf)
        ones = x_BD.new_ones(rows)
        kept: list[tuple[slice, Tensor]] = []
        for i, tile in _parts(scaled_BD, y_BD):
            if i == slice(0, rows):  # a matrix of one part is not made again
                kept.append((i, tile))
            if bounded:
                tile.exp_()
                torch.mv(tile, ones, out=of_rows[i])
                of_columns.addmv_(tile.t(), ones[i])
            else:
                of_rows[i] = tile.logsumexp(dim=1)
                of_columns = torch.logaddexp(of_columns, tile.logsumexp(dim=0))
        logs = of_rows.log() + of_columns.log() if bounded else of_rows + of_columns
        positive_B = torch.linalg.vecdot(scaled_BD, y_BD)
        mean_x, mean_y = x_BD.mean(0), y_BD.mean(0)
        loss = logs.mean() / 2 - (1.0 - smoothing) * positive_B.mean()
        if smoothing:
            loss = loss - smoothing * factor * (mean_x @ mean_y)
        if not any(ctx.needs_input_grad[:3]):
            return loss
        if bounded:
            of_rows, of_columns = of_rows.reciprocal(), of_columns.reciprocal()
        to_x, to_y = torch.empty_like(x_BD), torch.zeros_like(y_BD)
        for i, tile in kept or _parts(scaled_BD, y_BD):
            if bounded:
                (tile if kept else tile.exp_()).mul_(of_rows[i, None] + of_columns)
            else:
                shares = torch.exp_(tile - of_rows[i, None])
                tile.sub_(of_columns).exp_().add_(shares)
            torch.mm(tile, y_BD, out=to_x[i])
            to_y.addmm_(tile.t(), x_BD[i])
        for grad, partner, mean in ((to_x, y_BD, mean_y), (to_y, x_BD, mean_x)):
            grad.div_(2).sub_(partner, alpha=1.0 - smoothing)
            if smoothing:
                grad.sub_(mean, alpha=smoothing)
            grad.mul_(factor / rows)
        ctx.save_for_backward(to_x, to_y, (x_BD * to_x).sum())
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        to_x, to_y, to_scale = ctx.saved_tensors
        return to_x * upstream, to_y * upstream, to_scale * upstream, None


class _OneWay(torch.autograd.Function):
    """Cross entropy of unit rows among the unit keys of all processes; a part's rows are whole, so one pass is all."""

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, keys_AD: Tensor, log_scale: Tensor, offset: int, smoothing: float) -> Tensor:
        rows, count, factor = x_BD.shape[0], keys_AD.shape[0], log_scale.exp()
        own_BD = keys_AD[offset : offset + rows]
        scaled_BD, log_B = x_BD * factor, x_BD.new_empty(rows)
        wanted = any(ctx.needs_input_grad[:3])
        to_x, to_keys = torch.empty_like(x_BD), torch.zeros_like(keys_AD)
        for i, tile in _parts(scaled_BD, keys_AD):
            highest = tile.amax(dim=1, keepdim=True)
            total = tile.sub_(highest).exp_().sum(dim=1, keepdim=True)
            log_B[i] = (total.log() + highest).squeeze(1)
            if wanted:
                tile.div_(total)
                torch.mm(tile, keys_AD, out=to_x[i])
                to_keys.addmm_(tile.t(), x_BD[i])
        loss = (log_B - (1.0 - smoothing) * torch.linalg.vecdot(scaled_BD, own_BD)).mean()
        if smoothing:
            loss = loss - smoothing * factor * (x_BD.mean(0) @ keys_AD.mean(0))
        if not wanted:
            return loss
        to_x.sub_(own_BD, alpha=1.0 - smoothing)
        to_keys[offset : offset + rows].sub_(x_BD, alpha=1.0 - smoothing)
        if smoothing:
            to_x.sub_(keys_AD.mean(0), alpha=smoothing)
            to_keys.sub_(x_BD.sum(0), alpha=smoothing / count)
        to_x.mul_(factor / rows)
        to_keys.mul_(factor / rows)
        ctx.save_for_backward(to_x, to_keys, (x_BD * to_x).sum())
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        to_x, to_keys, to_scale = ctx.saved_tensors
        return to_x * upstream, to_keys * upstream, to_scale * upstream, None, None


class _Pairwise(torch.autograd.Function):
    """sum softplus(T) - sum over pairs of T, over B: -log sigmoid(T) = softplus(T) - T. d / d T = sigmoid(T) - z."""

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, keys_AD: Tensor, log_scale: Tensor, bias: Tensor, offset: int) -> Tensor:
        rows, factor = x_BD.shape[0], log_scale.exp()
        own_BD = keys_AD[offset : offset + rows]
        scaled_BD = x_BD * factor
        wanted = any(ctx.needs_input_grad[:4])
        to_x, to_keys = torch.empty_like(x_BD), torch.zeros_like(keys_AD)
        total, firing = x_BD.new_zeros(()), x_BD.new_zeros(())
        for i, tile in _parts(scaled_BD, keys_AD):
            total += F.softplus(tile.add_(bias), threshold=40.0).sum()
            if wanted:
                firing += tile.sigmoid_().sum()
                torch.mm(tile, keys_AD, out=to_x[i])
                to_keys.addmm_(tile.t(), x_BD[i])
        loss = (total - (torch.linalg.vecdot(scaled_BD, own_BD) + bias).sum()) / rows
        if not wanted:
            return loss
        to_x.sub_(own_BD).mul_(factor / rows)
        to_keys[offset : offset + rows].sub_(x_BD)
        to_keys.mul_(factor / rows)
        ctx.save_for_backward(to_x, to_keys, (x_BD * to_x).sum(), firing / rows - 1.0)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        to_x, to_keys, to_scale, to_bias = ctx.saved_tensors
        return to_x * upstream, to_keys * upstream, to_scale * upstream, to_bias * upstream, None
