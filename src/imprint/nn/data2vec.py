"""data2vec's objective, apart from what it reads: a student of masked inputs, a slow teacher of whole ones.

Baevski, Hsu, Xu, Babu, Gu, Auli 2022, arXiv 2202.03555. A front end turns one kind of input into tokens; the objective
is the same for images, text and speech.

Shape suffixes: B samples, N tokens, M masked tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imprint.core.errors import ConfigError
from imprint.losses.data2vec import averaged_layers, data2vec_loss
from imprint.losses.masked_regression import Width
from imprint.nn.ema import ema_update_, frozen_copy


class FrontEnd(nn.Module):
    """Inputs of one kind as contextual tokens. Subclasses: `ImageFrontEnd`, `LanguageFrontEnd`,
    `WaveformFrontEnd`.

    Attributes:
        width: D.
        depth: number of blocks, from whose last the targets are taken.
        shared: names of the parts that are no transformer blocks and that the teacher takes over from the student after
            every step, unaveraged (Sec. 3.2: sharing them is cheaper and slightly better; fairseq does so for text
            and speech).
    """

    width: int
    depth: int
    shared: tuple[str, ...] = ()

    def predict(self, inputs: Tensor, mask_BN: Tensor) -> Tensor:
        """Return the last tokens (B, N, D) for inputs that are hidden where the mask is True."""
        raise TypeError(f"{type(self).__name__} does not say how to encode masked inputs")

    def layers(self, inputs: Tensor, top: int) -> list[Tensor]:
        """Return what the last `top` blocks contribute to a target, each (B, N, D), for whole inputs."""
        raise TypeError(f"{type(self).__name__} shows no layers")


@dataclass(frozen=True, kw_only=True)
class Targets:
    """How targets are made and compared (Sec. 3.3 and 3.4); see `losses.data2vec`.

    Attributes:
        top: K, blocks from the end whose outputs are averaged.
        layer_norm: normalise every token of every layer (images, text).
        instance_norm: normalise every channel of every layer over the tokens (speech).
        post_layer_norm: normalise every token of the average.
        beta: of the smooth L1, 0 for the squared error.
        width: mean over D, or sum / sqrt(D) (text, speech).
        var_weight: of the variance term.
        var_margin: its margin.
        scale: factor on the loss.
    """

    top: int
    layer_norm: bool = True
    instance_norm: bool = False
    post_layer_norm: bool = False
    beta: float = 2.0
    width: Width = "mean"
    var_weight: float = 0.0
    var_margin: float = 0.5
    scale: float = 1.0


class Data2VecObjective(nn.Module):
    """Student, head and teacher, whatever the inputs are.

    Args:
        student: the front end that is trained.
        head: from D to D.
        targets: what is regressed, and how.

    Raises:
        ConfigError: for more layers than the front end has.
    """

    def __init__(self, student: FrontEnd, head: nn.Module, targets: Targets) -> None:
        super().__init__()
        if not 1 <= targets.top <= student.depth:
            raise ConfigError(
                f"data2vec averages {targets.top} blocks and the encoder has {student.depth}; set top_layers to "
                f"1..{student.depth}."
            )
        self.student, self.head, self.targets = student, head, targets
        self.teacher = frozen_copy(student).eval()

    def train(self, mode: bool = True) -> Data2VecObjective:
        """Set the mode; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(
        self,
        inputs: Tensor,
        mask_BN: Tensor,
        places_M: Tensor,
        *,
        rows: Tensor | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
        valid_M: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss on the masked tokens, and metrics.

        Args:
            inputs: what the front ends read.
            mask_BN: bool, True = hidden from the student.
            places_M: flat int64 indices of its True entries (`Batch.places`).
            rows: 0-d, the mean of M over processes; None for one process.
            reduce: sums over processes with gradient; None for one process.
            valid_M: bool, False where a place only fills the number up and does not count (`rows` leaves it out, too);
                None counts all. Not for the variance term.
        """
        rule = self.targets
        with torch.no_grad():
            targets_MD = averaged_layers(
                self.teacher.layers(inputs, rule.top),
                places_M,
                layer_norm=rule.layer_norm,
                instance_norm=rule.instance_norm,
                post_layer_norm=rule.post_layer_norm,
            )
        tokens_BND = self.student.predict(inputs, mask_BN)
        outputs_MD = self.head(tokens_BND.flatten(0, 1).index_select(0, places_M))
        if valid_M is not None:  # no difference, no gradient
            outputs_MD = torch.where(valid_M[:, None], outputs_MD, targets_MD.to(outputs_MD.dtype))
        loss = data2vec_loss(
            outputs_MD,
            targets_MD,
            beta=rule.beta,
            width=rule.width,
            var_weight=rule.var_weight,
            var_margin=rule.var_margin,
            scale=rule.scale,
            rows=rows,
            reduce=reduce,
        )
        with torch.no_grad():
            # Over tokens, mean over the width: 0 when all tokens have one and the same vector.
            few = slice(0, 1024)
            metrics = {
                "target_std": targets_MD[few].float().std(0).mean(),
                "prediction_std": outputs_MD[few].float().std(0).mean(),
            }
        return loss, metrics

    @torch.no_grad()
    def move_teacher(self, momentum: float) -> None:
        """Move the teacher: theta_t <- m theta_t + (1 - m) theta_s; shared parts are copied (Sec. 3.2)."""
        ema_update_(self.teacher, self.student, momentum)
        for name in self.student.shared:
            for kept, trained in zip(
                _part(self.teacher, name).parameters(), _part(self.student, name).parameters(), strict=True
            ):
                kept.copy_(trained)


def _part(module: nn.Module, name: str) -> nn.Module:
    return module.get_submodule(name)
