"""Segmentation: shapes are learned by every head, killed runs end equal, scores equal a loop, bad input is named."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError, DataError
from imprint.data.batch import Normalise
from imprint.data.mask_folders import open_masks
from imprint.evals import segmentation_train
from imprint.evals.evaluate import evaluate
from imprint.evals.pixels import PixelEncoder
from imprint.evals.segmentation import SegmentationConfig, crop_side
from imprint.evals.segmentation_frames import Frames, Tile, ahead, crop_key, framed, random_crop, tiles_of
from imprint.evals.segmentation_labels import scan
from imprint.evals.segmentation_maps import Sight, map_table
from imprint.evals.segmentation_score import predicted
from imprint.evals.segmentation_train import cell_counts, pixel_loss
from imprint.ops.confusion import IGNORED

COLOURS = np.array([(90, 90, 90), (220, 60, 40), (40, 90, 220), (60, 200, 80)])
NAMES = ("ground", "disc", "square", "bar")


def scene(seed: int, height: int = 36, width: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Return an image (H, W, 3) and its labels (H, W): a disc, a square and a bar on noisy ground, an ignored rim."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.uint8)
    for kind in (1, 2, 3):
        y, x = int(rng.integers(6, height - 6)), int(rng.integers(6, width - 6))
        size = int(rng.integers(4, 8))
        if kind == 1:
            cv2.circle(labels, (x, y), size, 1, -1)
        elif kind == 2:
            cv2.rectangle(labels, (x - size, y - size), (x + size, y + size), 2, -1)
        else:
            cv2.rectangle(labels, (x - 2, 0), (x + 2, height), 3, -1)
    image = np.clip(COLOURS[labels] + rng.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8)
    labels[:2] = 255
    return image, labels


def write(root: Path, count: int, seed: int, *, colours: bool = False, **more: int) -> Path:
    """Write images/ and masks/ and return the folder; masks as label values, or as the shapes' colours."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image, labels = scene(1000 * seed + i, **more)
        Image.fromarray(image).save(root / "images" / f"{i}.png")
        mask = COLOURS[np.where(labels == 255, 0, labels)].astype(np.uint8) if colours else labels
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Return (train, test) folders of 10 and 4 scenes."""
    root = tmp_path_factory.mktemp("shapes")
    return write(root / "train", 10, 0), write(root / "test", 4, 1)


def vit():
    torch.manual_seed(0)
    arch = {"embed_dim": 24, "depth": 4, "num_heads": 2}
    return build_encoder("vit_tiny_patch16_224", image_size=16, patch_size=4, arch=arch, drop_path=0.0)


def cnn():
    torch.manual_seed(0)
    return build_encoder("resnet18", image_size=32, stem="half", arch={"layers": [1] * 4, "channels": [12] * 4})


FAST = {"device": "cpu", "workers": 1, "epochs": 10, "minibatch": 4}


def test_raw_pixels_tell_coloured_shapes_apart(shapes, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES), encoding="utf-8")
    report = evaluate(
        "segmentation", "pixels", *shapes, tmp_path / "r.json", classes=str(names), **FAST | {"epochs": 20}
    )
    assert report.main == "miou" and report.metrics["miou"].n == 4
    miou = report.metrics["miou"]
    assert miou.value > 75 and miou.low <= miou.value <= miou.high and report.metrics["pixel_accuracy"].value > 90
    per_class = report.details["per_class"]
    assert tuple(per_class) == NAMES and np.mean([c["iou"] for c in per_class.values()]) == pytest.approx(
        miou.value, abs=0.01
    )
    assert report.details["chosen"]["held_out_miou"] == max(p["held_out_miou"] for p in report.details["grid"])
    counted = sum(int((np.array(Image.open(p)) != 255).sum()) for p in (shapes[1] / "masks").iterdir())
    assert sum(map(sum, report.details["confusion"])) == counted  # ignored pixels never count
    assert (tmp_path / "r_figures" / "segments.png").is_file() and "--classes" in report.command


@pytest.mark.parametrize("make", [vit, cnn])
def test_a_linear_head_on_a_vit_and_on_the_stages_of_a_cnn(shapes, make):
    encoder = make()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    options = FAST | {"layers": (1, -1) if make is vit else ()}
    first = evaluate("segmentation", encoder, *shapes, **options)
    again = evaluate("segmentation", encoder, *shapes, **options | {"workers": 2, "cache": False, "batch_size": 7})
    assert first.metrics["miou"].value > 35
    assert {k: m.value for k, m in first.metrics.items()} == pytest.approx(
        {k: m.value for k, m in again.metrics.items()}, abs=0.2
    )
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_upernet_and_a_tuned_encoder(shapes):
    options = FAST | {"head": "upernet", "width": 16, "crop": 32, "lrs": (3e-3,), "epochs": 8}
    frozen = evaluate("segmentation", vit(), *shapes, **options)
    assert frozen.metrics["miou"].value > 25 and frozen.details["train_loss"][-1] < frozen.details["train_loss"][0]
    encoder = cnn()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    tuned = evaluate("segmentation", encoder, *shapes, **options | {"tune": True})
    assert tuned.metrics["miou"].value > 28
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_augmented_linear_heads_learn_and_repeat(shapes):
    options = FAST | {"augment": True, "crop": 24, "epochs": 6, "window": 24}
    first, second = (evaluate("segmentation", vit(), *shapes, **options | {"workers": w}) for w in (1, 2))
    assert first.metrics == second.metrics and first.details["train_loss"] == second.details["train_loss"]
    assert first.metrics["miou"].value > 25


class Killed(Exception):
    pass


@pytest.mark.parametrize("more", [{}, {"head": "upernet", "tune": True, "width": 8, "crop": 16}])
def test_a_killed_training_goes_on_and_ends_equal(shapes, monkeypatch, more):
    options = FAST | {"epochs": 4, "checkpoint_every": 0.0, "pictures": 0} | more
    whole = evaluate("segmentation", vit(), *shapes, **options | {"cache": False})
    real, calls = segmentation_train.pixel_loss, [0]
    total = 2 * 4 * 2 if more else 3 * 4  # steps of an epoch, epochs, losses of a step
    stop = total // 2 + 1

    def dying(*args):
        calls[0] += 1
        if calls[0] > stop:
            raise Killed
        return real(*args)

    monkeypatch.setattr(segmentation_train, "pixel_loss", dying)
    with pytest.raises(Killed):
        evaluate("segmentation", vit(), *shapes, **options)
    counted: list[int] = []
    monkeypatch.setattr(segmentation_train, "pixel_loss", lambda *a: counted.append(1) or real(*a))
    resumed = evaluate("segmentation", vit(), *shapes, **options)
    assert resumed.metrics == whole.metrics and resumed.details["train_loss"] == whole.details["train_loss"]
    assert 0 < len(counted) <= total // 2  # the steps before the kill were not taken again


def test_windows_cover_every_pixel_and_average(shapes):
    frames = Frames(4, window=16, stride=10)
    assert frames.size(12, 40) == (16, 53) and frames.size(36, 48) == (36, 48)
    boxes = frames.boxes(36, 48)
    cover = np.zeros((36, 48), int)
    for top, left, height, width in boxes:
        cover[top : top + height, left : left + width] += 1
    assert cover.min() == 1 and boxes[-1] == (20, 32, 16, 16) and len(set(boxes)) == len(boxes)
    assert Frames(4).size(35, 50) == (36, 48) and Frames(16, short=32).size(40, 60) == (32, 48)
    logits = torch.randn(1, 3, 36, 48)
    parts = [(Tile(0, (36, 48), b), logits[:, :, b[0] : b[0] + 16, b[1] : b[1] + 16]) for b in boxes]
    assert torch.equal(predicted(parts, (36, 48)), logits[0].argmax(0))
    assert predicted(parts, (50, 70)).shape == (50, 70)


def test_kept_maps_are_the_encoders(shapes):
    source = open_masks(shapes[0])
    encoder = cnn().eval()
    sight = Sight(encoder, Frames(4), (), Normalise(), torch.device("cpu"), torch.float32, 1, 36 * 48 * 3)
    tiles = tiles_of(sight.frames, scan(source).sizes, range(len(source)))
    for cache in (True, False):
        table = map_table(sight, source, tiles, cache)
        kept = table.maps([2, 5], torch.device("cpu"))
        fresh = sight.maps([framed(source.image(i), (36, 48)) for i in (2, 5)])
        assert len(kept) == 4
        for a, b in zip(kept, fresh, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_damaged_maps_are_made_again(shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path))
    source = open_masks(shapes[0])
    sight = Sight(cnn().eval(), Frames(4), (), Normalise(), torch.device("cpu"), torch.float32, 1, 36 * 48 * 3)
    tiles = tiles_of(sight.frames, scan(source).sizes, range(len(source)))
    first = [x.clone() for x in map_table(sight, source, tiles, True).maps([2, 5], torch.device("cpu"))]
    for damage in (lambda file: file.write_bytes(file.read_bytes()[:300]), lambda file: file.unlink()):
        damage(next((tmp_path / "features").glob("*/map1.npy")))
        again = map_table(sight, source, tiles, True).maps([2, 5], torch.device("cpu"))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_loss_of_cells_equals_that_of_their_pixels():
    torch.manual_seed(0)
    labels = torch.randint(-1, 3, (2, 12, 18))
    counts = cell_counts(labels, 3, 6)
    assert counts.shape == (2, 3, 2, 3) and counts.sum() == (labels != IGNORED).sum()
    assert counts[1, 2, 0, 1] == (labels[1, :6, 6:12] == 2).sum()
    logits = torch.randn(2, 3, 2, 3)
    per_pixel = logits.repeat_interleave(6, 2).repeat_interleave(6, 3)
    torch.testing.assert_close(pixel_loss(logits, labels, 6), pixel_loss(per_pixel, labels))
    torch.testing.assert_close(pixel_loss(per_pixel, labels, 1), pixel_loss(per_pixel, labels, 2), rtol=0.05, atol=0.05)
    assert cell_counts(labels[:, :11, :17], 3, 4).shape == (2, 3, 3, 5)
    assert float(pixel_loss(logits, torch.full((2, 12, 18), IGNORED), 4)) == 0


def test_crops_keep_image_and_labels_together():
    image, labels = scene(3)
    image = COLOURS[np.where(labels == 255, 0, labels)].astype(np.uint8)
    truth = np.where(labels == 255, IGNORED, labels.astype(np.int16))
    seen = set()
    for epoch in range(12):
        crop, part = random_crop(image, truth, Frames(4), 40, (0.5, 2.0), (1, 2, 3), crop_key(0, epoch, 3))
        assert crop.shape == (40, 40, 3) and part.shape == (40, 40) and part.dtype == np.int16
        outside = (crop == (1, 2, 3)).all(2)
        assert (part[outside] == IGNORED).all()
        exact = (crop[part >= 0] == COLOURS[part[part >= 0]]).all(1)
        assert exact.mean() > 0.8  # the rest are edges, smooth in the image and sharp in the labels
        seen.add(crop.tobytes())
    assert len(seen) == 12
    same, _ = random_crop(image, truth, Frames(4), 40, (0.5, 2.0), (1, 2, 3), crop_key(0, 11, 3))
    assert same.tobytes() == crop.tobytes()


def test_work_ahead_keeps_its_order_and_passes_errors_on():
    assert list(ahead(lambda x: x * x, range(20), 3)) == [x * x for x in range(20)]
    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda x: 1 // x, [1, 0, 2], 2))


def test_what_cannot_work_is_refused(shapes, tmp_path):
    for options, message in [
        ({"head": "uper"}, "upernet"),
        ({"head": "upernet", "lrs": (1.0, 2.0)}, "one --lrs"),
        ({"head": "upernet", "minibatch": 1}, "at least 2"),
        ({"window": 16, "stride": 32}, "leave gaps"),
        ({"held_out": 1.0}, "held_out"),
        ({"tokens": "cls"}, "--tokens does not apply"),
        ({"lrs": (0.0,)}, "positive"),
        ({"window": 18}, "multiples of the patch"),
        ({"classes": "nowhere.txt"}, "cannot be read"),
    ]:
        with pytest.raises(ConfigError, match=message):
            evaluate("segmentation", vit(), *shapes, **FAST | options)
    with pytest.raises(ConfigError, match="several scales"):
        evaluate("segmentation", PixelEncoder(16), *shapes, **FAST | {"head": "upernet"})
    with pytest.raises(ConfigError, match="nothing to fine-tune"):
        evaluate("segmentation", PixelEncoder(16), *shapes, **FAST | {"tune": True})
    one = write(tmp_path / "one", 1, 0)
    with pytest.raises(DataError, match="there is one image; give one --lrs"):
        evaluate("segmentation", vit(), one, one, **FAST)
    strict = cnn()
    strict._fixed_size = True
    with pytest.raises(ConfigError, match="takes images of 32 x 32 only.*--window 32"):
        evaluate("segmentation", strict, *shapes, **FAST)
    assert evaluate("segmentation", strict, *shapes, **FAST | {"window": 32, "epochs": 1}).metrics["miou"].value > 0


def test_sides_of_crops(shapes):
    found = scan(open_masks(shapes[0]))
    sight = Sight(vit(), Frames(16), (), Normalise(), torch.device("cpu"), torch.float32, 1, 1)
    assert crop_side(SegmentationConfig(), sight, found) == 32
    assert crop_side(SegmentationConfig(crop=48), sight, found) == 48
