"""Detection: average precision against a naive one, views against their pixels, a training that finds shapes."""

import json
import os
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError, DataError
from imprint.data.batch import Normalise
from imprint.data.coco import CocoData
from imprint.evals import detection_training, detection_views
from imprint.evals.detection import DetectionConfig, build
from imprint.evals.detection_ap import average_precision, resampled_ap, truth_of, weighted_ap
from imprint.evals.detection_model import PyramidBackbone
from imprint.evals.detection_training import detect, optimizer_for
from imprint.evals.detection_views import Batches, ViewPlan, coco_tools, decoded, test_sample, training_sample
from imprint.evals.evaluate import evaluate
from imprint.evals.workspace import Workspace

pytest.importorskip("pycocotools")
test_sample.__test__ = False

SMALL = {
    "device": "cpu", "image_size": 48, "width": 16, "hidden": 32, "heads": "mlp", "anchor_cells": 4.0, "proposals": 60,
    "regions": 32, "detections": 10, "minibatch": 4, "optimizer": "adamw", "weight_decay": 0.0, "clip": 1.0,
    "scale_jitter": (1.0, 1.0), "flip": 0.0, "layer_decay": 1.0, "drop_path": 0.0, "resamplings": 20, "pictures": 2,
}  # fmt: skip
FEW = SMALL | {"minibatch": 5, "regions": 16, "proposals": 30}


def runs(mask):
    """Uncompressed run lengths, column by column, zeros first."""
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(np.r_[0, flat, 0]))
    return {"size": list(mask.shape), "counts": np.diff(np.r_[0, edges, flat.size]).tolist()}


