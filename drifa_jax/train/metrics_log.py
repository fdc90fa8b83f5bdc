"""Scalars of a run: JSON lines for scripts, loggers for eyes."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drifa_jax.config import Config
from drifa_jax.errors import UserError
from drifa_jax.processes import is_first
from drifa_jax.train.loggers import Loggers
from drifa_jax.train.run_directory import METRICS_FILE, write_whole

CHECK = "check"
"""Field of a line: a checksum (CRC-32) of the rest of it."""


class MetricsLog:
    """Appends to `metrics.jsonl` and hands on to the loggers.

    Args:
      workdir: of the run.
      config: of the run; its `tracking` names the loggers.
      say: called with a line for the user.
      step: steps done so far; lines beyond it, written by an attempt that was lost, are dropped,
        so that the file never holds a step twice.
    """

    def __init__(self, workdir: Path, step: int, config: Config, say: Callable[[str], None]):
        path = workdir / METRICS_FILE
        if path.exists():
            write_whole(path, "".join(f"{line}\n" for line in _up_to(path, step)))
        self._loggers = Loggers(workdir, config.tracking, step, config.flat(), say)
        self._lines = path.open("a", buffering=1)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._lines.close()
        self._loggers.close(finished=kind is None)

    def write(self, split: str, step: int, epoch: int, scalars: Mapping[str, Any]) -> None:
        """One line: `{"split", "step", "epoch", **scalars}`.

        Of an ensemble, the scalars are means over members, and "members" lists each one's own.
        """
        self._lines.write(line_of({"split": split, "step": step, "epoch": epoch, **scalars}))
        self._loggers.scalars(step, {f"{split}/{name}": v for name, v in _flat(scalars)})

    def sync(self) -> None:
        """Returns when the lines are on disk, even if the machine dies."""
        os.fsync(self._lines.fileno())
        self._loggers.flush()


class SilentLog:
    """That of a process which is not the first: it writes nothing."""

    def write(self, split: str, step: int, epoch: int, scalars: Mapping[str, Any]) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""


@contextmanager
def open_log(
    workdir: Path, step: int, config: Config, say: Callable[[str], None]
) -> Iterator[MetricsLog | SilentLog]:
    """The log of this process, after `step` steps."""
    if not is_first():
        yield SilentLog()
        return
    with MetricsLog(workdir, step, config, say) as log:
        yield log


def _flat(scalars: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in scalars.items():
        if name != "members":
            yield name, value
    for number, member in enumerate(scalars.get("members", ())):
        for name, value in member.items():
            yield f"{name}/member_{number}", value


def line_of(entry: Mapping[str, Any]) -> str:
    """An entry as a line, which ends with a checksum of the rest."""
    text = json.dumps(entry)
    return f'{text[:-1]}, "{CHECK}": "{_check(text)}"}}\n'


def read_metrics(workdir: Path) -> list[dict]:
    """All entries of `metrics.jsonl`, in order; none where there is no file.

    Raises:
      UserError: naming a line that is not what was written.
    """
    path = workdir / METRICS_FILE
    return [entry for entry, _ in _entries(path)] if path.exists() else []


def _up_to(path: Path, step: int) -> list[str]:
    return [line for entry, line in _entries(path) if entry["step"] <= step]


def _entries(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Entries and the lines that hold them."""
    for number, line in enumerate(_complete_lines(path), 1):
        try:
            yield _entry(line), line
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path}: line {number} is not what was written ({error}). Delete the line; only "
                "the learning curves lack its figures then."
            ) from error


def _entry(line: str) -> dict[str, Any]:
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise TypeError("it is no object")
    check = entry.pop(CHECK, None)
    # Lines of earlier releases have none.
    if check not in (None, _check(json.dumps(entry))):
        raise ValueError("its checksum is another")
    if not isinstance(entry.get("split"), str):
        raise TypeError("split is no name")
    for name in ("step", "epoch"):
        if type(entry.get(name)) is not int or entry[name] < 0:
            raise TypeError(f"{name} is {entry.get(name)!r}, no number")
    for name, value in _flat(entry):
        if name != "split" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise TypeError(f"{name} is {value!r}, no number")
    return entry


def _check(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _complete_lines(path: Path) -> list[str]:
    """Lines that end in a newline; a kill can leave half a line at the end."""
    text = path.read_text(errors="replace")
    return text[: text.rfind("\n") + 1].split("\n")[:-1]
