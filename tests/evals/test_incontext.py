import json
import math

import numpy as np
import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.backbones.causal import Request, Scored, score
from imprint.backbones.stored import save_encoder
from imprint.backbones.text_tokenizer import train_tokenizer
from imprint.cli.main import main
from imprint.core.errors import ConfigError, DataError
from imprint.evals.evaluate import evaluate
from imprint.evals.incontext import InContextConfig, judged
from imprint.evals.language_tasks import Item, open_task
from imprint.viz.evaluation_page import build_evaluation_page

COLOURS = ("red", "blue", "green")


def network(kind="gpt2", context=96):
    tokenizer = train_tokenizer(["Q: which colour is the thing? A: red blue green"] * 2, vocabulary=340)
    torch.manual_seed(0)
    arch = {"embed_dim": 32, "depth": 2, "num_heads": 2, "dropout": 0.0}
    made = build_encoder(
        f"text:{kind}", image_size=32, arch=arch, vocabulary=tokenizer.vocabulary, context=context
    ).eval()  # fmt: skip
    for parameter in made.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    made.tokenizer = tokenizer
    return made


@pytest.fixture(scope="module")
def choices(tmp_path_factory):
    path = tmp_path_factory.mktemp("task") / "choices.jsonl"
    lines = ({"question": f"which colour is thing {i}?", "choices": COLOURS, "answer": i % 3} for i in range(12))
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(scope="module")
def completions(tmp_path_factory):
    path = tmp_path_factory.mktemp("task") / "completions.jsonl"
    lines = ({"prompt": f"the thing {i} is", "completion": COLOURS[i % 3]} for i in range(9))
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_choices_are_judged_by_hand():
    items = [Item("", True, ("a", "b", "c"), 1), Item("", True, ("a", "b"), 0), Item("", True, ("a", "b"), 0)]
    nats = np.array([4.0, 3.0, 6.0, 2.0, 1.0, 5.0, 5.0])
    tokens = np.array([1, 1, 3, 2, 1, 1, 1])
    bare = np.array([4.0, 1.0, 9.0, 9.0, 1.0, 1.0, 2.0])
    found = judged(items, Scored(nats, tokens, np.ones(7, np.bool_)), bare)
    assert found.right_N["sum"].tolist() == [True, False, False]  # 3 < 4, 6; 2 > 1; a tie
    assert found.right_N["token"].tolist() == [False, False, False]  # 6/3 wins; 2/2 = 1/1, a tie; a tie
    assert found.right_N["unconditional"].tolist() == [False, True, False]  # 6-9 wins; 2-9; 5-2 wins
    assert found.said_N["unconditional"].tolist() == [2, 0, 1]
    assert found.nats_N.tolist() == [3.0, 2.0, 5.0] and found.tokens_N.tolist() == [1, 2, 1]


def test_figures_follow_from_scores_of_prompts_written_by_hand(choices):
    model = network()
    report = evaluate("incontext", model, choices, shots=(0,))
    tokenizer, items = model.tokenizer, open_task(choices).items
    right, nats, tokens = {"sum": 0, "token": 0, "unconditional": 0}, [], 0

    def cost(prompt, answer):
        head = tokenizer.ids([prompt])[0].tolist()
        whole = tokenizer.ids([f"{prompt} {answer}"])[0].tolist()
        assert whole[: len(head)] == head
        ids = [tokenizer.special.end, *whole]
        return float(score(model, [Request(ids, len(whole) - len(head))]).nats_R[0]), len(whole) - len(head)

    for item in items:
        own = [cost(f"Q: {item.text}\nA:", answer) for answer in item.answers]
        bare = [cost("A:", answer)[0] for answer in item.answers]
        ways = {
            "sum": [c for c, _ in own],
            "token": [c / n for c, n in own],
            "unconditional": [c - b for (c, _), b in zip(own, bare, strict=True)],
        }
        for way, values in ways.items():
            right[way] += int(np.argmin(values)) == item.right
        nats.append(own[item.right][0])
        tokens += own[item.right][1]
    for way, hits in right.items():
        metric = report.metrics[f"accuracy_{way}@0"]
        assert metric.value == pytest.approx(100 * hits / 12) and metric.n == 12 and metric.low < metric.high
    assert report.metrics["log_likelihood@0"].value == pytest.approx(-np.mean(nats), rel=1e-4)
    assert report.metrics["nats_per_token@0"].value == pytest.approx(sum(nats) / tokens, rel=1e-4)
    assert report.main == "accuracy_token@0" and report.details["chance"] == pytest.approx(100 / 3)
    assert report.figures == () and len(report.details["examples"]) == 6


