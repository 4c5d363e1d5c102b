"""Fine-tuning: it learns, repeats to the bit, leaves the encoder alone, and refuses what cannot work."""

import numpy as np
import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError, DataError
from imprint.data.arrays import ArraySource
from imprint.evals.evaluate import evaluate
from imprint.evals.finetune import FinetuneConfig, mixed, trainable_copy

ARCH = {"embed_dim": 32, "depth": 2, "num_heads": 2}


def source(count, seed, classes=3):
    """Noise with a stripe whose place is the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = rng.integers(0, 120, (count, 16, 16, 3), dtype=np.uint8)
    for i, label in enumerate(labels):
        images[i, 5 * label : 5 * label + 4] += 120
    return ArraySource(images, labels)


def vit():
    torch.manual_seed(0)
    return build_encoder("vit_tiny_patch16_224", image_size=16, patch_size=4, arch=ARCH, drop_path=0.0)


FAST = {"epochs": 8, "minibatch": 32, "lr": 2e-2, "layer_decay": 0.9, "crop_scale": (0.9, 1.0), "warmup": 1.0,
        "mixup": 0.0, "cutmix": 0.0, "drop_path": 0.0}  # fmt: skip


def test_it_learns_and_the_encoder_stays_as_it_was():
    encoder = vit()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    report = evaluate("finetune", encoder, source(192, 0), source(96, 1), device="cpu", workers=1, **FAST)
    assert report.metrics["top1"].value > 80 and report.metrics["top1"].n == 96
    curve = report.details["train_loss"]
    assert len(curve) == 8 and curve[-1] < 0.8 * curve[0]
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_it_repeats_to_the_bit_with_everything_on():
    options = FAST | {"epochs": 2, "mixup": 0.8, "cutmix": 1.0, "drop_path": 0.2, "ema": 0.9, "clip": 1.0, "limit": 96}
    first, second = (
        evaluate("finetune", vit(), source(192, 0), source(48, 1), device="cpu", workers=w, **options) for w in (1, 2)
    )
    assert first.metrics == second.metrics and first.details["train_loss"] == second.details["train_loss"]
    assert first.data["train"]["count"] == 96


def test_a_cnn_is_fine_tuned_too():
    encoder = build_encoder("resnet18", image_size=16, stem="cifar", arch={"layers": [1] * 4, "channels": [16] * 4})
    report = evaluate("finetune", encoder, source(96, 0), source(48, 1), device="cpu", workers=1, **FAST)
    assert report.metrics["top1"].value > 50


def test_fixed_positions_stay_fixed_and_frozen_projections_thaw():
    encoder = build_encoder("vit_tiny_patch16_224", image_size=16, patch_size=4, arch=ARCH, positions="sincos")
    encoder.freeze_patch_projection()
    encoder.requires_grad_(False)  # an exported teacher's parameters take no gradient
    copy = trainable_copy(encoder, 0.3)
    trained = {name for name, p in copy.named_parameters() if p.requires_grad}
    assert "model.pos_embed" not in trained and "model.patch_embed.proj.weight" in trained
    assert copy.model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)


def test_mixing_is_a_function_of_seed_and_step():
    from imprint.data.batch import Batch

    batch = Batch(views={"global": torch.rand(1, 8, 3, 8, 8)}, index_B=torch.arange(8), labels_B=torch.arange(8) % 3)
    config = FinetuneConfig()
    seen = [mixed(batch, 3, config, step) for step in (0, 0, 1, 2, 3, 4, 5)]
    assert torch.equal(seen[0][0], seen[1][0]) and not torch.equal(seen[0][0], seen[2][0])
    for _, targets in seen:
        torch.testing.assert_close(targets.sum(1), torch.ones(8))


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="layer_decay"):
        FinetuneConfig(layer_decay=0.0)
    with pytest.raises(ConfigError, match="positive --lr"):
        FinetuneConfig(lr=0.0)
    with pytest.raises(ConfigError, match="nothing to fine-tune"):
        evaluate("finetune", "pixels", source(48, 0), source(48, 1), device="cpu", image_size=16)
    with pytest.raises(DataError, match="needs labels"):
        evaluate("finetune", vit(), ArraySource(np.zeros((8, 16, 16, 3), np.uint8)), source(48, 1), device="cpu")
