"""Several processes that train as one: joining, agreeing, and noticing that one is lost.

JAX's distributed runtime does the work: it introduces the processes to each other, gathers the few
words said here, and knows who is alive. What it does not do is done here: it names the process
that is lost, and tells the others the error that ended one. One process is the trivial case: it
joins nobody, agrees with itself and watches nothing.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from drifa_jax.config import Config, DistributedConfig
from drifa_jax.digests import sha256
from drifa_jax.errors import UserError

EXIT_LOST = 75
"""Exit code after another process was lost or not reached: EX_TEMPFAIL, "try again later"."""

LAST_WORDS = "failed-[0-9]*.txt"
"""Files in which processes say which error ended them."""

SKEW_WORTH_A_WARNING = 5.0
"""Seconds between the clocks of two machines above which the user is told."""


class Unreached(UserError):
    """Others did not come in time: they may be late, as on a machine that is still prepared."""

    exit_code = EXIT_LOST


class SaidByAll(UserError):
    """An error that every process raises, since it was told to all."""


def is_first() -> bool:
    """Whether this process writes logs and reports."""
    return jax.process_index() == 0


@contextmanager
def joined(config: Config, workdir: Path) -> Iterator[None]:
    """Runs the block as one of the processes that the configuration names.

    An error inside ends this process and, through their watch, the others; an orderly shutdown
    would wait for processes that wait for this one.

    Args:
      config: the same in all of them.
      workdir: a folder that all of them see; there an error of one is told to the others.

    Raises:
      UserError: when the others do not come, or come with another configuration.
    """
    if not _connected(config.distributed) or jax.process_count() == 1:
        yield
        return
    _last_words(workdir, jax.process_index()).unlink(missing_ok=True)
    _agree(config)
    watch = _Watch(config.distributed.lost_seconds, workdir)
    try:
        yield
        # Nobody leaves before all are through, so that the watch covers the last report as well.
        _gathered(None)
    except SaidByAll:
        watch.stop()
        raise
    except BaseException as error:
        watch.give_up(error)
    watch.stop()


def on_first(function: Callable[[], None]) -> None:
    """Has process 0 do something; returns when it is done.

    Raises:
      UserError: in every process, when process 0 raised one.
    """
    if jax.process_count() == 1:
        function()
        return
    problem = ""
    if is_first():
        try:
            function()
        except UserError as error:
            problem = str(error)
    if told := _gathered(problem)[0]:
        raise SaidByAll(told)


@contextmanager
def undone(undo: Callable[[], None]) -> Iterator[None]:
    """Has `undo` called where an error ends the block, be it the error of another process.

    Its own errors are dropped: what ended the block is what the user has to know.
    """
    global _undo
    _undo = undo
    try:
        yield
    except Exception:
        with suppress(Exception):
            undo()
        raise
    finally:
        _undo = None


def all_say(yes: bool) -> bool:
    """Whether all processes say yes."""
    return all(_gathered(yes)) if jax.process_count() > 1 else yes


def _gathered(said: Any) -> list[Any]:
    """What each process says, plain JSON values."""
    words = np.frombuffer(json.dumps(said).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(words), np.int32))
    padded = np.zeros(max(sizes), np.uint8)
    padded[: len(words)] = words
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


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
    _speak_when_aborted(lambda: _end(EXIT_LOST, absent))
    try:
        jax.distributed.initialize(
            **known,
            initialization_timeout=config.connect_seconds,
            heartbeat_timeout_seconds=config.lost_seconds,
            shutdown_timeout_seconds=config.lost_seconds,
        )
    except (RuntimeError, ValueError) as error:
        if address == "auto":
            raise UserError(
                "config: distributed.coordinator is auto, but the processes could not be found "
                f"({_first_line(error)}). This works on Cloud TPU, under SLURM, in a JobSet and "
                "under Open MPI; elsewhere give HOST:PORT."
            ) from error
        raise Unreached(f"{absent} ({_first_line(error)})") from error
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
      Unreached: naming the address, after the time that the configuration allows.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise Unreached(
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
    mine = {"host": socket.gethostname(), "time": time.time(), "config": _digest(config)}
    said = _gathered(mine)
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
    return sha256([config.essence().to_json(), repr(config.mesh), repr(config.profile)])


class _Watch:
    """A thread that names a process which JAX no longer hears, or which says that it failed.

    JAX's own alarm ends processes without naming anybody, and what a failing one has to say
    reaches nobody who waits in a collective for it.
    """

    def __init__(self, lost_seconds: float, workdir: Path):
        self._lost_seconds, self._workdir = lost_seconds, workdir
        self._me, self._everyone = jax.process_index(), set(range(jax.process_count()))
        self._stopping, self._failed = threading.Event(), threading.Event()
        _speak_when_aborted(self._aborted)
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        """From now on the others may leave."""
        self._stopping.set()
        _speak_when_aborted(None)

    def give_up(self, error: BaseException) -> None:
        """Ends this process for an error of its own, or for one that a lost process caused."""
        if not isinstance(error, UserError | KeyboardInterrupt | SystemExit):
            # A collective fails as soon as a peer is gone; the watch knows a little later which.
            time.sleep(self._lost_seconds + 2 * self._beat)
            traceback.print_exception(error)
        self._failed.set()
        print(f"drifa train: {error}", file=sys.stderr, flush=True)
        if self._workdir.is_dir():
            written = _last_words(self._workdir, self._me)
            with suppress(OSError):
                written.write_text(_first_line(error))
        # The others hear it from the thread, which lives as long as this process.
        time.sleep(2 * self._beat)
        os._exit(1)

    @property
    def _beat(self) -> float:
        return min(self._lost_seconds / 10, 2.0)

    def _run(self) -> None:
        while not self._stopping.wait(self._beat):
            self._hear(self._everyone)
            try:
                with multihost_utils.live_devices(jax.devices()) as devices:
                    lost = self._everyone - {device.process_index for device in devices}
            except multihost_utils.ProcessFailureError as error:
                lost = {device.process_index for device in error.failed_devices}
            except Exception:
                # The coordinator is gone, and `_aborted` is about to say so.
                return
            if lost:
                self._lose(lost)

    def _hear(self, processes: set[int]) -> None:
        for other in processes - {self._me}:
            with suppress(OSError):
                # Empty while it writes them; a process that is gone has written all.
                if words := _last_words(self._workdir, other).read_text():
                    _end(1, f"Process {other} stopped with an error: {words}")

    def _lose(self, processes: set[int]) -> None:
        if self._stopping.is_set() or self._failed.is_set():
            # Those who heard of this process's own error may leave before it does.
            return
        self._hear(processes)
        names = " and ".join(map(str, sorted(processes)))
        _end(
            EXIT_LOST,
            f"Process {names} of {len(self._everyone)} is lost: its connection broke, or no "
            f"sign of life came for {self._lost_seconds} s. This process stops too. The same "
            "command, started again in all processes, goes on from the last checkpoint.",
        )

    def _aborted(self) -> None:
        """JAX ends this process for the loss of another, or of the coordinator, process 0."""
        # The thread may be about to name who it was.
        time.sleep(self._beat)
        self._lose({0} - {self._me})
        os._exit(1)


def _last_words(workdir: Path, process: int) -> Path:
    return workdir / f"failed-{process}.txt"


def _end(code: int, message: str) -> None:
    """Ends the process from any thread; the main one may wait in a collective for ever."""
    print(f"drifa train: {message}", file=sys.stderr, flush=True)
    if _undo is not None:
        with suppress(Exception):
            _undo()
    os._exit(code)


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
_undo: Callable[[], None] | None = None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
