"""One item of a checkpoint, read with every check: arrays, and the index that names them."""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from drifa_jax.digests import is_whole
from drifa_jax.errors import UserError
from drifa_jax.processes import all_say
from drifa_jax.train import older_checkpoints
from drifa_jax.train.packing import Entry, Packed, checksums, entries, target, unpacked

FORMAT = 2
LINES_SHOWN = 10
"""Of the difference between a checkpoint's parameters and a network's."""

STRAGGLER_SECONDS = 1.0
"""That reads which nobody waits for have to end: freed before, they crashed Python 3.12 or 3.13."""


class Damaged(Exception):
    """A checkpoint is not what was written; `step` says which."""

    def __init__(self, step: int, problem: str):
        super().__init__(problem)
        self.step = step


def read_index(directory: Path, step: int, item: str) -> dict[str, Any]:
    """An index as it was written.

    Raises:
      Damaged: when it is not.
      UserError: when a later release wrote it.
    """
    try:
        index = ocp.JsonCheckpointHandler().restore(directory / str(step) / f"{item}_index")
        whole = is_whole(index)
    except Exception as error:
        raise Damaged(step, f"its {item}_index: {_first_line(error)}") from error
    if not whole:
        raise Damaged(step, f"its {item}_index is not what was written")
    if index["format"] != FORMAT:
        raise UserError(
            f"{directory / str(step)} was written by a later release (format "
            f"{index['format']}; this one reads up to {FORMAT}); use that one."
        )
    return index


def read_item(
    directory: Path, step: int, item: str, template: Any, lead: int
) -> tuple[Any, dict[str, Any]]:
    """The arrays of an item as a tree, and its index.

    Args:
      directory: of checkpoints.
      step: which one.
      item: `model` or `training`.
      template: shapes, dtypes and, where leaves are to be on devices, shardings.
      lead: 1 where every array has a leading axis of members, otherwise 0.

    Raises:
      Damaged: in all processes, when any cannot read it or it is not what was written.
      UserError: when it is of another network or release.
    """
    folder = directory / str(step)
    if item == "model" and older_checkpoints.is_older(folder):
        return older_checkpoints.read_model(folder, template, lead)
    read, problem = None, ""
    try:
        index = read_index(directory, step, item)
        stored = [Entry.from_json(values) for values in index["arrays"]]
        if difference := _difference(stored, entries(template, lead)):
            raise UserError(f"{folder} holds another network:\n{difference}")
        read = _restored(folder / item, target(stored, template, lead))
    except (Damaged, OSError, ValueError, KeyError) as error:
        problem = str(error)
    if not all_say(read is not None):
        raise Damaged(step, problem or "another process cannot read it")
    sums = checksums(read)
    if wrong := [name for name, value in index["checksums"].items() if sums.get(name) != value]:
        raise Damaged(step, f"the checksums of {', '.join(wrong)} do not match")
    return unpacked(read, stored, template, lead), index


def _restored(folder: Path, like: Packed) -> Packed:
    """Arrays as orbax reads them.

    Raises:
      ValueError: saying in one line what it could not read.
    """
    problem = ""
    with _without_stragglers():
        try:
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
                return reader.restore(folder.absolute(), args=ocp.args.StandardRestore(like))
        except Exception as error:
            problem = _first_line(error)
        # Where one array cannot be read, the reads of the others end a little later.
        time.sleep(STRAGGLER_SECONDS)
        gc.collect()
    raise ValueError(problem)


@contextmanager
def _without_stragglers() -> Iterator[None]:
    """Silences what reads print that nobody waits for any more: pages of traces of one cause."""
    hook, log = sys.unraisablehook, logging.getLogger("asyncio")
    sys.unraisablehook, log.disabled = lambda _: None, True
    try:
        yield
    finally:
        sys.unraisablehook, log.disabled = hook, False


def _difference(stored: list[Entry], wanted: list[Entry]) -> str:
    """The first names and shapes that differ, `-` for those stored and `+` for those wanted."""
    ours, theirs = ({e.name: list(e.shape) for e in side} for side in (stored, wanted))
    lines = [f"  - {n} {shape}" for n, shape in ours.items() if theirs.get(n) != shape]
    lines += [f"  + {n} {shape}" for n, shape in theirs.items() if ours.get(n) != shape]
    shown = lines[:LINES_SHOWN]
    if len(lines) > LINES_SHOWN:
        shown.append(f"  and {len(lines) - LINES_SHOWN} more")
    return "\n".join(shown)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
