"""Fine-tuning: it learns, repeats to the bit, leaves the encoder alone, and refuses what cannot work."""

import json
import os
import runpy
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError, DataError
from imprint.data.arrays import ArraySource
from imprint.data.batch import Batch, Normalise
from imprint.evals.classifier import augmented
from imprint.evals.evaluate import evaluate
from imprint.evals.finetune import FinetuneConfig, adamw, trainable_copy

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
        "mixup": 0.0, "cutmix": 0.0, "drop_path": 0.0, "rand_augment": 0.0, "erasing": 0.0}  # fmt: skip


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
    options |= {"rand_augment": 9.0, "erasing": 0.25}
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


def test_an_architecture_without_stochastic_depth_is_trained_without_it(caplog):
    encoder = build_encoder("dla46_c", image_size=32)
    copy = trainable_copy(encoder, 0.3)
    assert "knows no stochastic depth" in caplog.text and all(p.requires_grad for p in copy.parameters())
    assert all(torch.equal(v, encoder.state_dict()[k]) for k, v in copy.state_dict().items())


def test_a_swin_is_fine_tuned_too():
    arch = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}
    encoder = build_encoder("swin_tiny_patch4_window7_224", image_size=16, patch_size=4, arch=arch)
    options = FAST | {"epochs": 4, "drop_path": 0.1, "ema": 0.5, "smoothing": 0.1}
    report = evaluate("finetune", encoder, source(96, 0), source(48, 1), device="cpu", workers=1, **options)
    assert report.metrics["top1"].value > 50


