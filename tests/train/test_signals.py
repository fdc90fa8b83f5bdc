"""A signal is never lost: it ends the process at once, or is listed for the loop."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from drifa_jax.train import signals


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_in_training_a_signal_is_listed_and_the_second_does_what_it_did_before(number):
    before = []
    previous = signal.signal(number, lambda number, frame: before.append(number))
    try:
        with signals.collected() as arrived:
            signal.raise_signal(number)
            assert arrived == [number] and not before
            signal.raise_signal(number)
        assert arrived == [number] == before
    finally:
        signal.signal(number, previous)


def test_a_run_under_nohup_outlives_its_terminal():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.collected() as arrived:
            signal.raise_signal(signal.SIGHUP)
        assert not arrived
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_before_training_a_signal_ends_the_process_even_where_exceptions_are_swallowed(number):
    script = f"""
import signal
# Whoever started the tests may have them ignore a hangup, as nohup does.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from drifa_jax.train import signals
class Swallowing:
    def __del__(self):
        signal.raise_signal({int(number)})
with signals.end_at_once():
    Swallowing()
    print("went on")
"""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 128 + number and "went on" not in ended.stdout
    assert ended.stderr.startswith(f"drifa train: {signal.Signals(number).name}: stopped")
    assert "Traceback" not in ended.stderr
