"""Retrieval: chance before training, everything found after fitting the pairs, and what is left out is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from imprint.backbones.dual_encoder import DualEncoder
from imprint.backbones.load import load_encoder
from imprint.core.errors import ConfigError, DataError
from imprint.data.arrays import ArraySource
from imprint.data.batch import Normalise
from imprint.data.pairs import PairSource, open_pairs
from imprint.evals import image_text_features
from imprint.evals.evaluate import evaluate
from imprint.evals.features import extract
from imprint.evals.protocol import EvalData
from imprint.evals.retrieval import Retrieval, RetrievalConfig, chance_of

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 210), "black": (10, 10, 10)}
SHAPES = ("square", "circle")
PLAIN = {"device": "cpu", "cache": False, "workers": 1}
Folder = Callable[[str], Path]


def picture(colour: str, shape: str) -> np.ndarray:
    image = np.full((32, 32, 3), 235, np.uint8)
    if shape == "square":
        image[4:20, 4:20] = COLOURS[colour]
    else:
        cv2.circle(image, (20, 20), 9, COLOURS[colour], -1)
    return image


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    lines = ["image,caption"]
    for colour in COLOURS:
        for shape in SHAPES:
            name = f"{colour}-{shape}.png"
            cv2.imwrite(str(folder / name), cv2.cvtColor(picture(colour, shape), cv2.COLOR_RGB2BGR))
            lines += [f"{name},a {colour} {shape}", f"{name},a photo of the {shape} , {colour}"]
    (folder / "captions.csv").write_text("\n".join(lines))
    return folder / "captions.csv"


def fit(encoder: DualEncoder, source: PairSource, steps: int = 400) -> None:
    """Fit one batch of all pairs by CLIP's symmetric cross-entropy, another caption per image each step."""
    images = Normalise()(torch.from_numpy(np.stack([cv2.cvtColor(
        cv2.imdecode(np.frombuffer(source.read(i), np.uint8), 1), cv2.COLOR_BGR2RGB) for i in range(len(source))]
    )).permute(0, 3, 1, 2))  # fmt: skip
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-3)
    for step in range(steps):
        texts = [source.captions[int(i)] for i in source.drawn(0, step, np.arange(len(source)))]
        logits = encoder.logit_scale * encoder.project(encoder(images).pooled_BD) @ encoder.encode_text(texts).T
        target = torch.arange(len(source))
        loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.05:
            break


def test_untrained_is_near_chance_and_fitted_finds_everything(
    pairs: Path, image_text_folder: Folder, tmp_path: Path
) -> None:
    encoder = load_encoder(f"hf:{image_text_folder('clip')}")
    source = open_pairs(pairs)
    config = RetrievalConfig(shown=6, hits=3, **PLAIN)
    before = Retrieval().run(encoder, EvalData(train=source), config)
    chance = before.details["chance"]
    assert chance["text_to_image_r@1"] == pytest.approx(100 / 8)
    assert chance["image_to_text_r@1"] == pytest.approx(100 / 8)
    assert before.metrics["text_to_image_r@1"].value < 50 and before.details["captions"] == 16
    fit(encoder, source)
    after = Retrieval().run(encoder, EvalData(train=source), config)
    assert after.metrics["text_to_image_r@1"].value == after.metrics["image_to_text_r@1"].value == 100.0
    assert after.metrics["text_to_image_median_rank"].value == 1 and after.main == "text_to_image_r@1"
    assert after.metrics["text_to_image_r@1"].n == 16 and after.metrics["image_to_text_r@1"].n == 8
    after.save(tmp_path / "out.json")
    assert (tmp_path / "out_figures" / "search.png").is_file() and "pages" not in json.loads(
        (tmp_path / "out.json").read_text()
    )
    document = (tmp_path / "out_search.html").read_text()
    assert document.count('class="panel hood text"') == 6 and document.count("its image has rank 1<") == 6


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_ranks_equal_the_model_asked_pair_by_pair(kind: str, pairs: Path, image_text_folder: Folder) -> None:
    encoder = load_encoder(image_text_folder(kind))
    source = open_pairs(pairs)
    report = Retrieval().run(encoder, EvalData(train=source), RetrievalConfig(ks=(1, 3), shown=0, **PLAIN))
    with torch.no_grad():
        features = extract(encoder, source, cache=False, device="cpu").tensor
        images, texts = encoder.project(features), encoder.encode_text(list(source.captions))
    similarity = (texts.double() @ images.double().T).numpy()
    for k in (1, 3):
        there = [(row > row[own]).sum() < k for row, own in zip(similarity, source.caption_image, strict=True)]
        back = [
            bool(set(np.argsort(-similarity[:, i])[:k]) & set(np.flatnonzero(source.caption_image == i)))
            for i in range(len(source))
        ]
        assert report.metrics[f"text_to_image_r@{k}"].value == pytest.approx(100 * np.mean(there))
        assert report.metrics[f"image_to_text_r@{k}"].value == pytest.approx(100 * np.mean(back))
    assert report.figures == () and report.pages == ()


