"""The report of a run of text shows what was read, as words, and leaves out what belongs to images."""

import json

import numpy as np
import torch

from imprint.backbones.text_tokenizer import train_tokenizer
from imprint.train.tensorfile import write_tensors
from imprint.viz.report import build_report
from imprint.viz.run_folder import RunFolder
from imprint.viz.text_rows import readable, text_sections

TEXT = "A <dog> runs over the grass & sleeps."


def run_of_text(folder):
    tokenizer = train_tokenizer([TEXT] * 3, "bpe", vocabulary=300)
    (folder / "samples").mkdir(parents=True)
    (folder / "tokenizer.json").write_text(tokenizer.json)
    config = {
        "name": "bert",
        "encoder": {"name": "text:bert", "image_size": 224},
        "batch_size": 4,
        "data": {"train": ["x"]},
    }
    (folder / "config.json").write_text(json.dumps(config))
    line = {"step": 3, "loss": 5.0, "probe/gain": 0.25, "probe/nats": 5.5}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    s = tokenizer.special
    ids = np.array([s.start, *tokenizer.ids([TEXT])[0], s.end, -1, -1], dtype=np.int64)
    rows = {
        "tokens:text": torch.from_numpy(np.stack([ids, ids])),
        "tokens:text:segment": torch.zeros(2, len(ids)).long(),
    }
    write_tensors(folder / "samples" / "views.safetensors", rows)
    return tokenizer, ids


def test_rows_are_words_again_with_special_tokens_in_brackets(tmp_path):
    tokenizer, ids = run_of_text(tmp_path)
    assert readable(ids, tokenizer) == f"[CLS] {TEXT} [SEP]"
    (section,) = text_sections(RunFolder.open(tmp_path))
    assert "A &lt;dog&gt; runs over the grass &amp; sleeps." in section.body and "segment" not in section.body


def test_the_report_has_no_parts_of_images(tmp_path):
    run_of_text(tmp_path)
    page = build_report(tmp_path).read_text()
    assert "Rows seen" in page and "0.25 nats" in page and "224 px" not in page
    assert "Neighbours" not in page and "This part failed" not in page


def test_a_lost_tokenizer_is_a_reason(tmp_path):
    run_of_text(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (section,) = text_sections(RunFolder.open(tmp_path))
    assert "tokenizer" in section.reason
