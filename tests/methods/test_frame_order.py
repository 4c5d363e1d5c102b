import dataclasses

import numpy as np
import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError, DataError
from imprint.core.progress import Progress, Steps
from imprint.data.arrays import ArraySource
from imprint.data.batch import Batch
from imprint.methods.frame_order import FrameOrder, FrameOrderConfig
from imprint.recipes.book import recipe
from imprint.train.loop import train

T = Progress(3, 10, 5)


def method_of(name="resnet18", **changes):
    torch.manual_seed(0)
    arch = recipe("frame_order/debug").encoder.arch
    options = {"arch": arch, "stem": "cifar"} if name == "resnet18" else {"patch_size": 8}
    return FrameOrder(FrameOrderConfig(**changes), build_encoder(name=name, image_size=32, **options))


def batch_of(count=6):
    torch.manual_seed(1)
    return Batch(clips={"five": torch.randn(1, count, 5, 3, 32, 32)}, index_B=torch.arange(count) + 40)


def test_defaults_are_the_papers():
    cfg = FrameOrderConfig()
    assert (cfg.tau_max, cfg.tau_min, cfg.negatives, cfg.fusion, cfg.motion) == (60, 15, 0.75, 0, True)
    (clip,) = FrameOrder.clips(cfg, 224)
    assert clip.frames == 5 and clip.motion and clip.steady
    assert clip.gaps[1][1] + clip.gaps[2][1] == 60 and clip.gaps[0][0] == clip.gaps[3][0] == 15
    with pytest.raises(ConfigError, match="tau-max"):
        FrameOrder.clips(FrameOrderConfig(tau_max=1), 224)
    optim = recipe("frame_order/paper").optim
    assert (optim.name, optim.lr.base, optim.momentum, optim.weight_decay.start) == ("sgd", 1e-3, 0.9, 5e-4)


def test_the_shown_frames_reach_the_classifier_in_their_order():
    method = method_of().eval()
    batch = batch_of()
    tuples = method.choose(batch, T)
    logits = method.tell(batch.clips["five"][0], tuples)
    for b in range(len(batch)):
        rows = [batch.clips["five"][0, b, i] for i in tuples.frames_B3[b].tolist()]
        features = method.encoder(torch.stack(rows)).pooled_BD.flatten()
        torch.testing.assert_close(logits[b], method.classifier(features), rtol=1e-4, atol=1e-5)


def test_frames_that_are_not_shown_get_no_gradient():
    method, batch = method_of(), batch_of()
    frames = batch.clips["five"].requires_grad_()
    method(dataclasses.replace(batch, clips={"five": frames}), T).loss.backward()
    moved = frames.grad[0].abs().sum((2, 3, 4)) > 0
    shown = torch.zeros(len(batch), 5, dtype=torch.bool).scatter_(1, method.choose(batch, T).frames_B3, True)
    assert torch.equal(moved, shown)


def test_choices_belong_to_sample_and_step():
    method, batch = method_of(), batch_of(64)
    whole = method.choose(batch, T)
    half = method.choose(batch.part(32, 64), T)
    assert torch.equal(half.frames_B3, whole.frames_B3[32:]) and torch.equal(half.ordered_B, whole.ordered_B[32:])
    assert not torch.equal(method.choose(batch, T.at(4)).frames_B3, whole.frames_B3)


def test_still_windows_are_shown_in_order():
    method, batch = method_of(), batch_of(32)
    still = dataclasses.replace(batch, clips={"five": batch.clips["five"][:, :, :1].expand(-1, -1, 5, -1, -1, -1)})
    assert method.choose(still, T).ordered_B.all()
    assert not method_of(least_change=0.0).choose(still, T).ordered_B.all()


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_any_encoder_takes_a_step(name):
    method = method_of(name, fusion=8)
    out = method(batch_of(), T)
    out.loss.backward()
    assert torch.isfinite(out.loss) and 0 <= float(out.metrics["frame_order/balanced_accuracy"]) <= 1
    assert next(method.encoder.parameters()).grad is not None


def test_videos_that_are_too_short_are_refused(tmp_path):
    images = ArraySource(np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8))
    config = dataclasses.replace(recipe("frame_order/debug"), length=Steps(1), workers=1, device="cpu")
    with pytest.raises(DataError, match="no video of 7 frames"):
        train(config, tmp_path / "run", source=images)
