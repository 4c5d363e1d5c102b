"""Zero-shot classification: the ensemble against its equation, the words for classes, and a model that knows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imprint.backbones.dual_encoder import DualEncoder
from imprint.backbones.load import load_encoder
from imprint.backbones.text_encoder import TextBatch, TextEncoder, pad
from imprint.core.errors import ConfigError, DataError
from imprint.data.arrays import ArraySource
from imprint.evals.evaluate import evaluate
from imprint.evals.pixels import PixelEncoder
from imprint.evals.protocol import ProtocolConfig
from imprint.evals.zeroshot import TEMPLATES, class_vectors, class_words, read_templates

PLAIN = {"device": "cpu", "cache": False, "workers": 1}
Folder = Callable[[str], Path]


class Words:
    """A tokenizer of one's own: the contract needs no library."""

    context, vocabulary, fingerprint = 6, 16, "words"

    def __init__(self, known: Sequence[str]) -> None:
        self.known = list(known)

    def __call__(self, texts: Sequence[str]) -> TextBatch:
        rows = [[self.known.index(w) + 1 if w in self.known else 0 for w in t.lower().split()] for t in texts]
        return pad([row[:6] for row in rows], [len(row) > 6 for row in rows], 0)


class Lookup(TextEncoder):
    """A text is the sum of its words' vectors."""

    def __init__(self, tokenizer: Words, table: Tensor) -> None:
        super().__init__()
        self.tokenizer, self.joint_dim = tokenizer, table.shape[1]
        self.table = nn.Parameter(torch.cat([torch.zeros(1, table.shape[1]), table]))

    def forward(self, batch: TextBatch) -> Tensor:
        return (self.table[batch.ids_BL] * batch.mask_BL[..., None]).sum(1) + 1e-3


def knowing(encoder, train) -> DualEncoder:
    """A dual encoder whose word vectors are the class means of its image vectors."""
    from imprint.evals.features import extract

    features = extract(encoder, train, cache=False, device="cpu").tensor
    features = features - features.mean(0)
    table = torch.stack([features[torch.from_numpy(train.labels == c)].mean(0) for c in range(4)])
    centre = nn.Linear(encoder.embed_dim, encoder.embed_dim)
    with torch.no_grad():
        centre.weight.copy_(torch.eye(encoder.embed_dim))
        centre.bias.copy_(-extract(encoder, train, cache=False, device="cpu").tensor.mean(0))
    return DualEncoder(encoder, Lookup(Words(train.classes), table), centre, nn.Parameter(torch.zeros(())))


def test_classes_are_found_by_their_names(train, test) -> None:
    report = evaluate("zeroshot", knowing(PixelEncoder(8), train), test, templates=None, **PLAIN)
    top1 = report.metrics["top1"]
    assert top1.value > 80 and top1.low < top1.value <= top1.high and top1.n == len(test)
    assert report.main == "top1" and "top5" not in report.metrics and report.details["chance"]["top1"] == 25
    rows = report.details["per_class"]
    assert [row["class"] for row in rows] == list(test.classes)
    assert sum(row["n"] * row["top1"] for row in rows) / len(test) == pytest.approx(top1.value)
    assert report.metrics["mean_per_class"].value == pytest.approx(np.mean([row["top1"] for row in rows]))


def test_the_ensemble_is_the_mean_of_unit_vectors(image_text_folder: Folder) -> None:
    encoder = load_encoder(image_text_folder("clip"))
    words, templates = ("cat", "red square", "dog"), ("a photo of a {}", "{} over the grass {}")
    made, cut = class_vectors(encoder, words, templates, ProtocolConfig(**PLAIN))
    with torch.no_grad():
        for row, word in zip(made, words, strict=True):
            each = encoder.encode_text([f"a photo of a {word}", f"{word} over the grass {word}"])
            torch.testing.assert_close(row, F.normalize(each.mean(0), dim=0), atol=1e-6, rtol=1e-5)
    assert cut == 0


