from __future__ import annotations

import pytest

from imprint.cli import fields
from imprint.cli.overrides import Pair, apply_values, apply_words, check_names, split
from imprint.core.errors import ConfigError
from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import cosine
from imprint.recipes.book import recipe
from imprint.train.config import RunConfig

DINO = fields.fields("dino")[0]


def words(text: str, method: str = "dino") -> RunConfig:
    rest, pairs = split(text.split(), ())
    assert rest == []
    known = fields.fields(method)[0]
    check_names(pairs, known, (), "imprint pretrain")
    return apply_words(recipe(f"{method}/debug"), pairs, known)


def test_split_keeps_short_options_and_takes_the_words_of_dotted_ones() -> None:
    argv = "dino --data a b --method.betas .1 .2 --seed 3 --optim.lr.base=1e-3 --compile --out x".split()
    rest, pairs = split(argv, ("--data", "--seed", "--out"))
    assert rest == ["dino", "--data", "a", "b", "--seed", "3", "--out", "x"]
    expected: list[Pair] = [("method.betas", (".1", ".2")), ("optim.lr.base", ("1e-3",)), ("compile", ())]
    assert pairs == expected


def test_values_get_the_types_of_their_fields() -> None:
    config = words(
        "--method.student-temp 0.2 --method.local_crops 3 --method.freeze-prototypes 3ep --method.global-scale .3 .9 "
        "--method.momentum.start 0.9 --optim.lr.base 1e-3 --optim.clip None --probe-every 500st --encoder.registers 4 "
        "--encoder.arch.embed-dim 64 --data.train a b --compile --channels-last true --optim.lr.milestones 1ep 20st"
    )
    method = config.method
    assert (method.student_temp, method.local_crops) == (0.2, 3)  # type: ignore[attr-defined]
    assert method.freeze_prototypes == Epochs(3) and method.global_scale == (0.3, 0.9)  # type: ignore[attr-defined]
    assert method.momentum == cosine(0.9, 1.0)  # type: ignore[attr-defined]
    assert config.optim.lr.base == 1e-3 and config.optim.clip is None
    assert config.optim.lr.milestones == (Epochs(1), Steps(20))
    assert config.probe_every == Steps(500)
    assert config.encoder.registers == 4 and config.encoder.arch.embed_dim == 64
    assert config.data.train == ("a", "b")
    assert config.compile is True and config.channels_last is True


def test_what_is_not_named_stays() -> None:
    base = recipe("dino/debug")
    assert words("") == base
    assert words("--no-compile --seed 0") == base


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--optim.lr.base fast", "--optim.lr.base: 'fast' does not fit; expected float"),
        ("--seed 1 --method.local-crops many", "--method.local-crops: 'many' does not fit; expected int"),
        ("--probe-every 3", "30ep is in epochs"),
        ("--method.global-scale 0.3", "expected tuple[float, float]"),
        ("--optim.name adagrad", "expected adamw|adam|sgd|rmsprop|lars"),
        ("--method.student-temp", "no value does not fit"),
        ("--compile perhaps", "--compile: 'perhaps'"),
    ],
)
def test_a_value_that_does_not_fit_names_its_option_and_type(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        words(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("--method.studnt-temp 1", "--method.student-temp"),
        ("--student-temp 1", "--method.student-temp"),
        ("--optim.lr.bse 1", "--optim.lr.base"),
        ("--encoder.drop_pth 1", "--encoder.drop-path"),
        ("--acumulate 2", "--accumulate"),
        ("--no-compil", "--compile"),
    ],
)
def test_a_typo_names_the_nearest_option(text: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean '{near}'"):
        words(text)


@pytest.mark.parametrize("name", ["name", "recipe", "provenance.source"])
def test_where_a_config_comes_from_is_no_option(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown option"):
        words(f"--{name} x")


def test_a_config_checks_itself_after_the_change() -> None:
    with pytest.raises(ConfigError, match="does not split"):
        words("--accumulate 3")


def test_python_values_dotted_and_nested() -> None:
    base = recipe("dino/debug")
    config = apply_values(
        base,
        {
            "method.student_temp": 0.3,
            "optim": {"lr": {"base": 2e-3, "warmup": Epochs(2)}, "clip": None},
            "probe_every": "3ep",
            "length": Steps(7),
            "encoder.arch": {"depth": 3},
        },
    )
    assert config.method.student_temp == 0.3  # type: ignore[attr-defined]
    assert (config.optim.lr.base, config.optim.lr.warmup, config.optim.clip) == (2e-3, Epochs(2), None)
    assert config.optim.lr.floor == base.optim.lr.floor
    assert config.probe_every == Epochs(3) and config.length == Steps(7)
    assert config.encoder.arch.depth == 3 and config.encoder.arch.embed_dim == base.encoder.arch.embed_dim
    assert apply_values(base, {}) == base


@pytest.mark.parametrize(
    "values", [{"methd.student_temp": 1}, {"method.studnt_temp": 1}, {"optim": {"lr": {"bse": 1}}}, {"sed": 1}]
)
def test_python_typos_name_the_nearest(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="Did you mean '(method|student_temp|base|seed)'"):
        apply_values(recipe("dino/debug"), values)


def test_python_values_of_another_type_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        apply_values(recipe("dino/debug"), {"batch_size": "many"})


def test_short_options_that_are_fields_are_settable_in_full_words_too() -> None:
    assert {"batch-size", "length", "budget", "seed", "workers", "devices", "precision"} <= {f.name for f in DINO}