def shapes(folder, count=6, seed=0, height=48, width=60, masks=True):
    """Bars (polygons) and discs (run lengths) on noise, with an empty image and a crowd among them."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for i in range(count):
        pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        for kind in range(2) if i != 2 else ():
            x, y, side = int(rng.integers(0, 8)) + 30 * kind, int(rng.integers(0, 20)), int(rng.integers(16, 22))
            mask = np.zeros((height, width), np.uint8)
            if kind:
                cv2.circle(mask, (x + side // 2, y + side // 2), side // 2 - 1, 1, -1)
                ys, xs = np.nonzero(mask)
                x, y, w, h = int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1
                segmentation = runs(mask)
            else:
                w, h = side, side + 6
                mask[y : y + h, x : x + w] = 1
                segmentation = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            pixels[mask > 0] = (230, 60, 40) if kind else (40, 90, 240)
            entry = {"id": len(annotations) + 1, "image_id": 10 * i, "category_id": (4, 9)[kind], "bbox": [x, y, w, h],
                     "area": int(mask.sum()), "iscrowd": 0}  # fmt: skip
            annotations.append(entry | ({"segmentation": segmentation} if masks else {}))
        if i == 1:
            crowd = runs(np.eye(height, width, dtype=np.uint8))
            annotations.append({"id": len(annotations) + 1, "image_id": 10, "category_id": 9, "iscrowd": 1, "area": 20,
                                "bbox": [0, 40, 10, 2], "segmentation": crowd})  # fmt: skip
        cv2.imwrite(str(folder / "images" / f"{i}<b>.png"), pixels[..., ::-1])
        images.append({"id": 10 * i, "file_name": f"{i}<b>.png", "height": height, "width": width})
    categories = [{"id": 9, "name": "disc"}, {"id": 4, "name": "bar"}, {"id": 5, "name": "never"}]
    path = folder / "set.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def resnet():
    torch.manual_seed(0)
    return build_encoder("resnet18", image_size=48, arch={"layers": [1] * 4, "channels": [16] * 4})


def vit(patch=8):
    torch.manual_seed(0)
    arch = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    return build_encoder("vit_tiny_patch16_224", image_size=48 // patch * patch, patch_size=patch, arch=arch)


def guesses(data, seed=0):
    """Detections near the truth and wrong ones."""
    rng = np.random.default_rng(seed)
    found = []
    for i, objects in enumerate(data.objects):
        for n in range(len(objects)):
            for _ in range(3):
                x1, y1, x2, y2 = objects.boxes_N4[n] + rng.normal(0, 2.5, 4)
                label = int(objects.labels_N[n]) if rng.random() < 0.8 else int(rng.integers(0, 3))
                found.append({"image_id": i, "category_id": label, "score": float(rng.random()),
                              "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]})  # fmt: skip
    return found


def naive_ap(data, found, thresholds):
    """AP from its definition: greedy matching by score, the best precision at 101 recalls, without crowds."""
    values = []
    for label in range(len(data.classes)):
        truth = {i: o.boxes_N4[o.labels_N == label].astype(float) for i, o in enumerate(data.objects)}
        total = sum(map(len, truth.values()))
        if not total:
            continue
        ranked = sorted((f for f in found if f["category_id"] == label), key=lambda f: -f["score"])
        for threshold in thresholds:
            taken, hits = set(), []
            for f in ranked:
                x, y, w, h = f["bbox"]
                best, best_n = threshold, None
                for n, (x1, y1, x2, y2) in enumerate(truth[f["image_id"]]):
                    shared = max(0, min(x + w, x2) - max(x, x1)) * max(0, min(y + h, y2) - max(y, y1))
                    iou = shared / (w * h + (x2 - x1) * (y2 - y1) - shared)
                    if (f["image_id"], n) not in taken and iou >= best:
                        best, best_n = iou, n
                hits.append(best_n is not None)
                taken |= {(f["image_id"], best_n)} if best_n is not None else set()
            right = np.cumsum(hits)
            precision, recall = right / np.arange(1, len(hits) + 1), right / total
            values.append(np.mean([max(precision[recall >= r], default=0.0) for r in np.linspace(0, 1, 101)]))
    return float(np.mean(values))


def test_average_precision_is_the_naive_one_and_perfect_for_the_truth(tmp_path):
    data = CocoData(shapes(tmp_path)).subset([0, 2, 3, 4, 5])  # without the crowd
    found = guesses(data)
    truth = truth_of(data, masks=True)
    metrics, per_class = average_precision(truth, found, "bbox", resamplings=100)
    thresholds = np.linspace(0.5, 0.95, 10)
    assert metrics["ap"].value == pytest.approx(100 * naive_ap(data, found, thresholds), abs=1e-6)
    assert metrics["ap50"].value == pytest.approx(100 * naive_ap(data, found, [0.5]), abs=1e-6)
    assert metrics["ap75"].value == pytest.approx(100 * naive_ap(data, found, [0.75]), abs=1e-6)
    assert 5 < metrics["ap"].value < 95 and metrics["ap"].low < metrics["ap"].value < metrics["ap"].high
    assert np.mean(list(per_class.values())) == pytest.approx(metrics["ap"].value) and "never" not in per_class
    assert "ap_large" not in metrics  # no object is that large
    perfect = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "score": 1.0, "segmentation": a["segmentation"]}
        for a in truth.dataset["annotations"]
    ]
    assert average_precision(truth, perfect, "segm")[0]["ap"].value == 100.0
    nothing, zeros = average_precision(truth, [], "bbox")
    assert nothing["ap"].value == 0.0 and set(nothing) == set(metrics) and set(zeros.values()) == {0.0}


def test_weighted_precision_is_cocos_and_an_image_of_weight_two_counts_twice(tmp_path):
    data = CocoData(shapes(tmp_path, count=7))  # with a crowd
    found = guesses(data)

    def judged(rows):
        part = data.subset(rows)
        results = [f | {"image_id": n} for n, i in enumerate(rows) for f in found if f["image_id"] == i]
        truth = truth_of(part, masks=False)
        judge = coco_tools()[2](truth, truth.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        return judge

    whole = judged(range(7))
    weights = np.array([[1] * 7, [2, 0, 1, 1, 0, 3, 0], [0, 0, 5, 0, 0, 0, 0]])  # the third draws the empty image only
    got = weighted_ap(whole, weights)
    assert got[0] == pytest.approx(whole.stats[0], abs=1e-9) and len(got) == 2
    assert got[1] == pytest.approx(judged([0, 0, 2, 3, 5, 5, 5]).stats[0], abs=1e-9)
    np.testing.assert_array_equal(resampled_ap(whole, 10, 3), resampled_ap(whole, 10, 3))


def test_views_carry_boxes_and_masks_along(tmp_path):
    data = CocoData(shapes(tmp_path))
    plan = ViewPlan(side=72, longest=200, jitter=(0.7, 1.9), flip=0.5)
    sizes, kinds = set(), 0
    for step in range(12):
        sample = training_sample(data, 1, step, plan)
        again = training_sample(data, 1, step, plan)
        assert torch.equal(sample.image_CHW, again.image_CHW) and torch.equal(sample.masks_NHW, again.masks_NHW)
        sizes.add(tuple(sample.image_CHW.shape[1:]))
        assert len(sample.labels_N) <= 2  # the crowd is not learned
        for box, label, mask in zip(sample.boxes_N4, sample.labels_N, sample.masks_NHW, strict=True):
            kinds += 1
            red, blue = sample.image_CHW[0].int(), sample.image_CHW[2].int()
            inside = (red > 150) if label == 3 else (blue > 150)  # the colour of the class, whatever was cut or flipped
            assert (inside == mask.bool()).float().mean() > 0.97
            ys, xs = mask.nonzero(as_tuple=True)
            tight = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
            assert (box - tight).abs().max() < 3.0
    assert len(sizes) > 3 and max(s[0] for s in sizes) == 72 and kinds > 12
    plain = test_sample(data, 0, replace(plan, longest=81))
    assert tuple(plain.image_CHW.shape) == (3, 65, 81)
    grey = test_sample(data, 0, replace(plan, channels=1))
    assert grey.image_CHW.shape[0] == 1
    empty = training_sample(data, 2, 0, plan)
    assert len(empty.labels_N) == 0 and empty.masks_NHW.shape[0] == 0


def test_batches_pass_every_image_once_an_epoch_from_any_step(tmp_path):
    batches = Batches(CocoData(shapes(tmp_path, count=7)), ViewPlan(side=24, longest=64, flip=0.5), 3, 2)
    assert batches.per_epoch == 3
    seen = [[s.row for s in batch] for batch in batches(0, 6)]
    assert sorted(sum(seen[:3], [])) == sorted(sum(seen[3:], [])) == list(range(7)) and seen[:3] != seen[3:]
    later = list(batches(4, 6))
    assert [[s.row for s in batch] for batch in later] == seen[4:]


def test_it_finds_shapes_with_boxes_and_masks(tmp_path):
    path = shapes(tmp_path)
    encoder = resnet()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    out = tmp_path / "report.json"
    report = evaluate("detection", encoder, path, path, out, cache=False, epochs=40, lr=3e-2, **FEW)
    assert report.main == "box_ap" and report.metrics["box_ap50"].value > 50 and report.metrics["mask_ap50"].value > 50
    assert report.metrics["box_ap"].low <= report.metrics["box_ap"].value <= report.metrics["box_ap"].high
    curve = report.details["train_loss"]
    assert len(curve) == 40 and curve[-1] < 0.5 * curve[0] and report.details["train_images_without_objects"] == 1
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert (tmp_path / "report_figures" / "detections.png").is_file() and "detections" in report.figures[0].caption


@pytest.mark.parametrize("make", [vit, resnet])
def test_killed_goes_on_and_ends_equal(tmp_path, monkeypatch, make):
    monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path / "cache"))
    path = shapes(tmp_path / "data", count=5)
    options = FEW | {"epochs": 3, "minibatch": 2, "flip": 0.5, "drop_path": 0.1, "lr": 1e-3, "checkpoint_every": 0.0}
    whole = evaluate("detection", make(), path, path, cache=False, **options)
    real = detection_views.training_sample

    def dying(data, i, step, plan):
        if step == 4:
            raise KeyboardInterrupt
        return real(data, i, step, plan)

    monkeypatch.setattr(detection_views, "training_sample", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluate("detection", make(), path, path, **options)
    monkeypatch.setattr(detection_views, "training_sample", real)
    steps = []
    rows = Batches.rows
    monkeypatch.setattr(Batches, "rows", lambda self, step: steps.append(step) or rows(self, step))
    resumed = evaluate("detection", make(), path, path, **options)
    assert min(steps) > 0  # it went on, rather than began
    assert resumed.metrics == whole.metrics and resumed.details["train_loss"] == whole.details["train_loss"]
    assert not list((tmp_path / "cache" / "evaluations").iterdir())


def test_frozen_encoders_stay_and_only_boxes_are_found_without_masks(tmp_path, monkeypatch):
    path = shapes(tmp_path, count=3, masks=False)
    models = []
    real = detection_training.train_detector
    monkeypatch.setattr(
        "imprint.evals.detection.train_detector", lambda model, *rest: models.append(model) or real(model, *rest)
    )
    report = evaluate("detection", vit(), path, path, cache=False, epochs=1, freeze=True, **SMALL)
    assert not any(name.startswith("mask") for name in report.metrics)
    then = vit().state_dict()
    for name, after in models[0].backbone.encoder.state_dict().items():
        assert torch.equal(after, then[name]), name
    assert report.details["pyramid"] == "simple"


@pytest.mark.parametrize(("patch", "strides"), [(8, (2, 4, 8, 16, 32)), (6, (1.5, 3, 6, 12, 24))])
def test_a_vit_of_any_patch_has_exact_strides_and_both_kinds_of_heads_run(tmp_path, patch, strides):
    data = CocoData(shapes(tmp_path, count=2))
    config = DetectionConfig(**SMALL | {"heads": "auto"})
    torch.manual_seed(0)
    model = build(vit(patch), 3, config, masks=True)
    assert model.backbone.strides == strides and model.backbone.divisor == 2 * patch
    assert [round(1 / s, 3) for s in model.roi_heads.box_roi_pool.scales] == list(strides[:-1])
    anchors = model.rpn.anchor_generator(
        type("L", (), {"image_sizes": [(48, 48)], "tensors": None})(), [torch.zeros(1, 1, 48 // patch, 48 // patch)] * 5
    )[0].reshape(5, -1, 3, 4)
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2
    for level, stride in zip(centres, strides, strict=True):
        torch.testing.assert_close(level[1, 0, 0] - level[0, 0, 0], torch.tensor(float(stride)))
    plan = ViewPlan(side=30, longest=90)
    found = detect(model, data, Normalise(), config, plan, torch.device("cpu"), torch.float32, Workspace(None))
    for result in found:
        assert decoded(result["segmentation"], (48, 60), "x").shape == (48, 60) and 0 <= result["category_id"] < 3


def test_batch_norms_keep_their_statistics_unless_asked():
    for learning in (False, True):
        backbone = PyramidBackbone(resnet(), 16, freeze=False, batch_statistics=learning).train()
        modes = {m.training for m in backbone.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)}
        assert modes == {learning} and backbone.pyramid.training


def test_rates_fall_towards_the_first_block_and_sgd_is_for_batch_norm():
    config = DetectionConfig(**SMALL | {"layer_decay": 0.5, "optimizer": "auto", "weight_decay": None})
    optimizer, rate = optimizer_for(build(vit(), 2, config, masks=True), config)
    assert isinstance(optimizer, torch.optim.AdamW) and rate == 1e-4
    assert {g["lr_scale"] for g in optimizer.param_groups} == {1.0, 0.5, 0.25, 0.125}
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.1}
    optimizer, rate = optimizer_for(build(resnet(), 2, config, masks=True), config)
    assert isinstance(optimizer, torch.optim.SGD) and rate == 0.02


def test_unsuited_input_is_refused(tmp_path, monkeypatch):
    path = shapes(tmp_path, count=3)
    with pytest.raises(ConfigError, match="--test"):
        evaluate("detection", "random:resnet18", path)
    content = json.loads(path.read_text())
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(content | {"annotations": []}))
    with pytest.raises(DataError, match="none of its 3 images has an object to learn from"):
        evaluate("detection", vit(), bare, path, **SMALL)
    with pytest.raises(DataError, match="so there is no precision"):
        evaluate("detection", vit(), path, bare, **SMALL)
    content["annotations"][1]["segmentation"] = {"size": [5, 5], "counts": [25]}
    bare.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"is for \[5, 5\] pixels"):
        evaluate("detection", vit(), bare, path, cache=False, epochs=1, **SMALL)
    with pytest.raises(DataError, match="COCO annotation file"):
        evaluate("detection", vit(), tmp_path, path)
    for wrong in ({"epochs": 0}, {"lr": -1.0}, {"scale_jitter": (0.0, 1.0)}, {"image_size": 8}, {"limit": -1}):
        with pytest.raises(ConfigError):
            DetectionConfig(**wrong)
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(ConfigError, match=r"imprint\[detection\]"):
        evaluate("detection", vit(), path, path, **SMALL)


def test_the_coco_sample_is_read():
    folder = os.environ.get("IMPRINT_SHARED_DATA", os.path.join(os.path.dirname(__file__), "../../../shared/data"))
    path = os.path.join(folder, "coco_sample", "instances.json")
    if not os.path.isfile(path):
        pytest.skip("the COCO sample is not here")
    data = CocoData(path)
    assert len(data) == 80 and len(data.classes) == 80 and data.has_masks
    crowded = [i for i, o in enumerate(data.objects) if o.crowd_N.any()][:2]
    for i in [0, *crowded]:
        sample = training_sample(data, i, 0, ViewPlan(side=480, longest=800))
        assert sample.masks_NHW.flatten(1).any(1).all() and len(sample.labels_N) == (~data.objects[i].crowd_N).sum()
    truth = truth_of(data.subset(range(8)), masks=True)
    for entry in truth.dataset["annotations"]:  # masks lie in their boxes
        ys, xs = np.nonzero(coco_tools()[0].decode(entry["segmentation"]))
        x, y, w, h = entry["bbox"]
        assert abs(xs.min() - x) < 3 and abs(ys.max() + 1 - y - h) < 3
