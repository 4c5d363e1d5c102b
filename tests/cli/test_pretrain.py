from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imprint.cli import main as cli
from imprint.cli import pretrain
from imprint.core.codec import to_json
from imprint.core.errors import ConfigError
from imprint.core.progress import Epochs, Steps
from imprint.recipes.book import recipe


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the command hands to the trainer; the training itself is tested in tests/e2e."""
    seen: list[dict[str, Any]] = []

    def note(config: Any, out: Path, *, resume: bool = False, extend: Any = None) -> int:
        seen.append({"config": config, "out": out, "resume": resume, "extend": extend})
        return 0

    monkeypatch.setattr(pretrain, "train_and_report", note)
    return seen


def test_a_recipe_with_short_and_dotted_options(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    line = (
        f"pretrain dino/debug --data photos {tmp_path} --val photos:test --out {tmp_path / 'run'} --epochs 2 "
        "--batch-size 8 --image-size 48 --checkpoint-every 5 --method.student-temp 0.2 --encoder.drop-path 0"
    )
    assert cli.main(line.split()) == 0
    (call,) = calls
    config = call["config"]
    assert (call["out"], call["resume"], call["extend"]) == (tmp_path / "run", False, None)
    assert config.data.train == ("photos", str(tmp_path)) and config.data.val == "photos:test"
    assert (config.length, config.batch_size, config.checkpoint_every) == (Epochs(2), 8, Steps(5))
    assert config.encoder.image_size == 48 and config.encoder.drop_path == 0.0
    assert config.method.student_temp == 0.2


def test_a_method_alone_takes_its_small_recipe(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    assert cli.main(["pretrain", "simclr", "--data", "photos", "--out", str(tmp_path / "r"), "--budget", "90s"]) == 0
    assert calls[0]["config"].recipe == "small" and calls[0]["config"].budget == 90.0


def test_a_stored_config_is_repeated_beside_the_run_it_came_from(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    base = recipe("mae/debug")
    (run / "config.json").write_text(json.dumps(to_json(base)))
    assert cli.main(["pretrain", "--config", str(run / "config.json")]) == 0
    assert cli.main(["pretrain", "--config", str(run), "--out", str(tmp_path / "b"), "--seed", "5"]) == 0
    assert calls[0]["config"] == base and calls[0]["out"] == tmp_path / "run-2"
    assert calls[1]["config"].seed == 5 and calls[1]["out"] == tmp_path / "b"
    assert cli.main(["pretrain", "--config", str(run), "--method.decoder-dpeth", "1"]) == 2


def test_a_run_is_continued_or_extended(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    assert cli.main(["pretrain", "--resume", str(tmp_path)]) == 0
    assert cli.main(["pretrain", "--resume", str(tmp_path), "--extend-epochs", "3"]) == 0
    assert calls[0] == {"config": None, "out": tmp_path, "resume": True, "extend": None}
    assert calls[1]["extend"] == Epochs(3)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pretrain", "give METHOD (put it first), --config FILE or --resume RUN"),
        ("pretrain dino --config c.json --data a --out b", "--config FILE"),
        ("pretrain dino --out b", "missing --data SRC"),
        ("pretrain dino --data a", "missing --out RUN"),
        ("pretrain dino --data --out b", "--data: expected at least one argument"),
        ("pretrain dino --data a --out b --extend-epochs 3", "needs --resume RUN"),
        ("pretrain --resume r --batch-size 3", "--batch-size has no place beside it"),
        ("pretrain --resume r --optim.lr.base 3", "a dotted option has no place beside it"),
        ("pretrain dino --data a --out b --epochs 1 --steps 2", "--epochs and --steps"),
        ("pretrain dino --data a --out b --epochs two", "--epochs: 'two' is not a number"),
        ("pretrain dino --data a --out b --batch-size 0", "--batch-size: 0 is too small"),
        ("pretrain dino --data a --out b --precision fp8", "--precision: unknown precision 'fp8'"),
        ("pretrain dino --data a --out b --budget 10", "--budget: '10' is not a time"),
        ("pretrain dino --data a --out b --bach-size 4", "Did you mean '--batch-size'"),
        ("pretrain dnio --data a --out b", "Did you mean 'dino'"),
        ("pretrain dino/smal --data a --out b", "Did you mean 'small'"),
        ("pretrain --method.student-temp 0.2 dino --data a --out b", "put it first"),
        ("pretrain dino extra --data a --out b", "unexpected argument 'extra'"),
        ("pretrain --config nowhere.json", "no configuration at nowhere.json"),
    ],
)
def test_bad_input(line: str, said: str, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line.split()) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert calls == []


def test_a_run_in_the_way_is_never_written_over(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert cli.main(["pretrain", "dino/debug", "--data", "photos", "--out", str(tmp_path)]) == 2
    assert calls == []


def test_help_of_a_method_lists_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrain", "dino", "--help"]) == 0
    out = capsys.readouterr().out
    for option in ("--method.student-temp", "--method.momentum.FIELD", "--optim.lr.FIELD", "--data.bad-limit"):
        assert option in out
    assert cli.main(["pretrain", "--help"]) == 0
    assert "--method.student-temp" not in capsys.readouterr().out


def test_the_forms_are_checked_alone() -> None:
    with pytest.raises(ConfigError, match="one thing only"):
        pretrain.parse(["--config", __file__, "--resume", "r"])


def staged(calls: list[dict[str, Any]], tmp_path: Path, options: str) -> Any:
    line = f"pretrain simclr_v2/debug --data photos --out {tmp_path / 'run'} {options}"
    assert cli.main(line.split()) == 0
    return calls[-1]["config"]


def test_options_of_several_stages(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    first, second, third = staged(
        calls,
        tmp_path,
        "--seed 7 --val photos:test --encoder resnet34 --workers 1 --stage-1.epochs 3 --stage-2.steps 5 "
        "--stage-2.optim.lr.base 0.25 --stage-3.encoder resnet18 --method.projection 8 --data.labelled.per-class 4 "
        "--stage-3.method.alpha 1 --log-every 3",
    )
    assert [s.seed for s in (first, second, third)] == [7, 7, 7]
    assert [s.length for s in (first, second, third)] == [Epochs(3), Steps(5), Steps(8)]
    assert [s.encoder.name for s in (first, second, third)] == ["resnet34", "resnet34", "resnet18"]
    assert second.optim.lr.base == 0.25 and first.optim.lr.base == third.optim.lr.base == 0.1
    assert [s.method.projection for s in (first, second, third)] == [8, 8, 8]
    assert first.data.labelled is None and second.data.labelled.per_class == third.data.labelled.per_class == 4
    assert (first.log_every, third.method.alpha, third.log_every) == (3, 1.0, 3)
    assert [s.data.val for s in (first, second, third)] == ["photos:test"] * 3


def test_a_budget_goes_to_all_stages_by_their_shares(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    stages = staged(calls, tmp_path, "--budget 60s")
    assert [s.budget for s in stages] == [20.0, 20.0, 20.0]
    line = f"pretrain simclr_v2 --data photos --out {tmp_path / 'b'} --budget 100s"
    assert cli.main(line.split()) == 0
    assert sum(s.budget for s in calls[-1]["config"]) == pytest.approx(100.0)
    assert [round(s.budget) for s in calls[-1]["config"]] == [65, 5, 30]


def test_a_student_of_its_own_keeps_its_encoder(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    line = f"pretrain simclr_v2/paper_small_student --data photos --out {tmp_path / 'run'} --encoder resnet101"
    assert cli.main(line.split()) == 0
    assert [s.encoder.name for s in calls[-1]["config"]] == ["resnet101", "resnet101", "resnet50"]


def test_stored_stages_are_repeated(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    from imprint.recipes.book import stages_of
    from imprint.train.run import write_stages

    run = tmp_path / "run"
    write_stages(run, stages_of("simclr_v2/debug"))
    for given in (run, run / "stages.json"):
        line = ["pretrain", "--config", str(given), "--out", str(tmp_path / "b"), "--stage-2.seed", "5"]
        assert cli.main(line) == 0
        assert [s.seed for s in calls[-1]["config"]] == [0, 5, 0]
    assert cli.main(["pretrain", "simclr_v2/debug", "--data", "photos", "--out", str(run)]) == 2


def test_one_stage_alone_names_its_start_wherever_it_lies(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    from imprint.recipes.book import stages_of

    stage = tmp_path / "run" / "stage-2"
    stage.mkdir(parents=True)
    (stage / "config.json").write_text(json.dumps(to_json(stages_of("simclr_v2/debug")[1])))
    assert cli.main(["pretrain", "--config", str(stage), "--out", str(tmp_path / "b")]) == 0
    assert calls[0]["config"].start == str(tmp_path / "run" / "stage-1")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--epochs 3", "--epochs does not say which of the 3 stages (pretrain, finetune, distill)"),
        ("--steps 3", "--stage-1.steps"),
        ("--stage-4.epochs 3", "there is no stage 4; this recipe has 3 stages"),
        ("--stage-2.bach-size 4", "Did you mean '--stage-2.batch-size'"),
        ("--stage-2.method.alhpa 4", "Did you mean '--stage-2.method.alpha'"),
        ("--method.alhpa 4", "Did you mean '--method.alpha'"),
        ("--stage-2.optim.lr.base x", "--optim.lr.base: 'x' does not fit; expected float"),
        ("--data.labelled.share 2", "must lie in (0, 1]"),
    ],
)
def test_bad_options_of_stages(
    options: str, said: str, calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"pretrain simclr_v2/debug --data photos --out {tmp_path / 'run'} {options}"
    assert cli.main(line.split()) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and calls == []


def test_one_stage_takes_no_other(
    calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"pretrain simclr/debug --data photos --out {tmp_path / 'run'} --stage-2.epochs 3"
    assert cli.main(line.split()) == 2
    assert "this recipe has one stage" in capsys.readouterr().err


def test_help_says_which_recipes_have_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrain", "simclr_v2", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--stage-N.OPTION" in out and "--method.finetune-from" in out and "--data.labelled.FIELD" in out
    assert cli.main(["pretrain", "simclr", "--help"]) == 0
    assert "--stage-N" not in capsys.readouterr().out


def test_stages_from_python_values() -> None:
    from imprint.cli.staged import apply_values
    from imprint.recipes.book import stages_of

    stages = stages_of("simclr_v2/debug")
    changed = apply_values(stages, {"stage_2": {"optim": {"lr": {"base": 0.5}}}, "data": {"labelled": {"share": 0.2}}})
    assert [s.optim.lr.base for s in changed] == [0.1, 0.5, 0.1]
    assert changed[0].data.labelled is None and changed[2].data.labelled.share == 0.2
    assert apply_values(stages, {"stage-3.batch_size": 8})[2].batch_size == 8
    with pytest.raises(ConfigError, match="Did you mean 'batch_size'"):
        apply_values(stages, {"bach_size": 8})
