"""Presets: the config files of a checkout, found by an installed package wherever it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from drifa_jax.cli import main
from drifa_jax.commands import demo
from drifa_jax.config_files import find_config, load_config, presets

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_presets_are_the_config_files_of_a_checkout():
    assert set(presets()) == {file.stem for file in CONFIGS.glob("*.py")}
    for name, file in presets().items():
        assert file.samefile(CONFIGS / f"{name}.py")


@pytest.mark.parametrize("name", ("configs/brain.py", "brain.py", "brain"))
def test_a_preset_needs_no_checkout(name):
    assert load_config(f"{name}:quick") == load_config(f"{CONFIGS / 'brain.py'}:quick")


def test_a_file_of_that_name_goes_before_the_preset(elsewhere):
    Path("brain.py").write_text("")
    assert find_config("brain.py") == Path("brain.py")


def test_what_is_neither_lists_the_presets(capsys):
    assert main(["train", "--config", "other/brain.py"]) == 1
    said = capsys.readouterr().err
    assert "'other/brain.py'" in said and "skin_cervix" in said


def test_the_demonstration_is_a_preset():
    assert find_config(demo.CONFIG.partition(":")[0]).is_file()


def test_presets_are_listed_with_what_they_are(capsys):
    assert main(["configs"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(presets())
    assert all(len(line.split()) > 3 for line in listed)


def test_a_preset_is_shown_and_copied(capsys):
    assert main(["configs", "brain"]) == 0
    assert capsys.readouterr().out == (CONFIGS / "brain.py").read_text()
    assert main(["configs", "brain", "--copy"]) == 0
    assert Path("configs/brain.py").read_text() == (CONFIGS / "brain.py").read_text()


def test_a_copy_never_overwrites(capsys):
    Path("brain.py").write_text("mine")
    assert main(["configs", "brain.py", "--copy", "."]) == 1
    assert "brain.py exists already" in capsys.readouterr().err
    assert Path("brain.py").read_text() == "mine"
