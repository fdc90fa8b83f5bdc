"""What one process can show of many; the rest runs in tests/train/test_attempts.py."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from drifa_jax import processes
from drifa_jax.errors import UserError
from tests.train.toy import toy_config


def test_clocks_that_differ_are_reported_with_their_machines():
    said = [
        {"host": "a", "time": 1000.0},
        {"host": "b", "time": 1003.0},
        {"host": "c", "time": 1090.0},
        {"host": "d", "time": 400.0},
    ]
    ahead, behind = processes.clock_warnings(said)
    assert ahead.startswith("The clock of process 2 on c is 90 s ahead of that of process 0")
    assert behind.startswith("The clock of process 3 on d is 600 s behind that of process 0")


def test_one_process_joins_nobody_and_agrees_with_itself(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    with processes.joined(toy_config(), Path("none")):
        assert processes.is_first()
        assert processes.all_say(True) and not processes.all_say(False)
        done = []
        processes.on_first(lambda: done.append(1))
        assert done == [1]


@pytest.mark.parametrize(
    ("distributed", "message"),
    [
        ({"num_processes": 2}, "num_processes is 2, but distributed.coordinator is empty"),
        ({"coordinator": "h:1"}, "num_processes is not set, and JAX_NUM_PROCESSES is ''"),
        ({"coordinator": "h:1", "num_processes": 2}, "JAX_PROCESS_ID is ''"),
        (
            {"coordinator": "h:1", "num_processes": 2, "process_id": 2},
            "process_id is 2; with 2 processes it is 0 to 1",
        ),
    ],
)
def test_incomplete_settings_are_named(distributed, message, monkeypatch):
    for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"):
        monkeypatch.delenv(f"JAX_{name}", raising=False)
    with (
        pytest.raises(UserError, match=message),
        processes.joined(toy_config(distributed=distributed), Path("none")),
    ):
        pass


def test_a_process_that_another_one_ends_undoes_what_it_began(monkeypatch, capfd):
    ended, undone = [], []
    monkeypatch.setattr(processes.os, "_exit", ended.append)
    with processes.undone(lambda: undone.append(1)):
        processes._end(1, "Process 1 stopped with an error: no space")
    processes._end(75, "Process 1 is lost")
    assert ended == [1, 75] and undone == [1]
    assert "Process 1 stopped with an error: no space" in capfd.readouterr().err


def test_a_port_that_another_program_uses_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        distributed = {"coordinator": address, "num_processes": 2, "process_id": 0}
        with (
            pytest.raises(UserError, match=f"{address}, but process 0 cannot listen"),
            processes.joined(toy_config(distributed=distributed), Path("none")),
        ):
            pass