def test_averaged_weights_of_a_cnn_take_the_statistics_of_the_trained_one():
    encoder = build_encoder("resnet18", image_size=16, stem="cifar", arch={"layers": [1] * 4, "channels": [16] * 4})
    plain, averaged = (
        evaluate("finetune", encoder, source(96, 0), source(48, 1), device="cpu", workers=1, **FAST, ema=ema)
        for ema in (0.0, 1e-6)
    )
    assert averaged.metrics["top1"] == plain.metrics["top1"]  # an average without memory is the network itself
    assert averaged.metrics["loss"].value == pytest.approx(plain.metrics["loss"].value, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "frozen", "free"),
    [
        ("vit_tiny_patch16_224", {"patch_size": 4, "arch": ARCH},
         ("pos_embed", "cls_token", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"), ("blocks.1.", "norm.")),
        ("resnet18", {"stem": "cifar", "arch": {"layers": [1] * 4, "channels": [8] * 4}},
         ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight"), ("layer2.", "layer3.", "layer4.")),
        ("swin_tiny_patch4_window7_224",
         {"patch_size": 4, "arch": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}},
         ("patch_embed.proj.weight", "layers.0.blocks.0.mlp.fc1.weight"), ("layers.1.", "norm.")),
    ],
)  # fmt: skip
def test_first_blocks_can_be_frozen(name, options, frozen, free):
    copy = trainable_copy(build_encoder(name, image_size=16, **options), 0.0, freeze=1).train()
    trained = {n.removeprefix("model.") for n, p in copy.named_parameters() if p.requires_grad}
    assert not trained & set(frozen) and all(n.startswith(free) for n in trained) and trained
    if name == "resnet18":
        assert not copy.model.bn1.training and copy.model.layer2[0].bn1.training
    with pytest.raises(ConfigError, match="cannot be frozen"):
        trainable_copy(build_encoder(name, image_size=16, **options), 0.0, freeze=9)


def test_frozen_blocks_do_not_move():
    encoder = vit()
    config = FinetuneConfig(freeze=1, layer_decay=0.5)
    copy = trainable_copy(encoder, 0.0, 1)
    optimizer = adamw(copy, config)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == sum(p.requires_grad for p in copy.parameters())
    assert {g["lr_scale"] for g in optimizer.param_groups} == {1.0, 0.5}  # final norm, last block


def test_parts_of_a_step_add_up_to_the_step():
    reports = [
        evaluate("finetune", vit(), source(96, 0), source(48, 1), device="cpu", workers=1, accumulate=parts,
                 **FAST | {"epochs": 2, "mixup": 0.8, "cutmix": 1.0})
        for parts in (1, 3)
    ]  # fmt: skip
    assert reports[0].details["train_loss"] == pytest.approx(reports[1].details["train_loss"], abs=1e-4)
    assert reports[0].metrics["loss"].value == pytest.approx(reports[1].metrics["loss"].value, abs=1e-3)


def test_what_is_done_to_a_batch_is_a_function_of_seed_and_step():
    images = (torch.rand(1, 8, 3, 16, 16) * 255).to(torch.uint8)
    batch = Batch(views={"global": images}, index_B=torch.arange(8), labels_B=torch.arange(8) % 3)
    seen = [
        augmented(batch, 3, Normalise(), FinetuneConfig(), step, torch.device("cpu")) for step in (0, 0, 1, 2, 3, 4, 5)
    ]
    assert torch.equal(seen[0][0], seen[1][0]) and not torch.equal(seen[0][0], seen[2][0])
    for _, targets in seen:
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
    plain = FinetuneConfig(rand_augment=0, erasing=0, mixup=0, cutmix=0)
    assert torch.equal(augmented(batch, 3, Normalise(), plain, 0, torch.device("cpu"))[0], Normalise()(images)[0])


SCRIPT = """
import sys
import numpy as np
import torch
from imprint.backbones.build import build_encoder
from imprint.data.arrays import ArraySource
from imprint.evals.evaluate import evaluate

rng = np.random.default_rng(0)
sources = [ArraySource(rng.integers(0, 255, (n, 16, 16, 3), dtype=np.uint8), np.arange(n) % 3) for n in (64, 32)]
torch.manual_seed(0)
torch.set_num_threads(1)
arch = {"embed_dim": 32, "depth": 2, "num_heads": 2}
encoder = build_encoder("vit_tiny_patch16_224", image_size=16, patch_size=4, arch=arch)
evaluate("finetune", encoder, *sources, sys.argv[1], epochs=16, minibatch=16, warmup=1.0, ema=0.9,
         device="cpu", workers=1, checkpoint_every=0.15)
"""


def test_killed_and_started_again_it_gives_the_same_report(tmp_path, monkeypatch):
    """A real kill -9 in the middle; the same script then ends where an undisturbed one does."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    states = tmp_path / "broken" / "evaluations"
    env = os.environ | {"IMPRINT_CACHE": str(tmp_path / "broken"), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "said.txt", "w") as said:
        victim = subprocess.Popen([sys.executable, str(script), str(tmp_path / "broken.json")], env=env, stderr=said)
    try:
        deadline = time.monotonic() + 240
        while not list(states.glob("*/finetune.pt")):
            assert victim.poll() is None, (tmp_path / "said.txt").read_text()
            assert time.monotonic() < deadline, "no state was written"
            time.sleep(0.01)
    finally:
        victim.kill()
        victim.wait()
    assert not (tmp_path / "broken.json").exists()
    first = torch.load(next(states.glob("*/finetune.pt")), weights_only=True)["step"]

    threads = torch.get_num_threads()
    try:
        for name in ("whole", "broken"):
            monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path / name))
            monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / f"{name}.json")])
            runpy.run_path(str(script))
    finally:
        torch.set_num_threads(threads)
    reports = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "broken")]
    assert reports[0]["metrics"] == reports[1]["metrics"]
    assert reports[0]["details"] == reports[1]["details"]
    assert 0 < first < 64 and len(reports[0]["details"]["train_loss"]) == 16
    assert not list(states.iterdir())  # nothing is left when it is done


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="layer_decay"):
        FinetuneConfig(layer_decay=0.0)
    with pytest.raises(ConfigError, match="rand_augment"):
        FinetuneConfig(rand_augment=11.0)
    with pytest.raises(ConfigError, match="parts of a step"):
        FinetuneConfig(accumulate=0)
    with pytest.raises(ConfigError, match="positive --lr"):
        FinetuneConfig(lr=0.0)
    with pytest.raises(ConfigError, match="nothing to fine-tune"):
        evaluate("finetune", "pixels", source(48, 0), source(48, 1), device="cpu", image_size=16)
    with pytest.raises(DataError, match="needs labels"):
        evaluate("finetune", vit(), ArraySource(np.zeros((8, 16, 16, 3), np.uint8)), source(48, 1), device="cpu")
