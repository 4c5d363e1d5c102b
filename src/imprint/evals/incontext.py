"""What does a causal language model do with a task that it only reads about: zero, one or a few demonstrations?

Shapes: N items, C answers of an item, A answers of all items, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch

from imprint.backbones.causal import Request, Scored, require_causal, score
from imprint.backbones.encoder import Encoder
from imprint.backbones.generation import generate
from imprint.backbones.language_model import LanguageModel
from imprint.backbones.text_tokenizer import TextTokenizer
from imprint.core.errors import ConfigError, DataError, unknown
from imprint.data.sources import spread
from imprint.evals.intervals import accuracy, mean_of
from imprint.evals.language_tasks import Item, LanguageTask, open_task
from imprint.evals.prompt_tokens import Prompted, build_prompts, tokenized
from imprint.evals.prompts import Template, by_text, demonstrations
from imprint.evals.protocol import EvalData, Protocol, ProtocolConfig, describe, timed
from imprint.evals.report import Figure, Metric, Report
from imprint.evals.represent import pick_device, pick_precision, resting
from imprint.viz.charts import Chart, Series, draw

Measure = Literal["sum", "token", "unconditional"]
MEASURES: tuple[Measure, ...] = ("token", "sum", "unconditional")
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class InContextConfig(ProtocolConfig):
    r"""Settings of the prompts (arXiv 2005.14165, Sec. 2.4). In texts `\n` is a new line and `\t` a tab.

    Attributes:
        shots: numbers of demonstrations before a query; each gives a column of figures.
        score: which choice wins, in the main figure: `token`, the largest likelihood per token; `sum`, of the whole
            answer; `unconditional`, the most above its likelihood after the words for an answer alone.
        instruction: what the model reads first.
        input_prefix: before the text of an item; None is `Q: ` for questions and nothing for texts to go on with.
        answer_prefix: before an answer; None is `\nA:` for questions and nothing for texts to go on with.
        separator: between demonstrations.
        limit: score at most this many items, spread evenly over the file (0: all).
        shown: items in the report with their prompts.
    """

    shots: tuple[int, ...] = (0, 1, 4)
    score: Measure = "token"
    instruction: str = ""
    input_prefix: str | None = None
    answer_prefix: str | None = None
    separator: str = "\\n\\n"
    limit: int = 0
    shown: int = 6

    def __post_init__(self) -> None:
        """Check the counts."""
        super().__post_init__()
        if not self.shots or min(self.shots) < 0 or len(set(self.shots)) < len(self.shots):
            raise ConfigError("incontext: --shots are different numbers of demonstrations, at least 0: --shots 0 1 4.")
        if self.score not in MEASURES:
            raise unknown("score", self.score, MEASURES)
        if self.limit < 0 or self.shown < 0:
            raise ConfigError("incontext: --limit and --shown must not be negative.")

    def template(self) -> Template:
        """Return the template that the texts spell."""
        texts = (self.instruction, self.input_prefix, self.answer_prefix, self.separator)
        instruction, before, after, between = (
            None if text is None else text.replace("\\n", "\n").replace("\\t", "\t") for text in texts
        )
        return Template(instruction or "", before, after, between or "")


@dataclass
class Outcome:
    """What one number of demonstrations gave.

    Attributes:
        right_N: by measure, or `exact`, whether each item was answered rightly.
        said_N: by measure, the number of the chosen answer; empty for completions.
        nats_N: of the right answer.
        tokens_N: of the right answer.
    """

    right_N: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    said_N: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    nats_N: F64 = field(default_factory=lambda: np.zeros(0))
    tokens_N: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


class InContext(Protocol):
    """The model chooses or writes each answer, after 0, 1, ... demonstrations; no weight changes."""

    name: ClassVar[str] = "incontext"
    Config: ClassVar[type[ProtocolConfig]] = InContextConfig
    takes_test: ClassVar[bool] = True

    @classmethod
    def open(cls, spec: Any, config: Any) -> LanguageTask:
        """Return a task of JSON lines (see `open_task`)."""
        return open_task(spec)

    def run(self, encoder: Encoder, data: EvalData, config: InContextConfig | None = None) -> Report:
        """Score `data.test` with demonstrations from `data.train`, or `data.train` with those from its other items."""
        config = config or InContextConfig()
        model, tokenizer = require_causal(encoder, self.name)
        pool: LanguageTask = data.train
        task: LanguageTask = data.train if data.test is None else data.test
        if pool.choice != task.choice:
            raise DataError(f"'{pool.spec}' and '{task.spec}' are tasks of different kinds: choices, and completions.")
        rows = spread(len(task), config.limit) if config.limit else range(len(task))
        items = [task.items[int(i)] for i in rows]
        same, most = by_text(pool.items), max(config.shots)
        drawn = [demonstrations(pool, item, most, config.seed, same) for item in items]
        cost = {"questions": float(len(items)), "tokens": 0.0}
        device = pick_device(config.device, model)
        dtype = pick_precision(config.precision, device)
        template = config.template()
        prompted: dict[int, Prompted] = {}
        outcomes: dict[int, Outcome] = {}
        with resting(model, device):
            bare = None
            if task.choice:
                with timed(cost, "score_s"):
                    bare = _unconditional(model, tokenizer, template, items, config, dtype)
            for k in config.shots:
                with timed(cost, "prompts_s"):
                    made = build_prompts(tokenizer, template, items, [d[most - k :] for d in drawn], model.context)
                prompted[k] = made
                cost["tokens"] += sum(len(request.ids) for request in made.requests_A)
                with timed(cost, "score_s"):
                    scored = score(model, made.requests_A, rows=config.batch_size, dtype=dtype)
                outcomes[k] = judged(items, scored, bare)
            with timed(cost, "examples_s"):
                examples = _examples(model, items, prompted[most], outcomes[most], config, tokenizer)
        metrics: dict[str, Metric] = {}
        for k, outcome in outcomes.items():
            for measure, right_N in outcome.right_N.items():
                name = "exact_match" if measure == "exact" else f"accuracy_{measure}"
                metrics[f"{name}@{k}"] = accuracy(int(right_N.sum()), len(items))
            metrics[f"log_likelihood@{k}"] = mean_of(-outcome.nats_N)
            metrics[f"nats_per_token@{k}"] = Metric(
                value=float(outcome.nats_N.sum() / outcome.tokens_N.sum()), n=int(outcome.tokens_N.sum())
            )
        chance = 100.0 * float(np.mean([1 / len(item.answers) for item in items])) if task.choice else None
        main = f"accuracy_{config.score}" if task.choice else "exact_match"
        details: dict[str, Any] = {
            "kind": "choices" if task.choice else "completions, the likeliest token at a time",
            "demonstrations": f"other items of {pool.spec}" if data.test is None else pool.spec,
            "context": model.context,
            "prompts": [_described(k, prompted[k]) for k in config.shots],
            "ties": "count as wrong",
            "examples": examples,
        }
        if chance is not None:
            details["chance"] = chance
        sources = {"train": {**describe(data.train), "unit": "questions"}}
        if data.test is not None:
            sources["test"] = {**describe(data.test), "unit": "questions"}
        return Report(
            protocol=self.name,
            encoder=encoder.name,
            data=sources,
            metrics=metrics,
            main=f"{main}@{most}",
            details=details,
            cost=cost,
            figures=_curve(metrics, outcomes, chance),
        )


def _unconditional(
    model: LanguageModel,
    tokenizer: TextTokenizer,
    template: Template,
    items: Sequence[Item],
    config: InContextConfig,
    dtype: torch.dtype,
) -> F64:
    """Return the nats (A,) of every answer after the words for an answer alone (arXiv 2005.14165, Sec. 2.4)."""
    wanted = [(template.lead(item).lstrip(), answer) for item in items for answer in item.answers]
    place = {pair: i for i, pair in enumerate(dict.fromkeys(wanted))}
    single = [Item("", False, (answer,), 0) for _, answer in place]
    requests = [own[0] for own in tokenized(tokenizer, [lead for lead, _ in place], single)]
    kept = [Request(r.ids[-model.context :], min(r.scored, model.context - 1)) for r in requests]
    scored = score(model, kept, rows=config.batch_size, dtype=dtype)
    return scored.nats_R[[place[pair] for pair in wanted]]


def judged(items: Sequence[Item], scored: Scored, bare_A: F64 | None) -> Outcome:
    """Return what was chosen and whether it is right; for completions, whether they would be written exactly.

    The right choice must be better than all others: ties count as wrong.

    Args:
        items: N.
        scored: of every answer, item by item.
        bare_A: nats of every answer by itself; None for completions.
    """
    sizes = np.array([len(item.answers) for item in items])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    right_at = starts + np.array([item.right for item in items])
    outcome = Outcome(nats_N=scored.nats_R[right_at], tokens_N=scored.tokens_R[right_at])
    if bare_A is None:
        outcome.right_N["exact"] = scored.greedy_R[right_at]
        return outcome
    owner_A = np.repeat(np.arange(len(items)), sizes)
    costs: Mapping[Measure, F64] = {
        "token": scored.nats_R / scored.tokens_R,
        "sum": scored.nats_R,
        "unconditional": scored.nats_R - bare_A,
    }
    for measure in MEASURES:
        cost_A = costs[measure]
        least_N = np.minimum.reduceat(cost_A, starts)
        best_A = cost_A == least_N[owner_A]
        alone_N = np.add.reduceat(best_A.astype(np.int64), starts) == 1
        outcome.right_N[measure] = best_A[right_at] & alone_N
        outcome.said_N[measure] = np.array(
            [int(np.argmax(best_A[s : s + n])) for s, n in zip(starts, sizes, strict=True)]
        )
    return outcome


def _described(k: int, made: Prompted) -> dict[str, Any]:
    return {
        "shots": k,
        "demonstrations used": float(made.used_N.mean()),
        "prompts that lost demonstrations": int((made.used_N < k).sum()),
        "prompts that lost their beginning": made.cut,
        "longest, tokens": max(len(request.ids) for request in made.requests_A),
    }


def _examples(
    model: LanguageModel,
    items: Sequence[Item],
    made: Prompted,
    outcome: Outcome,
    config: InContextConfig,
    tokenizer: TextTokenizer,
) -> list[dict[str, Any]]:
    """Return some items with their prompts, what was answered and what is right."""
    starts = np.concatenate([[0], np.cumsum([len(item.answers) for item in items])])
    rows = []
    for i in spread(len(items), config.shown).tolist() if config.shown else ():
        item, request = items[i], made.requests_A[int(starts[i])]
        if outcome.said_N:
            said = item.answers[int(outcome.said_N[config.score][i])]
            right = bool(outcome.right_N[config.score][i])
        else:
            prompt = torch.tensor([list(request.ids[: len(request.ids) - request.scored])])
            written = generate(model, prompt, request.scored + 8, end=tokenizer.special.end)[0, prompt.shape[1] :]
            said, right = tokenizer.decode(written.tolist()), bool(outcome.right_N["exact"][i])
        nats = round(float(outcome.nats_N[i]), 3)
        rows.append(
            {"prompt": made.prompts_N[i], "said": said, "right answer": item.answer, "right": right, "nats": nats}
        )
    return rows


def _curve(metrics: Mapping[str, Metric], outcomes: Mapping[int, Outcome], chance: float | None) -> tuple[Figure, ...]:
    """Return accuracy over the number of demonstrations, where there are several."""
    ks = sorted(outcomes)
    if len(ks) < 2:
        return ()
    names = [name.removesuffix(f"@{ks[0]}") for name in metrics if name.startswith(("accuracy", "exact"))]
    names = list(dict.fromkeys(name.partition("@")[0] for name in names))
    x = tuple(map(float, ks))
    lines = [
        Series(name.removeprefix("accuracy_"), x, tuple(metrics[f"{name}@{k}"].value for k in ks)) for name in names
    ]
    if chance is not None:
        lines.append(Series("chance", x, (chance,) * len(ks)))
    chart = Chart("right answers, %", tuple(lines), unit="%", x_label="demonstrations", dots=True)
    caption = "Right answers in percent over the number of demonstrations before a query."
    return (Figure(name="shots", caption=caption, picture=draw(chart)),)