def test_completions_are_exact_when_the_likeliest_tokens_write_them(completions):
    model = network()
    report = evaluate("incontext", model, completions, shots=(0, 2), shown=9, separator="\\n")
    assert {name.partition("@")[0] for name in report.metrics} == {"exact_match", "log_likelihood", "nats_per_token"}
    assert report.main == "exact_match@2" and "chance" not in report.details
    for row in report.details["examples"]:
        assert row["prompt"].count("\n") == 2 and row["right"] == row["said"].strip().startswith(row["right answer"])
    # A model that writes one word whatever it reads knows the answers that are this word.
    (red,) = model.tokenizer.ids([" red"])[0].tolist()
    final = model.network.ln_f
    torch.nn.init.zeros_(final.weight)
    final.bias.data.copy_(100 * model.token_embedding[red])
    report = evaluate("incontext", model, completions, shots=(0, 2), shown=9)
    for k in (0, 2):
        assert report.metrics[f"exact_match@{k}"].value == pytest.approx(100 / 3)
    assert all(row["right"] == (row["right answer"] == "red") for row in report.details["examples"])


def test_an_undecided_model_is_at_log_k_and_every_choice_ties(choices):
    model = network()
    torch.nn.init.zeros_(model.token_embedding)
    report = evaluate("incontext", model, choices, shots=(0, 3))
    for k in (0, 3):
        assert report.metrics[f"nats_per_token@{k}"].value == pytest.approx(math.log(model.vocabulary))
        assert report.metrics[f"accuracy_unconditional@{k}"].value == 0.0  # ties count as wrong


def test_batches_do_not_matter_and_the_seed_draws_other_demonstrations(choices):
    model = network()
    one = evaluate("incontext", model, choices, shots=(0, 2), batch_size=64)
    two = evaluate("incontext", model, choices, shots=(0, 2), batch_size=1)
    for name, metric in one.metrics.items():
        assert two.metrics[name].value == pytest.approx(metric.value, rel=1e-4), name
    other = evaluate("incontext", model, choices, shots=(0, 2), seed=5)
    assert other.metrics["log_likelihood@0"] == one.metrics["log_likelihood@0"]
    assert other.metrics["log_likelihood@2"] != one.metrics["log_likelihood@2"]


def test_demonstrations_come_from_the_train_file(choices, tmp_path):
    path = tmp_path / "shots.jsonl"
    lines = ({"question": f"another {i}?", "choices": ["x", "y"], "answer": 0} for i in range(3))
    path.write_text("\n".join(map(json.dumps, lines)))
    report = evaluate("incontext", network(), path, choices, shots=(2,), limit=5, shown=2)
    assert report.metrics["accuracy_token@2"].n == 5 and set(report.data) == {"train", "test"}
    for row in report.details["examples"]:
        first, second, query = row["prompt"].split("\n\n")
        assert first.startswith("Q: another") and second.startswith("Q: another") and first != second
        assert first.endswith("A: x") and query.startswith("Q: which colour") and query.endswith("\nA:")


def test_what_does_not_fit_is_counted(choices):
    report = evaluate("incontext", network(context=40), choices, shots=(0, 8))
    told = {row["shots"]: row for row in report.details["prompts"]}
    assert told[0]["prompts that lost demonstrations"] == 0
    assert told[8]["prompts that lost demonstrations"] == 12 and told[8]["demonstrations used"] < 8
    assert told[8]["longest, tokens"] <= 40


def test_the_command_prints_figures_and_the_page_shows_prompts(choices, tmp_path, capsys):
    run = tmp_path / "run"
    save_encoder(network(), run)
    out = tmp_path / "report.json"
    words = ["--encoder", str(run), "--train", str(choices), "--shots", "0", "1", "--out", str(out)]
    assert main(["evaluate", "incontext", *words, "--instruction", "Name it.\\n"]) == 0
    printed = capsys.readouterr().out
    assert "* accuracy_token@1" in printed and "log_likelihood@0" in printed
    page = build_evaluation_page(out).read_text()
    assert "Q: which colour is thing" in page and "Name it." in page
    assert "chance" in page and "demonstrations" in page and "accuracy_unconditional@1" in page
    assert "--instruction" in json.loads(out.read_text())["command"]


def test_what_cannot_be_asked_is_refused(choices, completions):
    with pytest.raises(ConfigError, match="'text:bert' looks at both sides"):
        evaluate("incontext", network("bert"), choices)
    with pytest.raises(ConfigError, match="does not predict text"):
        evaluate("incontext", build_encoder("resnet18", image_size=32), choices)
    with pytest.raises(DataError, match="different kinds"):
        evaluate("incontext", network(), choices, completions)
    with pytest.raises(DataError, match="--shots 12"):
        evaluate("incontext", network(), choices, shots=(0, 12))
    for changes in ({"shots": ()}, {"shots": (1, 1)}, {"shots": (-1,)}, {"limit": -1}):
        with pytest.raises(ConfigError, match="incontext"):
            InContextConfig(**changes)
    with pytest.raises(ConfigError, match="score 'tokens'.*token"):
        InContextConfig(score="tokens")
