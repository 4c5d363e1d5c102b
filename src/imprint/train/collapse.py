"""Signs that an encoder forgets its images: each becomes one warning with its meaning and the usual cures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

FLAT_STD = {"embedding": 0.2, "rank": 0.01, "vicreg": 0.1}
REDUNDANT = 0.8
LOW_RANK_SHARE = 0.02
UNIFORM_SHARE = 0.999
PEAKED_NATS = 0.01
FAR_CENTRE = 1e3
FEW_PROTOTYPES = 0.1

CURES = {
    "contrastive": "a lower learning rate or a longer warm-up, a larger batch or queue, a higher temperature",
    "clustering": "more Sinkhorn iterations or a smaller epsilon, prototypes frozen for longer, a queue when the batch "
    "is smaller than the prototypes are many, a lower learning rate",
    "self-distillation": "a slower target (momentum closer to 1), a predictor that learns faster, a lower learning "
    "rate or a longer warm-up",
    "redundancy reduction": "a larger weight on what keeps embeddings spread (variance term, whitening, the diagonal), "
    "a lower learning rate, a larger batch",
}
"""What usually helps when embeddings collapse, by the family of the method."""


class CollapseMonitor:
    """Looks at logged values and returns warnings, each once until the value has recovered.

    Thresholds, chosen so that a healthy run stays silent:

    - per-dimension std of L2-normalised vectors times sqrt(D) (1 = spread over the sphere) below 0.2 for what a loss
      spreads (`embedding/std`), below 0.01 for the encoder's output (`rank/std`), which has a large common part; that
      of raw embeddings below 0.1 where the loss holds it at 1 (`vicreg/std`);
    - `embedding/correlation`, root mean square between different dimensions, above 0.8, for methods whose objective
      decorrelates (others may well repeat dimensions);
    - `rank/rankme` below 2 % of the largest value possible, or below 2;
    - `*/teacher_entropy` above 99.9 % of log K (uniform) or below 0.01 nats (always one prototype);
    - `*/prototypes_used` below 10 % of as many as the batch could use;
    - `*/center_norm` above 1,000 standard logits (the centre runs away).

    A safeguard that the configuration itself switches off is named as the cause before any general advice.

    Args:
        warmup: steps at the start that are not judged; random networks look collapsed to some of these measures.
        family: the method's family, for its usual cures.
        dangers: what `Method.dangers` says of the configuration.
    """

    def __init__(self, warmup: int = 0, family: str = "", dangers: Sequence[str] = ()) -> None:
        self.warmup = warmup
        self.family = family
        self.dangers = tuple(dangers)
        self._raised: set[str] = set()

    def look(self, step: int, values: Mapping[str, float], sizes: Mapping[str, int]) -> list[str]:
        """Return the new warnings.

        Args:
            step: optimizer steps done.
            values: logged values by name.
            sizes: what bounds them: `prototypes` (K), `rank` (the smaller of images and width), as far as known.
        """
        if step < self.warmup:
            return []
        found: dict[str, str] = {}
        for name, value in values.items():
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            sign = _judge(name, value, sizes, self.family)
            if sign is not None:
                observation, cures = sign
                cause = f" The configuration asks for it: {'; '.join(self.dangers)}." if self.dangers else ""
                found[name] = f"{observation}{cause} Usual cures: {cures}."
        fresh = [text for name, text in found.items() if name not in self._raised]
        self._raised = (self._raised - set(values)) | set(found)
        return fresh


_ANY_CURE = "a lower learning rate or a longer warm-up, stronger augmentation, more weight decay"


def _judge(name: str, value: float, sizes: Mapping[str, int], family: str) -> tuple[str, str] | None:
    """Return what is seen and what usually helps, or None for a healthy value."""
    kind, _, last = name.rpartition("/")
    cures = CURES.get(family, _ANY_CURE)
    if last == "std" and value < FLAT_STD.get(kind, 0.0):
        return f"{name} is {value:.3g} (1 is spread, 0 is collapse): all images get nearly the same embedding.", cures
    if name == "embedding/correlation" and family == "redundancy reduction" and value > REDUNDANT:
        return (
            f"{name} is {value:.2f} (0 is independent, 1 is redundant): the dimensions of the embedding repeat one "
            "another.",
            "a larger weight on decorrelation (covariance term, lambda), a larger batch, a lower learning rate",
        )
    if name == "rank/rankme":
        bound = sizes.get("rank", 0)
        if value < max(2.0, LOW_RANK_SHARE * bound):
            return (
                f"RankMe is {value:.3g} of at most {bound or 'D'}: the features fill few dimensions (dimensional "
                "collapse).",
                "stronger colour augmentation, a wider projection head, a lower learning rate, more weight decay",
            )
    if last == "teacher_entropy":
        prototypes = sizes.get("prototypes", 0)
        if prototypes > 1 and value > UNIFORM_SHARE * math.log(prototypes):
            return (
                f"the teacher's entropy is {value:.3f} of log K = {math.log(prototypes):.3f} nats: it gives every "
                "image the uniform distribution.",
                "a lower teacher temperature, a faster centre (lower momentum), fewer prototypes",
            )
        if value < PEAKED_NATS:
            return (
                f"the teacher's entropy is {value:.2g} nats: it gives every image one prototype.",
                "a higher teacher temperature or a longer temperature warm-up, freezing the prototypes for longer, a "
                "lower learning rate",
            )
    if last == "prototypes_used" and value < FEW_PROTOTYPES:
        return f"{name} is {value:.3g} (1 is all): nearly all images are assigned to few prototypes.", cures
    if last in ("center_norm", "centre_norm") and value > FAR_CENTRE:
        return (
            f"{name} is {value:.3g}: the centre runs away with the teacher's logits.",
            "normalised prototypes (keep their gain at 1), a lower learning rate, gradient clipping (--optim.clip 3)",
        )
    return None
