"""Batch normalisation over groups of the batch, and the shuffle that keeps a query's group from its key: ShuffleBN.

MoCo's positive key is encoded now, its negatives were encoded before. If query and key share batch statistics, these
tell the positive apart and the network need not look at the image (arXiv 1911.05722, Sec. 3.3, Fig. A.1). The paper
trains on 8 GPUs whose BatchNorms do not communicate, and shuffles the key images among them. Here the groups are part
of the norm, whatever the number of processes: on one process that is the whole of ShuffleBN, on N processes each one
holds an N-th of the groups, and results are the same.

Shape suffixes: B images of this process, A images of all processes, G groups of all processes, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from imprint.core.errors import ConfigError
from imprint.core.rng import seed_of
from imprint.dist.collectives import all_gather, all_reduce_mean
from imprint.dist.world import current


class SplitBatchNorm(_BatchNorm):
    """A batch norm with statistics of its own in each of G equal, consecutive groups of the global batch.

    It takes over another norm's weights, buffers and fused activation (timm's BatchNormAct2d), under the same names, so
    an exported encoder is plain. Running statistics move by the mean over this process's groups; `average_running_`
    averages them over processes once a step. Evaluation uses the running statistics, as any batch norm does.

    Args:
        norm: the batch norm to replace.
        groups: G over all processes; their number must divide it.
    """

    own_statistics = True  # the trainer synchronises batch norms over processes, and must leave this one

    def __init__(self, norm: _BatchNorm, groups: int) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.groups = groups
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
        """Normalise (B, C, ...) per group and channel.

        Raises:
            ConfigError: in training, when the batch does not split into the groups, or groups not over the processes.
        """
        if self.training or self.running_mean is None:
            out = self._split(input)
        else:
            out = super().forward(input)
        result: Tensor = self.act(self.drop(out))
        return result

    def _split(self, input: Tensor) -> Tensor:
        count = local_groups(self.groups, input.shape[0], current().size)
        track = self.training and self.running_mean is not None
        # With momentum 1 the fused kernel leaves each group's own mean and unbiased variance in its row.
        seen_2GC = input.new_zeros(2, count, self.num_features, dtype=torch.float32) if track else None
        parts = [
            F.batch_norm(
                part,
                seen_2GC[0, g] if seen_2GC is not None else None,
                seen_2GC[1, g] if seen_2GC is not None else None,
                self.weight,
                self.bias,
                training=True,
                momentum=1.0,
                eps=self.eps,
            )
            for g, part in enumerate(input.chunk(count))
        ]
        if seen_2GC is not None:
            self._track(seen_2GC.mean(dim=1))
        return torch.cat(parts)

    @torch.no_grad()
    def _track(self, seen_2C: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None  # noqa: S101
        factor = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if factor is None:
                factor = 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(seen_2C[0].to(self.running_mean.dtype), factor or 0.0)
        self.running_var.lerp_(seen_2C[1].to(self.running_var.dtype), factor or 0.0)


def local_groups(groups: int, rows: int, world: int) -> int:
    """Return how many of the G groups one process holds.

    Raises:
        ConfigError: when processes do not divide the groups, the groups not the batch, or a group is a single image.
    """
    if groups < 1 or groups % world:
        raise ConfigError(
            f"{groups} groups of batch-norm statistics do not split over {world} processes; set --method.norm-groups "
            f"to a multiple of {world}."
        )
    count = groups // world
    if rows % count or rows // count < 2:
        fits = [g * world for g in range(1, rows // 2 + 1) if rows % g == 0]
        choice = ", ".join(map(str, fits)) or f"{world}, and bring more images"
        raise ConfigError(
            f"{rows * world} images do not split into {groups} batch-norm groups of two or more; set "
            f"--method.norm-groups to one of {choice}, or change the batch size."
        )
    return count


def check_groups(groups: int, rows: int) -> None:
    """Refuse a global batch of `rows` images that does not split into the groups over the processes of this run.

    Raises:
        ConfigError: see `local_groups`.
    """
    world = current().size
    local_groups(groups, rows // world, world)


def split_norms_(module: nn.Module, groups: int) -> nn.Module:
    """Replace every batch norm below `module` by one over `groups` groups, in place; 1 leaves the norms alone.

    Names of weights and buffers stay. With 1 group the trainer's synchronised batch norms do the same.
    """
    if groups == 1:
        return module
    for name, child in list(module.named_children()):
        if isinstance(child, _BatchNorm) and not isinstance(child, SplitBatchNorm):
            setattr(module, name, SplitBatchNorm(child, groups))
        else:
            split_norms_(child, groups)
    return module


def has_split_norms(module: nn.Module) -> bool:
    """Tell whether a network computes batch statistics in groups (a ViT has none to compute)."""
    return any(isinstance(part, SplitBatchNorm) for part in module.modules())


@torch.no_grad()
def average_running_(module: nn.Module) -> None:
    """Average the running statistics of all split norms over processes, in one exchange; nothing to do alone.

    Running statistics are linear in what was seen, so averaging them once a step equals averaging every batch's.
    """
    if current().size == 1:
        return
    buffers = [
        buffer
        for part in module.modules()
        if isinstance(part, SplitBatchNorm)
        for buffer in (part.running_mean, part.running_var)
        if buffer is not None
    ]
    if buffers:
        mean = all_reduce_mean(torch.cat(buffers))
        torch._foreach_copy_(buffers, list(mean.split([buffer.numel() for buffer in buffers])))


class BatchShuffle:
    """A random order of the global batch, the same on every process, and the way back.

    Args:
        rows: B images of this process.
        keys: words that name the draw (a step); the same words give the same order on any number of processes.
        device: where the images are.
    """

    def __init__(self, rows: int, *keys: int | str, device: torch.device) -> None:
        world = current()
        order_A = torch.randperm(rows * world.size, generator=torch.Generator().manual_seed(seed_of("shuffle", *keys)))
        own = slice(world.rank * rows, (world.rank + 1) * rows)
        self._take_B = order_A[own].to(device, non_blocking=True)
        self._back_A = order_A.argsort().to(device, non_blocking=True)

    def shuffled(self, images_BCHW: Tensor) -> Tensor:
        """Return this process's rows of the shuffled global batch, in the memory format they came in."""
        rows_last = images_BCHW.ndim == 4 and images_BCHW.is_contiguous(memory_format=torch.channels_last)
        taken = all_gather(images_BCHW)[self._take_B]
        return taken.contiguous(memory_format=torch.channels_last) if rows_last else taken

    def restored(self, rows_BD: Tensor) -> Tensor:
        """Return what was computed from shuffled images, of all processes in the order before it, (A, D)."""
        return all_gather(rows_BD)[self._back_A]


@torch.no_grad()
def encode_keys(
    network: nn.Module, views_VBCHW: Tensor, *draw: int | str, shuffle: bool = True
) -> tuple[Tensor, Tensor]:
    """Encode one view of key images with their groups shuffled (ShuffleBN), and gather the keys of all processes.

    Networks without split norms have no groups, so their images stay where they are.

    Args:
        network: (1, B, C, H, W) to (1, B, D).
        views_VBCHW: one view, V = 1.
        draw: words that name the random order (the step).
        shuffle: off for an ablation only: query and key then share their group's statistics.

    Returns:
        Own keys (B, D) and those of all processes (A, D) in the order of ranks, both detached.
    """
    rows, rank = views_VBCHW.shape[1], current().rank
    if shuffle and has_split_norms(network):
        order = BatchShuffle(rows, *draw, device=views_VBCHW.device)
        keys_AD = order.restored(network(order.shuffled(views_VBCHW[0])[None])[0])
    else:
        keys_AD = all_gather(network(views_VBCHW)[0])
    return keys_AD[rank * rows : (rank + 1) * rows], keys_AD