def test_predictions_equal_the_model_asked_image_by_image(image_text_folder: Folder) -> None:
    rng = np.random.default_rng(0)
    names = ("cat", "dog", "red_square", "blue-circle", "grass", "white", "yellow")
    labels = rng.integers(0, 7, 40)
    source = ArraySource(rng.integers(0, 255, (40, 32, 32, 3)).astype(np.uint8), labels, classes=names, name="noise")
    encoder = load_encoder(image_text_folder("siglip"))
    report = evaluate("zeroshot", encoder, source, **PLAIN)
    from imprint.evals.features import extract

    with torch.no_grad():
        images = encoder.project(extract(encoder, source, cache=False, device="cpu").tensor)
        classes = torch.stack([
            F.normalize(encoder.encode_text([t.replace("{}", n.replace("_", " ").replace("-", " ")) for t in TEMPLATES])
            .mean(0), dim=0) for n in names
        ])  # fmt: skip
    ranked = (images @ classes.T).argsort(1, descending=True).numpy()
    assert report.metrics["top1"].value == pytest.approx(100 * (ranked[:, 0] == labels).mean())
    assert report.metrics["top5"].value == pytest.approx(100 * (ranked[:, :5] == labels[:, None]).any(1).mean())


def test_words_from_files(tmp_path: Path, train) -> None:
    assert class_words(train, None) == ("ant", "bee", "cat", "dog")
    (tmp_path / "lines.txt").write_text("fire ant\nhoney bee\nhouse cat\nold dog\n")
    (tmp_path / "tab.txt").write_text("dog\told dog\nant\tfire ant\nbee\thoney bee\ncat\thouse cat\n")
    (tmp_path / "words.json").write_text(
        json.dumps({"dog": "old dog", "ant": ["fire ant", "x"], "bee": "honey bee", "cat": "house cat"}, indent=1)
    )
    for name in ("lines.txt", "tab.txt", "words.json"):
        assert class_words(train, str(tmp_path / name)) == ("fire ant", "honey bee", "house cat", "old dog")
    (tmp_path / "short.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match="names 2 classes"):
        class_words(train, str(tmp_path / "short.txt"))
    (tmp_path / "other.txt").write_text("dog\told dog\nantt\tx\nbee\ty\ncat\tz\n")
    with pytest.raises(DataError, match="'ant' .it has 'antt'"):
        class_words(train, str(tmp_path / "other.txt"))
    coded = ArraySource(
        np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]), classes=("n01440764", "n02102040"), name="x"
    )
    with pytest.raises(ConfigError, match="--names FILE"):
        class_words(coded, None)
    (tmp_path / "templates.txt").write_text("# comment\na {} here\nno place\n")
    with pytest.raises(ConfigError, match="'no place'"):
        read_templates(str(tmp_path / "templates.txt"))
    with pytest.raises(DataError, match="cannot be read"):
        read_templates(str(tmp_path / "absent.txt"))


def test_unsuited_input_is_refused(tiny, train, unlabelled, image_text_folder: Folder) -> None:
    with pytest.raises(ConfigError, match="encodes images only"):
        evaluate("zeroshot", tiny, train, **PLAIN)
    with pytest.raises(DataError, match="has none"):
        evaluate("zeroshot", load_encoder(image_text_folder("clip")), unlabelled, **PLAIN)


def test_fine_tuning_takes_the_image_tower_and_leaves_the_texts(image_text_folder: Folder) -> None:
    from imprint.evals.finetune import trainable_copy

    encoder = load_encoder(image_text_folder("clip"))
    twin = trainable_copy(encoder, 0.0)
    assert not isinstance(twin, DualEncoder) and twin.training and not encoder.training
    assert sum(p.numel() for p in twin.parameters()) == sum(p.numel() for p in encoder.vision.parameters())
    twin(torch.randn(2, 3, 32, 32)).pooled_BD.sum().backward()
    assert all(p.grad is None for p in encoder.parameters())
