"""What soft targets say that labels do not: a student knows classes of which it never saw an image (Sec. 3)."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from imprint.core.progress import Steps
from imprint.core.schedules import constant
from imprint.data.batch import Normalise
from imprint.data.loader import sweep
from imprint.data.photos import photos
from imprint.data.view_recipes import evaluation_views
from imprint.recipes import scale
from imprint.recipes.book import stages_of
from imprint.train.config import LR, DataConfig, OptimConfig
from imprint.train.entry import pretrain_run as train
from imprint.train.stages import rebuilt

OMITTED = ("astronaut", "grass", "retina")


def plan(stage: int, start=None, lr: float = 1e-2, **method):
    base = stages_of("distill/debug")[stage]
    adam = OptimConfig(name="adamw", lr=LR(base=lr, rule="none", warmup=Steps(10)), weight_decay=constant(1e-4))
    return dataclasses.replace(
        base, stage="", start=start, optim=adam, batch_size=32, length=Steps(120), checkpoint_every=Steps(120),
        log_every=40, workers=1, device="cpu", precision="fp32", data=DataConfig(), encoder=scale.narrow_resnet(32),
        method=dataclasses.replace(base.method, **method),
    )  # fmt: skip


@torch.no_grad()
def accuracies(run) -> tuple[float, float]:
    """Percent of the held-out tiles of the omitted, and of the other classes that are named rightly."""
    method, normalise, right, omitted = rebuilt(run).eval(), Normalise(), [], []
    test = photos("test")
    gone = torch.tensor([test.classes.index(name) for name in OMITTED])
    for batch in sweep(test, evaluation_views(32), batch_size=128, workers=1):
        right.append(method.classify(normalise(batch.views["eval"][0])).argmax(1) == batch.labels_B)
        omitted.append(torch.isin(batch.labels_B, gone))
    right_N, omitted_N = torch.cat(right).float(), torch.cat(omitted)
    return 100 * right_N[omitted_N].mean().item(), 100 * right_N[~omitted_N].mean().item()


def test_a_student_names_classes_that_it_never_saw(tmp_path):
    everything = photos("train")
    seen = everything.subset(~np.isin(everything.labels, [everything.classes.index(name) for name in OMITTED]))
    teacher = train(plan(0, lr=4e-3), tmp_path / "teacher", source=everything)
    soft = train(
        plan(1, str(teacher.path), alpha=1.0, temperature=20.0, match=("logits",)), tmp_path / "soft", source=seen
    )
    hard = train(plan(1, alpha=0.0), tmp_path / "hard", source=seen)
    unseen, others = accuracies(soft)
    assert unseen > 7.0 and others > 25.0  # 5 is chance; 17.5 and 45 here
    assert accuracies(hard)[0] < 1.0