def test_chance_equals_a_shuffled_order() -> None:
    counts = np.array([1, 3, 2, 4])
    told = chance_of(counts, (1, 2, 50))
    owner = np.repeat(np.arange(4), counts)
    rng = np.random.default_rng(0)
    hits = np.zeros(4)
    for _ in range(4000):
        order = rng.permutation(owner)
        hits += [(order[:2] == i).any() for i in range(4)]
    assert told["image_to_text_r@2"] == pytest.approx(100 * hits.mean() / 4000, abs=2)
    assert told["text_to_image_r@2"] == 50 and told["text_to_image_r@50"] == told["image_to_text_r@50"] == 100


def test_by_name_with_damaged_images_own_queries_and_a_repeatable_command(
    pairs: Path, image_text_folder: Folder, tmp_path: Path
) -> None:
    evil = '<script>window.owned=1</script>"><img src=x onerror=alert(1)>'
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    rows = []
    for i, path in enumerate(sorted(pairs.parent.glob("*.png"))):
        # A slash is the one character of the hostile name that no file name can hold.
        name = f"{evil.replace('/', '')}{i}.png" if i == 0 else path.name
        (folder / "images" / name).write_bytes(b"damaged" if i == 3 else path.read_bytes())
        rows.append({"image": name, "captions": ["a cat", evil if i == 1 else f"text {i}"]})
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "queries.txt").write_text(f"a red square\n\n{evil}\n")
    spec = f"hf:{image_text_folder('clip')}"
    options = {"queries": str(tmp_path / "queries.txt"), "ks": (1, 2), **PLAIN}
    first, again = (evaluate("retrieval", spec, str(folder), out=tmp_path / "r.json", **options) for _ in range(2))
    assert first.metrics == again.metrics and "--queries" in first.command and first.encoder == spec
    assert first.details["left_out"]["damaged_images"] == 1 and first.metrics["text_to_image_r@1"].n == 14
    document = (tmp_path / "r_search.html").read_text()
    assert document.count("<script>") == 1 and "<img src=x" not in document and "&lt;script&gt;" in document
    with pytest.raises(ConfigError, match="Did you mean 'caption_column'"):
        evaluate("retrieval", spec, str(folder), caption_colum="x")


def test_long_captions_are_cut_and_counted_and_texts_are_cached(
    pairs: Path, image_text_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(image_text_folder("clip"))
    text = pairs.read_text().replace("a red square", "a red square " * 20)
    (pairs.parent / "long.csv").write_text(text)
    source = open_pairs(pairs.parent / "long.csv")
    config = RetrievalConfig(shown=0, device="cpu", workers=1)
    first = Retrieval().run(encoder, EvalData(train=source), config)
    monkeypatch.setattr(image_text_features, "_encoded", lambda *_: pytest.fail("texts were encoded again"))
    again = Retrieval().run(encoder, EvalData(train=source), config)
    assert first.details["captions_cut"] == again.details["captions_cut"] == 1 and first.metrics == again.metrics


def test_images_by_images_for_any_encoder(
    tiny, train, unlabelled, test, image_text_folder: Folder, pairs: Path
) -> None:
    report = evaluate("retrieval", "pixels", train, device="cpu", cache=False, image_size=8)
    assert report.main == "map@r" and report.details["mode"] == "image"
    assert report.metrics["r@1"].value > 3 * report.details["chance"]["r@1"] > 60
    assert report.metrics["map@r"].low < report.metrics["map@r"].value < report.metrics["map@r"].high
    few = evaluate("retrieval", tiny, train, device="cpu", cache=False, limit=60)
    assert few.cost["images"] == 60 and few.metrics["r@1"].n == 60
    clip = evaluate("retrieval", load_encoder(image_text_folder("clip")), train, device="cpu", cache=False)
    assert clip.details["dimensions"] == 32
    with pytest.raises(DataError, match="no labels"):
        evaluate("retrieval", tiny, unlabelled, device="cpu", cache=False)
    with pytest.raises(ConfigError, match="encodes images only"):
        evaluate("retrieval", tiny, str(pairs), device="cpu", cache=False)
    with pytest.raises(ConfigError, match="Did you mean 'text'"):
        evaluate("retrieval", tiny, train, mode="texts")
    with pytest.raises(DataError, match="two images"):
        alone = ArraySource(np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]), classes=("a", "b"), name="alone")
        evaluate("retrieval", tiny, alone, device="cpu", cache=False)
    with pytest.raises(ConfigError, match="leave out --tokens"):
        evaluate("retrieval", load_encoder(image_text_folder("clip")), str(pairs), tokens="cls", **PLAIN)


def test_flickr8k_as_it_lies(sample_data: Path, image_text_folder: Folder) -> None:
    file = sample_data / "flickr8k_sample" / "captions.txt"
    if not file.is_file():
        pytest.skip("no flickr8k_sample here")
    source = open_pairs(file)
    assert len(source) == 600 and np.diff(source.starts).tolist() == [5] * 600 and source.counted.empty == 0
    encoder = load_encoder(image_text_folder("clip"))
    report = evaluate("retrieval", encoder, str(file), limit=100, shown=0, **PLAIN)
    assert report.details["captions"] == 500 and report.details["chance"]["text_to_image_r@10"] == 10
    assert 3 < report.metrics["text_to_image_r@10"].value < 25  # untrained: at chance
