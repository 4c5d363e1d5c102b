"""The one-shot experiment: the classifier against another solver, and the protocol on moving squares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from imprint.core.errors import ConfigError, DataError, HealthError
from imprint.data.davis import open_videos
from imprint.evals.evaluate import evaluate
from imprint.evals.protocol import EvalData
from imprint.evals.video_classifier import fit_patches
from imprint.evals.video_oneshot import OneShotConfig, VideoOneShot

OPTIONS = {"image_size": 48, "device": "cpu", "batch_size": 3}


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(300, 6, generator=generator)
    labels = (features @ torch.randn(6, 3, generator=generator) + torch.randn(300, 3, generator=generator)).argmax(1)
    return features, labels


def test_linear_fit_is_logistic_regression() -> None:
    features, labels = data()
    features[:, 5] = 2.0  # a constant feature
    model = fit_patches(features, torch.eye(3)[labels], penalty=1e-2)
    standard = ((features - features.mean(0)) / features.std(0, correction=0).clamp_min(1e-6)).numpy()
    other = LogisticRegression(C=1 / (1e-2 * 300), tol=1e-8, max_iter=1000).fit(standard, labels.numpy())
    np.testing.assert_allclose(model(features).softmax(1).numpy(), other.predict_proba(standard), atol=2e-3)


def test_hidden_layer_learns_what_a_linear_map_cannot_and_repeats() -> None:
    features = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    labels = (features[:, 0] * features[:, 1] > 0).long()
    targets = torch.eye(2)[labels]

    def hits(hidden: int) -> float:
        return float((fit_patches(features, targets, hidden=hidden)(features).argmax(1) == labels).float().mean())

    assert hits(0) < 0.7 and hits(32) > 0.95
    one, two = (fit_patches(features, targets, hidden=8, seed=3)(features) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, fit_patches(features, targets, hidden=8, seed=4)(features))
    with pytest.raises(HealthError, match="not finite"):
        fit_patches(features / 0, targets)


@pytest.mark.parametrize("hidden", [0, 8])
def test_coloured_squares_are_found_again(patches, videos: Path, hidden: int) -> None:
    torch.manual_seed(hidden + 1)  # whatever the generator's state
    report = evaluate("video_oneshot", patches, videos, hidden=hidden, cache=False, **OPTIONS)
    assert report.metrics["jf"].value > 75 and report.metrics["jf"].low <= report.metrics["jf"].value
    assert report.details["sequences"]["near"]["frames"] == 7 and report.details["objects"] == 4
    torch.manual_seed(99)
    again = evaluate("video_oneshot", patches, videos, hidden=hidden, cache=False, **OPTIONS)
    assert again.metrics == report.metrics and again.details == report.details


def test_another_frame_may_be_given(patches, videos: Path) -> None:
    report = evaluate("video_oneshot", patches, videos, annotated=-3, sequences=["near"], cache=False, **OPTIONS)
    assert report.details["over_time"]["distance"] == [1, 2, 3, 4, 5]  # frame 5 of 8: two after it, five before
    assert report.metrics["jf"].value > 75
    with pytest.raises(ConfigError, match="--annotated 6: sequence 'far10' has 6 frames"):
        evaluate("video_oneshot", patches, videos, annotated=6, cache=False, **OPTIONS)
    (videos / "Annotations" / "48p" / "near" / "3.png").unlink()
    with pytest.raises(DataError, match="frame 3 of sequence 'near' has no mask"):
        evaluate("video_oneshot", patches, videos, annotated=3, sequences=["near"], cache=False, **OPTIONS)


def test_killed_evaluation_goes_on_with_the_next_sequence(patches, videos: Path) -> None:
    source = EvalData(train=open_videos(videos))
    config = OneShotConfig(**OPTIONS)
    want = VideoOneShot().run(patches, source, config)
    whole = patches.calls
    patches.calls, patches.fail_at = 0, whole - 1
    with pytest.raises(KeyboardInterrupt):
        VideoOneShot().run(patches, source, config)
    patches.calls = patches.fail_at = 0
    got = VideoOneShot().run(patches, source, config)
    assert got.metrics == want.metrics and got.details == want.details and patches.calls < whole / 2
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(got.figures, want.figures, strict=True))
