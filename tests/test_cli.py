"""The command line: overrides, unknown flags, and errors without stack traces."""

from __future__ import annotations

import subprocess
import sys

import pytest

from drifa_jax.cli import main, parse_overrides
from drifa_jax.errors import UserError


def test_overrides_come_with_an_equals_sign_or_as_two_words():
    given = ["--config.train.seed=1", "--config.data.source", "folders"]
    assert parse_overrides(given) == [("train.seed", "1"), ("data.source", "folders")]


@pytest.mark.parametrize("argument", ("--confg.train.seed=1", "extra", "--config.train.seed"))
def test_argument_that_is_no_override_is_named(argument):
    with pytest.raises(UserError, match=argument):
        parse_overrides([argument])


def test_user_error_is_one_message_and_exit_code_1(capsys):
    assert main(["train", "--config", "nowhere.py"]) == 1
    assert capsys.readouterr().err.startswith("drifa train: --config: there is no file")


def test_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["fly"])
    assert "fly" in capsys.readouterr().err


def test_importing_the_package_starts_no_backend_and_no_other_framework():
    check = (
        "import sys, drifa_jax\n"
        "drifa_jax.MFA, drifa_jax.MIFA, drifa_jax.drifa_net\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
        "found = {'tensorflow', 'torch', 'keras'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_a_file_that_registers_parts_is_run_before_the_command(tmp_path, monkeypatch, capsys):
    from drifa_jax.models import registry

    monkeypatch.setattr(registry, "BACKBONES", dict(registry.BACKBONES))
    file = tmp_path / "mine.py"
    file.write_text("from drifa_jax.models import registry\nregistry.BACKBONES['mine'] = None\n")
    assert main(["--parts", str(file), "configs"]) == 0
    assert "mine" in registry.BACKBONES
    for arguments, message in (
        (["--parts"], "--parts needs a Python file"),
        (["--parts=none.py", "configs"], "--parts: there is no file 'none.py'"),
    ):
        assert main(arguments) == 1
        assert message in capsys.readouterr().err
    file.write_text("1 / 0")
    assert main([f"--parts={file}", "configs"]) == 1
    assert "failed with ZeroDivisionError" in capsys.readouterr().err


def test_an_error_that_may_pass_has_an_exit_code_of_its_own(monkeypatch, capsys):
    from drifa_jax.commands import configs
    from drifa_jax.processes import Unreached

    def late(options):
        raise Unreached("Process 0 cannot be reached")

    monkeypatch.setattr(configs, "run", late)
    assert main(["configs"]) == 75
    assert capsys.readouterr().err == "drifa configs: Process 0 cannot be reached\n"
