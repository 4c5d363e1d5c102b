from __future__ import annotations

import subprocess
import sys
import types

import pytest

from imprint.cli import main as cli
from imprint.core.errors import ConfigError, HealthError, Preempted

HEAVY = ("torch", "numpy", "torchvision", "timm", "cv2", "numba", "tyro", "rich", "sklearn", "PIL", "pyarrow")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "words",
    [["--help"], *([command, "--help"] for command in cli.COMMANDS), ["pretrain", "dino", "--help"],
     ["evaluate", "knn", "--help"], ["pretrain", "dino", "--data", "x", "--out", "y", "--method.studnt-temp", "1"],
     ["methods", "--json"]],
    ids=" ".join,
)  # fmt: skip
def test_help_typos_and_lists_import_nothing_heavy(words: list[str]) -> None:
    code = (
        f"import sys; from imprint.cli.main import main; main({words!r}); "
        f"print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stdout)"
    )
    assert python(code).rstrip().endswith("HEAVY []")


def test_import_imprint_imports_nothing_heavy() -> None:
    assert python(f"import sys, imprint; imprint.methods(); print(sorted(set({HEAVY!r}) & set(sys.modules)))") == "[]\n"


def test_the_package_runs_as_a_program() -> None:
    code = "from importlib.metadata import entry_points; print(entry_points(group='console_scripts')['imprint'].value)"
    assert python(code).strip() == "imprint.cli.main:main"


def test_help_names_every_command_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert f"\n  {command} " in out
    for code in ("0 done", "2 bad input", "3 stopped by health", "143 checkpointed"):
        assert code in out


def test_nothing_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: imprint" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrian"], "Did you mean 'pretrain'?"),
        (["export", "r", "--fromat", "onnx", "--out", "x"], "Did you mean '--format'?"),
        (["export", "r", "--format", "onxn", "--out", "x"], "Did you mean 'onnx'?"),
        (["methods", "dnio"], "Did you mean 'dino'?"),
        (["embed", "--encoder", "e", "--data", "d"], "required: --out"),
        (["report"], "required: RUN"),
        (["report", "a", "b"], "unexpected argument 'b'"),
        (["evaluate", "kn", "--encoder", "e"], "Did you mean 'knn'?"),
        (["evaluate", "knn", "--encoder", "e", "--train", "t", "--temperature", "1"], "Did you mean '--temperatures'?"),
        (["embed", "--encoder", "e", "--data", "d", "--out", "x.npy", "--batch", "3"], "Did you mean '--batch-size'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_paragraph_that_helps(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert said in captured.err


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A command that raises what is put into the list."""
    raised: list[BaseException] = []

    def run(args: object) -> int:
        raise raised[0]

    fake = types.SimpleNamespace(arguments=lambda parser: None, run=run)
    monkeypatch.setattr(cli, "command_module", lambda name: fake)
    return raised


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("two\n  lines"), 2, "error: two lines"),
        (HealthError("loss is nan"), 3, "error: loss is nan"),
        (Preempted("stopped"), 143, "error: stopped"),
        (KeyboardInterrupt(), 130, "interrupted."),
        (FileNotFoundError(2, "No such file or directory", "a.jpg"), 2, "error: No such file or directory: a.jpg."),
        (OSError(28, "No space left on device", "x"), 1, "error: No space left on device: x (--debug"),
        (ValueError("odd"), 1, "error: unexpected ValueError: odd (--debug"),
        (ZeroDivisionError(), 1, "error: unexpected ZeroDivisionError: no message (--debug"),
    ],
)
def test_errors_become_one_line_and_an_exit_code(
    failing: list[BaseException], error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(error)
    assert cli.main(["doctor"]) == code
    plain = capsys.readouterr().err
    assert plain.startswith(said) and plain.count("\n") == 1
    assert cli.main(["--debug", "doctor"]) == code == cli.main(["doctor", "--debug"])
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "from imprint.cli.main import main; import sys; sys.exit(main(['pretrain', 'dino', '--help']))"
    shell = f'"{sys.executable}" -c "{code}" | head -c 10 >/dev/null; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.strip() == "0"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("imprint ")
