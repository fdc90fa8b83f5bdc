"""Several processes that train as one: joining, agreeing, and noticing that one is lost.

JAX's distributed runtime does the work: it introduces the processes to each other, and its
key-value store carries the few words said here. One process is the trivial case: it joins
nobody, agrees with itself and watches nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

from drifa_jax.config import Config, DistributedConfig
from drifa_jax.errors import UserError

EXIT_LOST = 75
"""Exit code after another process was lost: EX_TEMPFAIL, "try again later"."""

SKEW_WORTH_A_WARNING = 5.0
"""Seconds between the clocks of two machines above which the user is told."""

PATIENCE_MS = 24 * 3600 * 1000
"""For a process that the watch sees alive, and which is therefore at work."""

_turns = itertools.count()
_watch: _Watch | None = None


def is_first() -> bool:
    """Whether this process writes logs and reports."""
    return jax.process_index() == 0


@contextmanager
def joined(config: Config) -> Iterator[None]:
    """Runs the block as one of the processes that the configuration names.

    An error inside ends this process and, through their watch, the others; an orderly shutdown
    would wait for processes that wait for this one.

    Raises:
      UserError: when the others do not come, or come with another configuration.
    """
    global _watch
    if not _connected(config.distributed) or jax.process_count() == 1:
        yield
        return
    _agree(config)
    _watch = _Watch(config.distributed.lost_seconds)
    try:
        yield
        # Nobody leaves before all are through, so that the watch covers the last report as well.
        _client().wait_at_barrier(f"drifa/through/{next(_turns)}", PATIENCE_MS)
    except BaseException as error:
        _watch.give_up(error)
    _watch.stop()
    _watch = None


def on_first(function: Callable[[], None]) -> None:
    """Has process 0 do something; returns when it is done.

    Raises:
      UserError: in every process, when process 0 raised one.
    """
    if jax.process_count() == 1:
        function()
        return
    key = f"drifa/turn/{next(_turns)}"
    if is_first():
        try:
            function()
        except UserError as error:
            _client().key_value_set(key, f"error:{error}")
            raise
        _client().key_value_set(key, "done")
        return
    answer = _client().blocking_key_value_get(key, PATIENCE_MS)
    if answer.startswith("error:"):
        raise UserError(answer.removeprefix("error:"))


def all_say(yes: bool) -> bool:
    """Whether all processes say yes."""
    if jax.process_count() == 1:
        return yes
    folder = f"drifa/vote/{next(_turns)}"
    _client().key_value_set(f"{folder}/{jax.process_index()}", str(yes))
    votes = [
        _client().blocking_key_value_get(f"{folder}/{i}", PATIENCE_MS)
        for i in range(jax.process_count())
    ]
    return all(vote == "True" for vote in votes)


def _connected(config: DistributedConfig) -> bool:
    """Joins the other processes, if there are any to join; whether it did."""
    if jax.distributed.is_initialized():
        return True
    address = config.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    if not address:
        if config.num_processes > 1:
            raise UserError(
                f"config: distributed.num_processes is {config.num_processes}, but "
                "distributed.coordinator is empty; give the HOST:PORT of process 0."
            )
        return False
    count = process_id = None
    if address == "auto":
        known: dict[str, Any] = {}
    else:
        count = config.num_processes or _number("JAX_NUM_PROCESSES", "num_processes")
        process_id = (
            config.process_id if config.process_id >= 0 else _number("JAX_PROCESS_ID", "process_id")
        )
        if not 0 <= process_id < count:
            raise UserError(
                f"config: distributed.process_id is {process_id}; with {count} processes it is "
                f"0 to {count - 1}."
            )
        if process_id:
            _await_coordinator(address, config.connect_seconds)
        else:
            _check_port(address)
        known = {
            "coordinator_address": address,
            "num_processes": count,
            "process_id": process_id,
            "cluster_detection_method": "deactivate",
        }
    absent = (
        f"The {count or ''} processes did not meet at {address} within {config.connect_seconds} s. "
        "Start all of them, make sure that no other program listens there, or raise "
        "distributed.connect_seconds."
    ).replace("  ", " ")
    _speak_when_aborted(lambda: _end(1, absent))
    try:
        jax.distributed.initialize(
            **known,
            initialization_timeout=config.connect_seconds,
            # JAX's own alarm kills without naming anybody: it comes after the one here.
            heartbeat_timeout_seconds=2 * config.lost_seconds + 10,
            shutdown_timeout_seconds=config.lost_seconds,
        )
    except (RuntimeError, ValueError) as error:
        if address == "auto":
            raise UserError(
                "config: distributed.coordinator is auto, but the processes could not be found "
                f"({_first_line(error)}). This works on Cloud TPU, under SLURM, in a JobSet and "
                "under Open MPI; elsewhere give HOST:PORT."
            ) from error
        raise UserError(f"{absent} ({_first_line(error)})") from error
    _speak_when_aborted(None)
    return True


def _number(variable: str, field: str) -> int:
    text = os.environ.get(variable, "")
    if not text.isdecimal():
        raise UserError(
            f"config: distributed.{field} is not set, and {variable} is {text!r}; one of them "
            "must be a number."
        )
    return int(text)


def _check_port(address: str) -> None:
    """Makes sure that process 0 can listen: JAX dies without a word where it cannot.

    Raises:
      UserError: naming the port.
    """
    port = address.rpartition(":")[2]
    try:
        socket.create_server(("", int(port))).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"config: distributed.coordinator is {address}, but process 0 cannot listen at port "
            f"{port} of this machine ({error}); choose a port that no other program uses."
        ) from error


def _await_coordinator(address: str, seconds: float) -> None:
    """Returns as soon as somebody listens at the address.

    Raises:
      UserError: naming the address, after the time that the configuration allows.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise UserError(
                    f"Process 0 cannot be reached at {address} (waited {seconds} s: {error}). "
                    "Is it running, is the address right, does a firewall stand between? "
                    "distributed.connect_seconds sets how long to wait."
                ) from error
        time.sleep(0.2)


