import json

import pytest

from imprint.core.errors import DataError
from imprint.evals.language_tasks import Item, open_task


def written(tmp_path, *lines, name="task.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_choices_are_told_by_number_text_or_letter(tmp_path):
    choices = ["red", "blue", "C"]
    answers = [0, "blue", "c", "B", 2, "C"]
    path = written(tmp_path, *({"question": "which?", "choices": choices, "answer": a} for a in answers), "")
    task = open_task(path)
    assert task.choice and len(task) == 6
    assert [item.right for item in task.items] == [0, 1, 2, 1, 2, 2]
    assert task.items[0] == Item("which?", True, ("red", "blue", "C"), 0) and task.items[3].answer == "blue"


def test_texts_come_from_prompt_context_and_question(tmp_path):
    lines = [
        {"prompt": "once", "completion": "upon"},
        {"context": "a passage", "completion": "goes on"},
        {"context": "a passage", "question": "why?", "answer": "because"},
    ]
    task = open_task(written(tmp_path, *lines))
    assert not task.choice
    assert [(i.text, i.asked, i.answer) for i in task.items] == [
        ("once", False, "upon"), ("a passage", False, "goes on"), ("a passage\nwhy?", True, "because"),
    ]  # fmt: skip


def test_two_files_are_one_task_and_the_content_is_the_fingerprint(tmp_path):
    one = written(tmp_path, {"prompt": "a", "completion": "b"}, name="1.jsonl")
    two = written(tmp_path, {"prompt": "c", "completion": "d"}, name="2.jsonl")
    both = open_task((one, two))
    assert [i.text for i in both.items] == ["a", "c"] and str(one) in both.spec and str(two) in both.spec
    copy = written(tmp_path, {"completion": "b", "prompt": "a"}, name="3.jsonl")
    assert open_task(copy).fingerprint == open_task(str(one)).fingerprint != both.fingerprint
    assert open_task(both) is both


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "no JSON"),
        ("[1]", "no JSON object"),
        ({"choices": ["a", "b"], "answer": 0}, "no prompt, context or question"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "at least two"),
        ({"question": "q", "choices": ["a", "b"]}, "no answer"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "none of the 2 choices"),
        ({"question": "q", "choices": ["a", "b"], "answer": True}, "none of the 2 choices"),
        ({"question": "q", "choices": ["a", "b"], "answer": "D"}, "none of the 2 choices"),
        ({"question": "q", "choices": ["a", 3], "answer": 0}, "a choice must be a text"),
        ({"question": " ", "choices": ["a", "b"], "answer": 0}, "question must be a text"),
        ({"prompt": "p"}, "neither choices nor a completion"),
        ({"prompt": "p", "completion": ""}, "completion must be a text"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    with pytest.raises(DataError, match=rf"task\.jsonl:2.*{said}"):
        open_task(written(tmp_path, "", line))


def test_files_that_hold_no_task_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        open_task(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match="has no lines"):
        open_task(written(tmp_path, ""))
    mixed = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "choices": ["b", "c"], "answer": 0}]
    with pytest.raises(DataError, match=r"chosen at .*:2 and written at .*:1"):
        open_task(written(tmp_path, *mixed))
