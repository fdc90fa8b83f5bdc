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