def _agree(config: Config) -> None:
    """Compares configurations and clocks of all processes.

    Raises:
      UserError: naming the process that was started with another configuration.
    """
    turn, client = next(_turns), _client()
    client.wait_at_barrier(f"drifa/hello/{turn}", config.distributed.connect_seconds * 1000)
    mine = {"host": socket.gethostname(), "time": time.time(), "config": _digest(config)}
    client.key_value_set(f"drifa/hello/{turn}/{jax.process_index()}", json.dumps(mine))
    timeout = config.distributed.connect_seconds * 1000
    said = [
        json.loads(client.blocking_key_value_get(f"drifa/hello/{turn}/{i}", timeout))
        for i in range(jax.process_count())
    ]
    for number, other in enumerate(said):
        if other["config"] != said[0]["config"]:
            raise UserError(
                f"Process {number} on {other['host']} was started with another configuration than "
                "process 0; give all of them the same command."
            )
    if is_first():
        for line in clock_warnings(said):
            print(line, file=sys.stderr, flush=True)


def clock_warnings(said: list[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each process whose clock differs from that of process 0.

    Args:
      said: host and time of each process, read at one moment.
    """
    for number, other in enumerate(said):
        skew = other["time"] - said[0]["time"]
        if abs(skew) > SKEW_WORTH_A_WARNING:
            yield (
                f"The clock of process {number} on {other['host']} is {abs(skew):.0f} s "
                f"{'ahead of' if skew > 0 else 'behind'} that of process 0. Training does not read "
                "clocks, but times in logs will not match; synchronise them (NTP)."
            )


def _digest(config: Config) -> str:
    text = json.dumps([config.essence().to_json(), repr(config.mesh), repr(config.profile)])
    return hashlib.sha256(text.encode()).hexdigest()


class _Watch:
    """A thread that shows others that this process lives, and looks whether they do.

    Only intervals on this machine's own clock are measured, so clocks need not agree.
    """

    def __init__(self, lost_seconds: float):
        self._me, self._count = jax.process_index(), jax.process_count()
        self._lost_seconds = lost_seconds
        self._folder = f"drifa/alive/{next(_turns)}"
        self._stopping = threading.Event()
        self._failing = False
        _speak_when_aborted(self._lost_coordinator)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Tells the others that this process is through."""
        self._stopping.set()
        self._thread.join()
        self._tell("through")
        _speak_when_aborted(None)

    def give_up(self, error: BaseException) -> None:
        """Ends this process for an error of its own, or for one that a lost process caused."""
        if not isinstance(error, UserError | KeyboardInterrupt | SystemExit):
            # A collective fails as soon as a peer is gone; the watch knows a little later which.
            time.sleep(self._lost_seconds + 2 * self._beat)
            traceback.print_exception(error)
        self._failing = True
        print(f"drifa train: {error}", file=sys.stderr, flush=True)
        self._tell(f"failed:{_first_line(error)}")
        time.sleep(2 * self._beat)
        os._exit(1)

    @property
    def _beat(self) -> float:
        return min(self._lost_seconds / 10, 2.0)

    def _tell(self, words: str) -> None:
        _client().key_value_set(f"{self._folder}/{self._me}", words, allow_overwrite=True)

    def _run(self) -> None:
        seen: dict[int, tuple[str, float]] = {}
        for beat in itertools.count():
            try:
                self._tell(str(beat))
                said = dict(_client().key_value_dir_get(self._folder))
            except Exception:
                if not self._stopping.is_set():
                    self._lost_coordinator()
                return
            now = time.monotonic()
            for other in set(range(self._count)) - {self._me}:
                words = said.get(f"{self._folder}/{other}", "")
                if words != seen.get(other, (None,))[0]:
                    seen[other] = (words, now)
                if words.startswith("failed:") and not self._failing:
                    _end(
                        1, f"Process {other} stopped with an error: {words.removeprefix('failed:')}"
                    )
                if words != "through" and now - seen[other][1] > self._lost_seconds:
                    _end(
                        EXIT_LOST,
                        f"Process {other} of {self._count} is lost: no sign of life for "
                        f"{self._lost_seconds} s. {_RESTART}",
                    )
            if self._stopping.wait(self._beat):
                return

    def _lost_coordinator(self) -> None:
        if self._failing or self._stopping.is_set():
            os._exit(1)
        _end(
            EXIT_LOST,
            f"Process 0 of {self._count} is lost: it was the coordinator, and the connection to "
            f"it broke. {_RESTART}",
        )


def _end(code: int, message: str) -> None:
    """Ends the process from any thread; the main one may wait in a collective for ever."""
    print(f"drifa train: {message}", file=sys.stderr, flush=True)
    os._exit(code)


_RESTART = (
    "This process stops too. The same command, started again in all processes, goes on from the "
    "last checkpoint."
)


def _speak_when_aborted(speak: Callable[[], None] | None) -> None:
    """Has `speak` called instead of dying where JAX aborts this process; None undoes it.

    When the coordinator goes, JAX aborts the others from a thread of C++, out of reach of
    Python's handlers, which run in the main thread.
    """
    global _handler
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
    _handler = kind() if speak is None else kind(lambda _: speak())
    ctypes.CDLL(None).signal(signal.SIGABRT, _handler)


_handler: Any = None


def _client() -> Any:
    # The store has no public name; orbax and JAX's own multihost helpers reach it in this way.
    from jax._src import distributed

    return distributed.global_state.client


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
