"""What MoCo v1 and v2 share: a query network, a key network that follows it, and a queue of keys (arXiv 1911.05722).

Shape suffixes: V views, B images of this process, A of all processes, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from imprint.losses.info_nce import contrast_accuracy, info_nce_queue
from imprint.nn.branch import Branch
from imprint.nn.ema import ema_update_, frozen_copy
from imprint.nn.queue import KeyQueue
from imprint.nn.split_norm import average_running_, check_groups, encode_keys, has_split_norms, split_norms_
from imprint.ops.spread import agreement

_MONITORED = slice(0, 16)  # enough rows of a shuffled batch for a monitor


class MomentumContrast(nn.Module):
    """Momentum contrast: views (2, B, C, H, W) -> loss and metrics (Algorithm 1).

    Batch norms of both networks take their statistics over groups of the global batch, and keys are put into other
    groups than their queries (ShuffleBN, Sec. 3.3), so that a query cannot know its key by shared statistics.

    Args:
        query: the network that is trained; its batch norms are split in place.
        width: D, of query and key.
        queue: number of keys, a multiple of the global batch.
        norm_groups: groups of the global batch; 1 leaves the norms alone (synchronised batch norm).
        shuffle: off for an ablation only.
    """

    def __init__(self, query: Branch, *, width: int, queue: int, norm_groups: int, shuffle: bool) -> None:
        super().__init__()
        self.norm_groups, self.shuffle = norm_groups, shuffle
        self.query = query
        split_norms_(self.query, norm_groups)
        self.key = frozen_copy(self.query)
        self.queue = KeyQueue(width, queue)

    def check_batch(self, rows: int) -> None:
        """Refuse a global batch that the queue or the groups do not take; see `Method.check_batch`."""
        self.queue.check(rows)
        if has_split_norms(self.key):
            check_groups(self.norm_groups, rows)

    def forward(self, views_VBCHW: Tensor, temperature: float, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Find the key of the same image among the queue's (Eq. 1), then put the new keys in for the oldest.

        Args:
            views_VBCHW: query view, key view.
            temperature: tau.
            step: names the random order of the keys' groups.
        """
        q_BD = self.query(views_VBCHW[:1])[0]
        k_BD, k_AD = encode_keys(self.key, views_VBCHW[1:], step, shuffle=self.shuffle)
        queue, filled = self.queue.keys, self.queue.filled
        loss = info_nce_queue(q_BD, k_BD, queue, temperature, filled=filled)
        metrics = agreement(q_BD.detach(), k_BD)
        metrics["moco/accuracy"] = contrast_accuracy(q_BD[_MONITORED], k_BD[_MONITORED], queue, filled)
        metrics["moco/queue_filled"] = filled / self.queue.size
        if self.training:
            self.queue.push_(k_AD)  # after use: negatives are of earlier batches
        return loss, metrics

    def follow_(self, momentum: float) -> None:
        """Move the key network: theta_k <- m theta_k + (1 - m) theta_q (Eq. 2); running statistics agree everywhere."""
        ema_update_(self.key, self.query, momentum)
        average_running_(self)


def contrast_dangers(momentum: float, norm_groups: int, shuffle: bool) -> tuple[str, ...]:
    """Name a key encoder that is too fast, and batch statistics that query and key share."""
    found = []
    if momentum < 0.9:
        found.append(
            f"momentum starts at {momentum:g}: a key encoder that changes so fast leaves the queue's keys inconsistent "
            "and training fails or loses (arXiv 1911.05722, Sec. 4.1); set --method.momentum.start 0.99 or more"
        )
    if norm_groups == 1:
        found.append(
            "norm_groups is 1: query and key share the statistics of the whole batch, by which the positive can be "
            "told from the queue without looking at the image (arXiv 1911.05722, Sec. 3.3); set --method.norm-groups 8"
        )
    elif not shuffle:
        found.append(
            "shuffle is off: query and key share their group's batch statistics, by which the positive can be told "
            "without looking at the image (arXiv 1911.05722, Sec. 3.3); set --method.shuffle True"
        )
    return tuple(found)
