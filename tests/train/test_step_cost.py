"""What a training step takes of memory, before there are any data."""

from __future__ import annotations

import pytest

from drifa_jax.train import step_cost as measuring
from drifa_jax.train.step_cost import StepCost, device_memory, step_cost
from tests.train.toy import toy_config

TASKS = {"tumour": 2, "stroke": 2}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return toy_config()


def test_bytes_grow_with_records_as_the_compiler_plans_them(config, monkeypatch):
    at_four = step_cost(config, TASKS)
    monkeypatch.setattr(measuring, "MEASURED_AT", 8)
    at_eight = measuring._measured(config, measuring.described(config, TASKS))
    # What does not depend on the batch, beside parameters, is counted to the records.
    assert at_four.of(8) == pytest.approx(at_eight.of(8), rel=0.1)
    assert at_four.largest_batch(at_four.of(8)) == 8
    assert at_four.largest_batch(at_four.fixed) == 0


def test_it_is_measured_once(config, monkeypatch):
    monkeypatch.setattr(measuring, "_measured", lambda *_: StepCost(7, 9))
    assert step_cost(config, TASKS) == StepCost(7, 9)
    monkeypatch.setattr(measuring, "_measured", None)
    assert step_cost(config, TASKS) == StepCost(7, 9)


def test_memory_of_this_device_is_known():
    assert device_memory() > 2**27
