"""Batch normalisation with the statistics of all processes, on any device.

torch's SyncBatchNorm runs on GPUs only and forgets the activation of timm's fused norms; this one covers both cases, so
that N CPU processes equal one. CUDA keeps torch's fused kernels for plain norms.
"""

from __future__ import annotations

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm

from imprint.dist.collectives import all_gather


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) with mean and biased variance over the rows of all processes.

    Forward exchanges mean and second moment about the local mean (Chan, Golub, LeVeque 1983), backward the two sums of
    dL/dx = rstd * (g - mean(g) - xhat * mean(g * xhat)).
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        dims = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        var_C, mean_C = torch.var_mean(x.float(), dims, correction=0)
        both_WC = all_gather(torch.stack([mean_C, var_C])[None])  # (world, 2, C)
        mean_all_C = both_WC[:, 0].mean(0)
        var_all_C = both_WC[:, 1].mean(0) + (both_WC[:, 0] - mean_all_C).square().mean(0)
        rstd_C = (var_all_C + eps).rsqrt()
        xhat = ((x.float() - mean_all_C.view(shape)) * rstd_C.view(shape)).to(x.dtype)
        ctx.save_for_backward(xhat, rstd_C)
        ctx.mark_non_differentiable(mean_all_C, var_all_C)
        return xhat, mean_all_C, var_all_C

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        xhat, rstd_C = ctx.saved_tensors  # type: ignore[attr-defined]
        g, h = grads[0].float(), xhat.float()
        dims = [d for d in range(g.ndim) if d != 1]
        shape = [1, -1] + [1] * (g.ndim - 2)
        sums_2C = torch.stack([g.sum(dims), (g * h).sum(dims)])
        torch_dist.all_reduce(sums_2C)
        count = g.numel() // g.shape[1] * torch_dist.get_world_size()
        mean_g, mean_gh = (sums_2C / count).unbind(0)
        dx = (g - mean_g.view(shape) - h * mean_gh.view(shape)) * rstd_C.view(shape)
        return dx.to(grads[0].dtype), None


class SyncBatchNorm(_BatchNorm):
    """A batch norm over all processes that takes over another's weights, buffers and fused activation.

    Every process must bring the same number of elements. Evaluation mode uses the running statistics and exchanges
    nothing.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.drop: nn.Module = getattr(norm, "drop", None) or nn.Identity()
        self.act: nn.Module = getattr(norm, "act", None) or nn.Identity()
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm needs at least 2 dimensions, got {input.ndim}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...) per channel."""
        use_batch = self.training or self.running_mean is None
        if not use_batch or not torch_dist.is_initialized() or torch_dist.get_world_size() == 1:
            out = super().forward(input)
        else:
            out, mean_C, var_C = _Normalise.apply(input, self.eps)
            if self.training and self.track_running_stats and self.running_mean is not None:
                self._track(mean_C, var_C, input.numel() // input.shape[1] * torch_dist.get_world_size())
            if self.weight is not None:
                shape = [1, -1] + [1] * (input.ndim - 2)
                out = torch.addcmul(self.bias.to(out.dtype).view(shape), out, self.weight.to(out.dtype).view(shape))
        result: Tensor = self.act(self.drop(out))
        return result

    @torch.no_grad()
    def _track(self, mean_C: Tensor, var_C: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None  # noqa: S101
        factor = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if factor is None:
                factor = 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean_C, factor or 0.0)
        self.running_var.lerp_(var_C * (count / max(1, count - 1)), factor or 0.0)


def synchronise(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace every batch norm below `module` by one over all processes; names of weights and buffers stay.

    A norm with a true attribute `own_statistics` (one over groups smaller than the batch) is left as it is.
    """
    for name, child in list(module.named_children()):
        if isinstance(child, (SyncBatchNorm, nn.SyncBatchNorm)) or getattr(child, "own_statistics", False):
            continue
        if isinstance(child, _BatchNorm):
            plain = type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
            fused = plain and device.type == "cuda"
            replacement = nn.SyncBatchNorm.convert_sync_batchnorm(child) if fused else SyncBatchNorm(child)
            setattr(module, name, replacement)
        else:
            synchronise(child, device)
    return module
