"""Signs that an encoder forgets its images: each becomes one warning with its meaning and the usual cures."""

from __future__ import annotations

import math
from collections.abc import Mapping

FLAT_STD = {"embedding": 0.1, "rank": 0.01}
LOW_RANK_SHARE = 0.02
UNIFORM_SHARE = 0.999
PEAKED_NATS = 0.01
FAR_CENTRE = 1e3


class CollapseMonitor:
    """Looks at logged values and returns warnings, each once until the value has recovered.

    Thresholds, chosen so that a healthy run stays silent:

    - per-dimension std of L2-normalised vectors times sqrt(D) (1 = spread over the sphere) below 0.1 for what a loss
      spreads (`embedding/std`), below 0.01 for the encoder's output (`rank/std`), which has a large common part;
    - `rank/rankme` below 2 % of the largest value possible, or below 2;
    - `*/teacher_entropy` above 99.9 % of log K (uniform) or below 0.01 nats (always one prototype);
    - `*/center_norm` above 1,000 standard logits (the centre runs away).

    Args:
        warmup: steps at the start that are not judged; random networks look collapsed to some of these measures.
    """

    def __init__(self, warmup: int = 0) -> None:
        self.warmup = warmup
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
            text = _judge(name, value, sizes)
            if text is not None:
                found[name] = text
        fresh = [text for name, text in found.items() if name not in self._raised]
        self._raised = (self._raised - set(values)) | set(found)
        return fresh


def _judge(name: str, value: float, sizes: Mapping[str, int]) -> str | None:
    last = name.rpartition("/")[2]
    if last == "std" and value < FLAT_STD.get(name.partition("/")[0], 0.0):
        return (
            f"{name} is {value:.3g} (1 is spread, 0 is collapse): all images get nearly the same embedding. "
            "Usual cures: a lower learning rate or a longer warm-up; for contrastive methods a larger batch or a "
            "higher temperature; for self-distillation a slower teacher (momentum closer to 1)."
        )
    if name == "rank/rankme":
        bound = sizes.get("rank", 0)
        if value < max(2.0, LOW_RANK_SHARE * bound):
            return (
                f"RankMe is {value:.3g} of at most {bound or 'D'}: the features fill few dimensions (dimensional "
                "collapse). Usual cures: stronger colour augmentation, a wider projection head, a lower learning rate, "
                "more weight decay."
            )
    if last == "teacher_entropy":
        prototypes = sizes.get("prototypes", 0)
        if prototypes > 1 and value > UNIFORM_SHARE * math.log(prototypes):
            return (
                f"the teacher's entropy is {value:.3f} of log K = {math.log(prototypes):.3f} nats: it gives every "
                "image the uniform distribution. Usual cures: a lower teacher temperature, a faster centre (lower "
                "momentum), fewer prototypes."
            )
        if value < PEAKED_NATS:
            return (
                f"the teacher's entropy is {value:.2g} nats: it gives every image one prototype. Usual cures: a higher "
                "teacher temperature or a longer temperature warm-up, freezing the prototypes for longer, a lower "
                "learning rate."
            )
    if last in ("center_norm", "centre_norm") and value > FAR_CENTRE:
        return (
            f"{name} is {value:.3g}: the centre runs away with the teacher's logits. Usual cures: normalised "
            "prototypes (keep their gain at 1), a lower learning rate, gradient clipping (--optim.clip 3)."
        )
    return None
