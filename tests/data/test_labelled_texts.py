"""Labelled texts: fields found by their usual names, classes counted by name, errors that name the line."""

import json

import pytest

from imprint.core.errors import ConfigError, DataError
from imprint.data.labelled_texts import LabelledTexts, open_labelled_texts


def test_json_lines_give_texts_and_classes_by_name(tmp_path):
    file = tmp_path / "reviews.jsonl"
    rows = [{"review": "good", "label": "pos"}, {"review": "bad", "label": "neg"}, {"review": "fine", "label": "pos"}]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    source = open_labelled_texts(file)
    assert (source.classes, source.labels.tolist(), len(source)) == (("neg", "pos"), [1, 0, 1], 3)
    assert source.texts(1) == ("bad",) and source.second is None


def test_tables_give_pairs_and_numbers_count_as_numbers(tmp_path):
    file = tmp_path / "pairs.tsv"
    file.write_text("sentence1\tsentence2\tlabel\na, b\tc\t10\nd\te\t2\n")
    source = open_labelled_texts(file)
    assert source.texts(0) == ("a, b", "c") and source.classes == ("2", "10") and source.labels.tolist() == [1, 0]


def test_fields_can_be_named(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("q,a,kind\nwho,me,x\n")
    assert open_labelled_texts(file, text=("a",), label="kind").texts(0) == ("me",)
    with pytest.raises(ConfigError, match=r"no field 'kinds'; did you mean 'kind'"):
        open_labelled_texts(file, text=("q",), label="kinds")
    with pytest.raises(ConfigError, match="looks like a text"):
        open_labelled_texts(file)


def test_what_is_wrong_is_named_with_its_line(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "x", "label": 1}\n{"text": "", "label": 0}\n')
    with pytest.raises(DataError, match=r"line 2 of .* has no 'text'"):
        open_labelled_texts(file)
    file.write_text('{"text": "x", "label": 1}\n{"text": \n')
    with pytest.raises(DataError, match="line 2 of .* is no JSON"):
        open_labelled_texts(file)
    with pytest.raises(DataError, match="cannot be read"):
        open_labelled_texts(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="with named fields"):
        open_labelled_texts(tmp_path)


def test_test_texts_count_by_the_classes_of_the_training_texts():
    train = LabelledTexts.of(["a", "b", "c"], ["x", "y", "z"])
    test = LabelledTexts.of(["d", "e"], ["z", "y"]).renumbered(train.classes)
    assert test.labels.tolist() == [2, 1]
    with pytest.raises(DataError, match="class 'w'"):
        LabelledTexts.of(["d"], ["w"]).renumbered(train.classes)
