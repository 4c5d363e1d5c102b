from collections import Counter

import pytest

from imprint.core.errors import DataError
from imprint.evals.language_tasks import Item, LanguageTask
from imprint.evals.prompts import Template, by_text, demonstrations, joined


def question(text, *answers, right=0):
    return Item(text, True, answers or ("yes",), right)


def task(count, prefix="q"):
    return LanguageTask(tuple(question(f"{prefix}{i}", f"a{i}") for i in range(count)), "task", False)


def test_prompts_by_hand():
    shots = [question("one?", "no", "yes", right=1), question("two?", "no", "yes")]
    query = question("three?", "no", "yes")
    assert Template().prompt(query, ()) == "Q: three?\nA:"
    assert Template().prompt(query, shots) == "Q: one?\nA: yes\n\nQ: two?\nA: no\n\nQ: three?\nA:"
    own = Template("Answer.", "Question: ", "\nSay: ", "\n---\n")
    assert own.prompt(query, shots[:1]) == "Answer.\n---\nQuestion: one?\nSay: yes\n---\nQuestion: three?\nSay: "


def test_texts_to_go_on_with_stand_bare():
    item = Item("The sky is", False, ("blue",), 0)
    assert Template().prompt(item, [Item("Grass is", False, (" green",), 0)]) == "Grass is green\n\nThe sky is"
    assert Template(answer_prefix=" ->").prompt(item, ()) == "The sky is ->"


@pytest.mark.parametrize(
    ("text", "answer", "whole"),
    [
        ("A:", "b", "A: b"),
        ("A: ", "b", "A: b"),
        ("A:\n", "b", "A:\nb"),
        ("so", ", too", "so, too"),
        ("A:", " b", "A: b"),
    ],
)
def test_one_space_stands_before_an_answer(text, answer, whole):
    assert joined(text, answer) == whole


def test_no_query_sees_itself_and_fewer_shots_are_the_nearest_of_more():
    pool = task(7)
    same = by_text(pool.items)
    for item in pool.items:
        most = demonstrations(pool, item, 6, 0, same)
        assert item not in most and len(set(most)) == 6
        for k in range(6):
            assert demonstrations(pool, item, k, 0, same) == most[6 - k :]


def test_a_twin_of_the_query_in_another_file_is_no_demonstration():
    pool = task(5)
    query = question("q3", "another answer")
    assert all(shot.text != "q3" for shot in demonstrations(pool, query, 4, 0, by_text(pool.items)))


def test_draws_are_even_and_depend_on_seed_and_query_alone():
    pool, queries = task(10), task(2000, "other")
    same = by_text(pool.items)
    drawn = Counter(shot.text for query in queries.items for shot in demonstrations(pool, query, 3, 0, same))
    assert len(drawn) == 10 and all(abs(n - 600) < 6 * (2000 * 0.3 * 0.7) ** 0.5 for n in drawn.values())
    one = demonstrations(pool, queries.items[5], 4, 0, same)
    assert one == demonstrations(pool, queries.items[5], 4, 0, same)
    assert any(
        demonstrations(pool, query, 4, 1, same) != demonstrations(pool, query, 4, 0, same)
        for query in queries.items[:5]
    )


def test_too_small_a_pool_is_refused():
    pool = task(4)
    with pytest.raises(DataError, match="3 demonstrations.*--shots 4"):
        demonstrations(pool, pool.items[0], 4, 0, by_text(pool.items))
