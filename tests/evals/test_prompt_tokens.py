import pytest

from imprint.backbones.text_tokenizer import train_tokenizer
from imprint.core.errors import DataError
from imprint.evals.language_tasks import Item
from imprint.evals.prompt_tokens import build_prompts, tokenized
from imprint.evals.prompts import Template

TEXT = ["Q: is the sky blue? A: yes it is. Q: is grass red? A: no it is not."] * 3


@pytest.fixture(scope="module", params=["bpe", "wordpiece", "unigram"])
def tokenizer(request):
    return train_tokenizer(TEXT, request.param, vocabulary=300)


def shot(i, answers=("yes", "no it is not")):
    return Item(f"is the sky {'very ' * i}blue?", True, answers, i % 2)


def test_requests_hold_the_prompt_and_score_the_answer(tokenizer):
    item = shot(0)
    made = build_prompts(tokenizer, Template(), [item], [[shot(1)]], 200)
    assert made.prompts_N == ["Q: is the sky very blue?\nA: no it is not\n\nQ: is the sky blue?\nA:"]
    assert made.used_N.tolist() == [1] and made.cut == 0
    for request, answer in zip(made.requests_A, item.answers, strict=True):
        assert request.ids[0] == tokenizer.special.end
        assert list(request.ids[1:]) == tokenizer.ids([f"{made.prompts_N[0]} {answer}"])[0].tolist()
        assert tokenizer.decode(request.ids[-request.scored :]).strip() == answer
        before = request.ids[1 : len(request.ids) - request.scored]
        assert list(before) == tokenizer.ids([made.prompts_N[0]])[0].tolist()


def test_a_space_at_the_end_of_a_prompt_belongs_to_the_answer(tokenizer):
    (with_space,), (without,) = tokenized(tokenizer, ["A: ", "A:"], [Item("", False, ("yes",), 0)] * 2)
    assert with_space == without


def test_demonstrations_farthest_from_the_query_leave_first(tokenizer):
    item, shots = shot(0), [shot(i) for i in (1, 2, 3, 4, 5, 6, 7)]
    sizes = {}
    for k in range(8):
        own = build_prompts(tokenizer, Template(), [item], [shots[7 - k :]], 10_000)
        sizes[k] = max(len(request.ids) for request in own.requests_A)
    assert list(sizes.values()) == sorted(sizes.values())
    for k in range(8):
        for context in (sizes[k], sizes[k] + 1):
            made = build_prompts(tokenizer, Template(), [item, shot(0)], [shots, shots], context)
            assert made.used_N.tolist() == [k, k] and made.cut == 0
            assert made.prompts_N[0] == Template().prompt(item, shots[7 - k :])
            assert (
                max(len(request.ids) for request in made.requests_A) == sizes[k]
            )  # the longest answer decides for all


def test_without_demonstrations_the_beginning_of_the_text_is_left_out(tokenizer):
    item = shot(30)
    whole = build_prompts(tokenizer, Template(), [item], [[]], 1000)
    made = build_prompts(tokenizer, Template(), [item], [[shot(1), shot(2)]], 16)
    assert made.cut == 1 and made.used_N.tolist() == [0]
    for short, long in zip(made.requests_A, whole.requests_A, strict=True):
        assert list(short.ids) == list(long.ids[-16:]) and short.scored == long.scored


def test_an_answer_longer_than_the_context_is_refused(tokenizer):
    with pytest.raises(DataError, match="leave the item out"):
        build_prompts(tokenizer, Template(), [Item("why?", True, ("no " * 30, "yes"), 0)], [[]], 16)
