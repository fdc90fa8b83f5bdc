"""The batch size that a plan decides: by the number of records, and by measured memory."""

from __future__ import annotations

import pytest

from drifa_jax.cli import main
from drifa_jax.errors import UserError
from drifa_jax.plan.batch import Room, batch_for
from drifa_jax.train import step_cost
from drifa_jax.train.step_cost import StepCost

MIB = 2**20


def test_where_nothing_was_measured_records_decide():
    assert [batch_for(n, None)[0] for n in (100, 300, 3000)] == [8, 16, 32]


def test_a_batch_that_does_not_fit_is_halved():
    room = Room("gpu", 100 * MIB, StepCost(fixed=10 * MIB, by_record=8 * MIB))
    batch, reason = batch_for(3000, room)
    assert batch == 8 and "10 would fit" in reason and "measured by compiling" in reason


def test_a_cpu_keeps_half_of_its_memory_for_the_data():
    room = Room("cpu", 100 * MIB, StepCost(fixed=10 * MIB, by_record=8 * MIB))
    assert batch_for(3000, room)[0] == 4


def test_a_device_too_small_for_one_record_is_refused_in_words():
    room = Room("gpu", 100 * MIB, StepCost(fixed=10 * MIB, by_record=200 * MIB))
    with pytest.raises(UserError, match=r"too small for any batch.*--no-measure"):
        batch_for(3000, room)


def test_the_command_says_so_and_writes_nothing(tmp_path, monkeypatch, capsys):
    from PIL import Image

    for kind in "ab":
        (tmp_path / "data" / kind).mkdir(parents=True)
        for k in range(30):
            Image.new("L", (70, 70), 7 * k).save(tmp_path / "data" / kind / f"{k}.png")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(step_cost, "device_memory", lambda: MIB)
    monkeypatch.setattr(step_cost, "step_cost", lambda *_: StepCost(9 * MIB, MIB))
    for command in ("plan", "run"):
        assert main([command, str(tmp_path / "data")]) == 1
        said = capsys.readouterr().err
        assert "too small for any batch: one record takes 10 MiB" in said and "of the 1 MiB" in said
        assert not list((tmp_path / "here").iterdir())
