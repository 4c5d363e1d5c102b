import dataclasses
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from imprint.backbones.build import build_encoder
from imprint.backbones.load import load_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.arrays import ArraySource
from imprint.data.batch import Batch, Normalise
from imprint.data.masks import Place, draw_masks
from imprint.losses.frame_prediction import gradient_difference, psnr
from imprint.methods.next_frame import NextFrame, NextFrameConfig, blanked
from imprint.recipes.book import recipe
from imprint.train.entry import pretrain_run

T = Progress(0, 10, 5)


def made(name="next_frame/debug_latent", encoder=None, **changes):
    torch.manual_seed(0)
    config = recipe(name)
    settings = encoder or {f.name: getattr(config.encoder, f.name) for f in dataclasses.fields(config.encoder)}
    return NextFrame(dataclasses.replace(config.method, **changes), build_encoder(**{**settings, "channels": 3}))


SMALL = recipe("next_frame/debug").encoder
RESNET = {f.name: getattr(SMALL, f.name) for f in dataclasses.fields(SMALL)}


def lively(method):
    """Larger weights in the predictor, which starts as good as deaf."""
    with torch.no_grad():
        for p in method.predictor.parameters():
            p.normal_(std=0.3)
    return method


def batch_of(method, count=4, seed=1):
    torch.manual_seed(seed)
    encoder = method.backbone
    clip = torch.randn(1, count, method.cfg.past + 1, 3, encoder.image_size, encoder.image_size)
    index = torch.arange(count)
    masks = {}
    for mask in NextFrame.masks(method.cfg, encoder.image_size, encoder.patch_size):
        at = Place(seed=0, epoch=0, step=0, index_B=index.numpy(), first=0, total=count)
        masks |= {name: torch.from_numpy(drawn) for name, drawn in draw_masks(mask, at).items()}
    raw = Batch(clips={"clip": clip}, masks=masks, index_B=index)
    return raw.prepared(torch.device("cpu"), Normalise())


def test_defaults_are_the_papers():
    cfg = NextFrameConfig()
    assert (cfg.space, cfg.past, cfg.scales, cfg.p, cfg.alpha) == ("pixel", 4, 4, 1, 1.0)
    assert (cfg.lp_weight, cfg.gradient_weight, cfg.predict) == (1.0, 1.0, "frame")
    (clip,) = NextFrame.clips(cfg, 64)
    assert (clip.frames, clip.stride, clip.steady, clip.look.flip) == (5, 1, True, 0.5)
    latent = NextFrameConfig(space="latent")
    assert (latent.predictor_width, latent.predictor_depth, latent.mask_ratio) == (384, 12, 0.9)
    assert latent.momentum(Progress(0, 100, 10)) == 0.998
    (mask,) = NextFrame.masks(latent, 224, 16)
    assert (mask.grid, mask.patches, mask.exact) == ((14, 14), 176, True)
    assert NextFrame.masks(cfg, 224, 16) == ()


# Pixels


@pytest.mark.parametrize("p", [1, 2])
def test_the_loss_is_the_sum_over_scales(p):
    method = made("next_frame/debug", p=p, alpha=2.0, lp_weight=0.5, gradient_weight=3.0)
    batch = batch_of(method)
    frames = batch.clips["clip"][0]
    expected = 0.0
    for frame in method.predict(frames[:, :2]):
        target = F.interpolate(frames[:, 2], size=frame.shape[-1], mode="area")
        expected += 0.5 * (frame - target).abs().pow(p).mean() + 3.0 * gradient_difference(frame, target, 2.0)
    torch.testing.assert_close(method(batch, T).loss, expected)


def test_the_next_frame_is_not_looked_at_and_every_past_one_is():
    method = made("next_frame/debug").eval()
    frames = batch_of(method).clips["clip"][0]
    before = method.predict(frames[:, :2])[-1]
    assert before.shape == (4, 3, 32, 32)
    for time in range(2):
        changed = frames[:, :2].clone()
        changed[:, time] += 1.0
        assert (method.predict(changed)[-1] - before).abs().max() > 1e-3
    other = batch_of(method, seed=2).clips["clip"][0]
    joined = torch.cat([frames[:, :2], other[:, 2:]], dim=1)
    batch = Batch(clips={"clip": joined[None]}, index_B=torch.arange(4))
    torch.testing.assert_close(method.reconstruct(batch, T)["prediction"], before)


def test_the_copy_of_the_last_frame_is_the_baseline_and_the_start_of_change():
    method = made("next_frame/debug", predict="change")
    batch = batch_of(method)
    frames = Normalise().undo(batch.clips["clip"][0])
    metrics = method(batch, T).metrics
    assert float(metrics["next_frame/psnr_copy"]) == pytest.approx(float(psnr(frames[:, 1], frames[:, 2]).mean()), 1e-4)
    for name in ("psnr", "sharpness"):
        torch.testing.assert_close(metrics[f"next_frame/{name}"], metrics[f"next_frame/{name}_copy"])
    as_frame = made("next_frame/debug")(batch, T).metrics
    assert abs(float(as_frame["next_frame/psnr"] - as_frame["next_frame/psnr_copy"])) > 0.1


