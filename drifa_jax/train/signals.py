"""What Ctrl-C, a closed terminal and a scheduler's SIGTERM do to a run.

Before the first step and after the last one there is nothing to save, and the process ends at
once; in between the signals are collected, and the loop saves and leaves. No exception is raised
from a handler: libraries swallow those that come while they call back.
"""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def end_at_once() -> Iterator[None]:
    """In the block a signal ends the process, with one line and 128 + its number."""

    def leave(number: int) -> None:
        name = signal.Signals(number).name
        text = f"drifa train: {name}: stopped. The same command starts it again.\n"
        try:
            os.write(2, text.encode())
        finally:
            os._exit(128 + number)

    with _handled(leave):
        yield


@contextmanager
def collected() -> Iterator[list[int]]:
    """In the block signals are only listed; the second of a kind does what it did before."""
    arrived: list[int] = []

    def note(number: int) -> None:
        arrived.append(number)
        signal.signal(number, previous.get(number, signal.SIG_DFL))

    with _handled(note) as previous:
        yield arrived


@contextmanager
def _handled(handle: Callable[[int], None]) -> Iterator[dict[int, Any]]:
    def receive(number: int, _frame: Any) -> None:
        if number == signal.SIGHUP:
            _forget_terminal()
        handle(number)

    previous: dict[int, Any] = {}
    for number in NUMBERS:
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue  # nohup: the run outlives its terminal.
        # JAX's distributed runtime has a handler of its own, which Python sees as None.
        previous[number] = signal.signal(number, receive) or signal.SIG_DFL
    try:
        yield previous
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _forget_terminal() -> None:
    """Sends what is said from here on nowhere: writing to a closed terminal is an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)
