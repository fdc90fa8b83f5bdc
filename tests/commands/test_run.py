"""`drifa run`: which steps there are, and that none is done twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from drifa_jax.cli import main
from drifa_jax.commands import run
from drifa_jax.commands.run import Step, run_steps


@pytest.fixture
def steps(tmp_path):
    """Three steps that write their file and note that they ran; the second fails once."""
    ran, failures = [], [1]

    def step(name):
        def run():
            ran.append(name)
            if name == "train" and failures:
                return failures.pop()
            (tmp_path / name).write_text("")
            return 0

        return Step(name, tmp_path / name, run)

    return [step(name) for name in ("verify", "train", "evaluate")], ran


def test_a_step_that_fails_ends_the_run_with_its_code(steps):
    todo, ran = steps
    assert run_steps(todo) == 1
    assert ran == ["verify", "train"]


def test_the_same_command_goes_on_where_it_stopped(steps, capsys):
    todo, ran = steps
    run_steps(todo)
    assert run_steps(todo) == 0
    assert ran == ["verify", "train", "train", "evaluate"]
    assert "[1/3] verify: done before" in capsys.readouterr().err


def test_data_with_an_error_are_verified_again(tmp_path, monkeypatch):
    verified = tmp_path / "runs" / "verified.json"
    codes = [1, 0]

    def verify(command, arguments, overrides):
        assert not verified.exists()
        Path(arguments[-1]).write_text("{}")
        return codes.pop(0)

    monkeypatch.setattr(run, "_call", verify)
    assert run._verify("plan.py", (), 0, verified) == 1
    assert not list(verified.parent.iterdir())
    assert run._verify("plan.py", (), 0, verified) == 0
    assert verified.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    (
        (["brain:quick", "--folds", "1"], "--folds is 1"),
        (["brain:quick", "--folds", "3", "--only-fold", "3"], "--only-fold is 3"),
        (["no_such.py"], "there is no file 'no_such.py'"),
        (["nowhere=missing"], "missing does not exist"),
    ),
)
def test_bad_input_is_refused_before_anything_is_written(
    arguments, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["run", *arguments]) == 1
    assert words in capsys.readouterr().err
    assert not list(Path().iterdir())