def test_other_normalisations_give_the_same_pixels():
    method = made("next_frame/debug")
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    for normalise in (Normalise(), Normalise((0.5,), (0.5,))):
        method.normalised_by(normalise)
        torch.testing.assert_close(method.unit(normalise(pixels)), pixels / 255, rtol=0, atol=1e-5)


def test_a_moving_edge_is_learned_better_than_copied():
    """Stripes that move by a pixel per frame: a few steps of training beat the copy."""
    method = made("next_frame/debug", predict="change")
    optimizer = torch.optim.Adam(method.parameters(), lr=5e-3)
    rows = torch.arange(32)[None] + torch.arange(4)[:, None]

    def batch(start):
        frames = torch.stack([((rows + start + t) // 4 % 2).float() for t in range(3)], dim=1) * 2 - 1
        clip = frames[None, :, :, None, None, :].expand(1, 4, 3, 3, 32, 32).contiguous()
        return Batch(clips={"clip": clip}, index_B=torch.arange(4))

    for step in range(30):
        optimizer.zero_grad()
        method(batch(step * 5), T).loss.backward()
        optimizer.step()
    metrics = method(batch(3), T).metrics
    assert float(metrics["next_frame/psnr"] - metrics["next_frame/psnr_copy"]) > 3


# Features


@pytest.mark.parametrize("encoder", [None, RESNET], ids=["vit", "cnn"])
def test_hidden_tubes_and_the_next_frame_are_not_seen(encoder):
    method = lively(made(encoder=encoder)).eval()
    batch = batch_of(method)
    frames, stride = batch.clips["clip"][0], method.backbone.patch_size
    seen, hidden = method.places(batch)
    assert seen.shape == hidden.shape == (4, 8)
    assert torch.equal(torch.cat([seen, hidden], 1).sort(1).values, torch.arange(16).expand(4, -1))
    before, _ = method.foresee(frames[:, :2], seen, hidden)
    noise = torch.randn_like(frames[:, :2]) * 9
    outside = noise.flatten(0, 1) - blanked(noise.flatten(0, 1), seen.repeat_interleave(2, 0), stride)
    changed = frames[:, :2] + outside.unflatten(0, (4, 2))
    assert (changed - frames[:, :2]).abs().sum() > 0
    torch.testing.assert_close(method.foresee(changed, seen, hidden)[0], before)
    inside = frames[:, :2] + noise - outside.unflatten(0, (4, 2))
    assert (method.foresee(inside, seen, hidden)[0] - before).abs().max() > 1e-3


def test_places_asked_for_are_the_same_in_every_past_frame_and_all_of_the_next():
    method = made()
    batch = batch_of(method)
    seen, hidden = method.places(batch)
    _, asked = method.foresee(batch.clips["clip"][0][:, :2], seen, hidden)
    for b in range(4):
        expected = hidden[b].tolist() + [16 + n for n in hidden[b].tolist()] + list(range(32, 48))
        assert asked[b].tolist() == expected
    assert len({tuple(row) for row in hidden.tolist()}) > 1, "tubes differ between samples"


def test_the_loss_is_the_naive_loops():
    method = made()
    batch = batch_of(method)
    frames = batch.clips["clip"][0]
    pred, asked = method.foresee(frames[:, :2], *method.places(batch))
    total = []
    for b in range(4):
        tokens = method.teacher(frames[b]).patches_BND.flatten(0, 1)
        for k, place in enumerate(asked[b].tolist()):
            target = tokens[place]
            target = (target - target.mean()) / (target.var(correction=0) + 1e-5).sqrt()
            total.append((pred[b, k] - target).abs().mean())
    torch.testing.assert_close(method(batch, T).loss, torch.stack(total).mean())


def test_without_tubes_the_next_frame_alone_is_asked_for():
    method = made(mask_ratio=0.0)
    batch = batch_of(method)
    assert NextFrame.masks(method.cfg, 32, 8) == () and batch.masks == {}
    out = method(batch, T)
    torch.testing.assert_close(out.loss.detach(), out.metrics["next_frame/l1"])
    targets = method.targets(batch.clips["clip"][0])
    torch.testing.assert_close(out.metrics["next_frame/l1_copy"], (targets[:, 1] - targets[:, 2]).abs().mean())


def test_the_teacher_takes_no_gradient_and_moves_by_its_average():
    method = made()
    assert method.encoder is method.teacher
    method(batch_of(method), T).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
    with torch.no_grad():
        for p in method.backbone.parameters():
            p.add_(1.0)
    before = [p.clone() for p in method.teacher.parameters()]
    method.after_optimizer_step(T)
    for old, new in zip(before, method.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.002, rtol=1e-4, atol=1e-5)


def test_the_ablation_lets_gradients_into_the_targets():
    on, off = made(), made(stop_gradient=False)
    frames = batch_of(on).clips["clip"][0]
    assert not on.targets(frames).requires_grad and off.targets(frames).requires_grad


@pytest.mark.parametrize("name", ["next_frame/debug", "next_frame/debug_latent"])
def test_two_halves_make_the_whole(name):
    method = made(name).eval()
    batch = batch_of(method)
    parts = [batch.part(0, 2), batch.part(2, 4)]
    halves = [method(p.prepared(torch.device("cpu"), Normalise()), T).loss for p in parts]
    torch.testing.assert_close(method(batch, T).loss, sum(halves) / 2)


def test_predictions_know_where_and_when():
    method = lively(made())
    frames = batch_of(method).clips["clip"][0]
    every = torch.arange(16).expand(4, -1)
    pred, _ = method.foresee(frames[:, :2], every, every[:, :0])
    assert pred.shape == (4, 16, 32) and pred.std(dim=1).mean() > 1e-4
    assert (method.foresee(frames[:, :2].flip(1), every, every[:, :0])[0] - pred).abs().max() > 1e-3


def test_pictures_are_normalised_frames():
    for name, names in (
        ("next_frame/debug", {"last frame", "prediction", "truth"}),
        ("next_frame/debug_latent", {"last frame as seen", "truth", "truth: error of its features"}),
    ):
        method = made(name)
        batch = batch_of(method)
        pictures = method.reconstruct(batch, T)
        assert set(pictures) == names and all(p.shape == (4, 3, 32, 32) for p in pictures.values())
        torch.testing.assert_close(pictures["truth"], batch.clips["clip"][0][:, 2])


def test_dangers_name_what_invites_collapse():
    assert NextFrame.dangers(NextFrameConfig()) == NextFrame.dangers(NextFrameConfig(space="latent")) == ()
    fast = dataclasses.replace(NextFrameConfig().momentum, start=0.0)
    assert "momentum" in NextFrame.dangers(NextFrameConfig(space="latent", momentum=fast))[0]
    assert "stop_gradient" in NextFrame.dangers(NextFrameConfig(space="latent", stop_gradient=False))[0]


def test_bad_choices_are_refused():
    encoder = build_encoder("resnet18", image_size=32, stem="cifar")
    for changes, text in (
        ({"space": "pixels"}, "pixel"),
        ({"past": 0}, "past"),
        ({"space": "latent", "mask_ratio": 1.0}, "mask_ratio"),
        ({"lp_weight": 0.0, "gradient_weight": 0.0}, "weight"),
    ):
        with pytest.raises(ConfigError, match=text):
            NextFrame(NextFrameConfig(**changes), encoder)
    with pytest.raises(ConfigError, match="--image-size"):
        NextFrame.masks(NextFrameConfig(space="latent"), 60, 16)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_maps_of_encoders_are_as_described(name):
    encoder = build_encoder(name, image_size=64)
    size = encoder.image_size
    with torch.no_grad():
        maps = encoder.encode_maps(torch.zeros(1, 3, size, size))
    assert [(m.shape[1], size // m.shape[2]) for m in maps] == list(encoder.map_shapes)


# Whole runs: the contracts of all methods take the recipe in pixels, these the one in features.


def run_of(folder, resume=False):
    config = dataclasses.replace(recipe("next_frame/debug_latent"), device="cpu", workers=1)
    coarse = np.random.default_rng(0).integers(0, 256, (48, 6, 6, 3), dtype=np.uint8)
    frames = ArraySource(coarse.repeat(8, 1).repeat(8, 2))
    return pretrain_run(None if resume else config, folder, resume, source=frames)


def test_a_run_in_features_moves_all_parts_leaves_the_teacher_and_resumes_to_the_same_bits(tmp_path):
    whole, broken = run_of(tmp_path / "whole"), run_of(tmp_path / "broken")
    lines = [line for line in whole.metrics() if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 9)) and all(np.isfinite(x["loss"]) for x in lines)
    first, last = (whole.checkpoints.load(step).tensors("model") for step in (4, 8))
    assert all(
        any(not torch.equal(first[n], last[n]) for n in last if n.startswith(part))
        for part in ("backbone.", "teacher.", "predictor.")
    )

    # Killed between two checkpoints: the newest is that of step 4 again.
    shutil.rmtree(broken.checkpoints.path(8))
    (broken.path / "encoder.safetensors").unlink()
    assert not broken.finished
    resumed = run_of(tmp_path / "broken", resume=True)
    again = resumed.checkpoints.latest().tensors("model")
    assert again.keys() == last.keys() and [n for n in last if not torch.equal(last[n], again[n])] == []
    assert [line["loss"] for line in resumed.metrics() if "loss" in line] == [line["loss"] for line in lines]

    # What is exported is the slow average, not the encoder that takes the gradients.
    exported = load_encoder(str(whole.path)).state_dict()
    teacher = {n.removeprefix("teacher."): v for n, v in last.items() if n.startswith("teacher.")}
    assert [n for n, v in exported.items() if not torch.equal(v, teacher[n])] == []
    assert any(not torch.equal(v, last[f"backbone.{n}"]) for n, v in exported.items())
