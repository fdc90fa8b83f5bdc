"""Checkpoints: the newest states to go on from, and the best one to predict with.

Orbax writes each checkpoint under a temporary name and renames it when it is complete, so a
kill at any moment leaves the ones before intact. A state has thousands of small arrays, each of
which costs orbax milliseconds; they travel in one vector per dtype (`packed`). What is stored does
not depend on the devices, so that a run can go on with others. With several processes each
writes what only it holds.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from drifa_jax.errors import UserError
from drifa_jax.processes import all_say, on_first
from drifa_jax.sharding import ENSEMBLE_AXIS, is_large, put
from drifa_jax.train.state import TrainState, steps_done

VALIDATION_LOSS = "validation_loss"
LINES_SHOWN = 10
"""Of the difference between a checkpoint's parameters and a network's."""

Progress = dict[str, Any]
"""What the host remembers beside the state: plain JSON values."""


class _LatestAndBest(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the newest checkpoints, and of each member the one with its lowest loss."""

    def __init__(self, num_latest: int):
        self._num_latest = num_latest

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        kept = {info.step for info in checkpoints[-self._num_latest :]}
        kept |= set(best_steps({info.step: info.metrics for info in checkpoints}))
        return [info.step in kept for info in checkpoints]


def best_steps(metrics: Mapping[int, Mapping[str, Any] | None]) -> list[int]:
    """The step with the lowest validation loss, of each member; empty where none has one.

    Args:
      metrics: step -> what was saved with it. The first of equal losses counts.
    """
    losses = {
        step: np.atleast_1d(np.asarray(of[VALIDATION_LOSS], float))
        for step, of in sorted(metrics.items())
        if of is not None
    }
    if not losses:
        return []
    steps = list(losses)
    return [steps[i] for i in np.argmin(np.stack([losses[s] for s in steps]), axis=0)]


class Checkpoints:
    """The checkpoints in one directory, numbered by training step.

    Args:
      directory: created when missing.
      keep: how many of the newest stay, besides the best.
    """

    def __init__(self, directory: Path, *, keep: int = 2):
        self._directory = directory.absolute()
        self._options = ocp.CheckpointManagerOptions(
            # Orbax writes metrics only where it has something to rank by.
            best_fn=lambda metrics: np.min(metrics[VALIDATION_LOSS]),
            best_mode="min",
            preservation_policy=_LatestAndBest(keep),
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(self._directory, options=self._options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def save(
        self,
        state: TrainState,
        progress: Progress,
        validation_loss: float | Sequence[float] | None = None,
    ) -> None:
        """Writes a checkpoint in the background.

        Args:
          state: may be donated as soon as this returns.
          progress: what the host needs to go on.
          validation_loss: given at the end of an epoch, one for each member; a member's lowest
            marks its best checkpoint.
        """
        step = steps_done(state)
        if step in self._manager.all_steps():
            return
        losses = None if validation_loss is None else np.atleast_1d(validation_loss).tolist()
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(packed(state)),
                names=ocp.args.JsonSave(_shapes(state)),
                progress=ocp.args.JsonSave(progress),
            ),
            metrics=None if losses is None else {VALIDATION_LOSS: losses},
        )

    def wait(self) -> None:
        """Returns when everything saved so far is on disk."""
        self._manager.wait_until_finished()

    def newest(self, template: TrainState) -> tuple[TrainState, Progress] | None:
        """The newest readable checkpoint, or None where there is none.

        A damaged one is moved aside, with a warning, and the one before it is taken.

        Args:
          template: shapes, dtypes and shardings to restore into.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            read, problem = None, ""
            try:
                read = self._read(step, template)
            except Exception as error:
                problem = _first_line(error)
            if all_say(read is not None):
                return read
            self._move_aside(step, problem or "another process cannot read it")
        return None

    def best(self, template: TrainState) -> tuple[TrainState, Progress]:
        """The checkpoint with the lowest validation loss; of an ensemble, each member's own.

        The state's `step` then says from which checkpoint each member comes.

        Raises:
          UserError: when no epoch was completed, or the checkpoint is damaged.
        """
        self.wait()
        steps = best_steps({s: self._manager.metrics(s) for s in self._manager.all_steps()})
        if not steps:
            raise UserError(f"{self._directory} holds no checkpoint of a completed epoch.")
        best = progress = None
        for step in dict.fromkeys(steps):
            try:
                state, progress = self._read(step, template)
            except Exception as error:
                raise UserError(
                    f"The best checkpoint, {self._directory / str(step)}, cannot be read: {error}"
                ) from error
            best = state if best is None else _take(best, state, np.array(steps) == step)
        of_members = np.array(steps, np.int32).reshape(template.step.shape)
        return dataclasses.replace(best, step=of_members), progress

    def _read(self, step: int, template: TrainState) -> tuple[TrainState, Progress]:
        names = self._manager.restore(step, args=ocp.args.Composite(names=ocp.args.JsonRestore()))[
            "names"
        ]
        if difference := _difference(names, _shapes(template)):
            raise ValueError(f"it holds another network:\n{difference}")
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(_packed_like(template)),
                progress=ocp.args.JsonRestore(),
            ),
        )
        return unpacked(restored["state"], template), restored["progress"]

    def _move_aside(self, step: int, problem: str) -> None:
        aside = self._directory.parent / "damaged_checkpoints" / str(step)

        def move() -> None:
            aside.parent.mkdir(exist_ok=True)
            if aside.exists():
                shutil.rmtree(aside)
            shutil.move(self._directory / str(step), aside)
            logging.getLogger(__name__).warning(
                "Checkpoint %d cannot be read (%s). It was moved to %s; "
                "going on from the one before it.",
                step,
                problem,
                aside,
            )

        self._manager.close()
        on_first(move)
        self._manager = ocp.CheckpointManager(self._directory, options=self._options)


def packed(state: TrainState) -> dict[str, dict[str, Any]]:
    """The state as few arrays: `large` by name, and `small` ones by dtype, end to end.

    All are copies, so that the state may be donated at once. The members of an ensemble stay
    apart, `[e, n]`.
    """
    lead = state.step.ndim
    large, small = {}, {}
    for name, leaf in _named(state).items():
        if is_large(leaf.shape[lead:]):
            large[name] = _detached(leaf)
        else:
            small.setdefault(leaf.dtype.name, []).append(leaf)
    return {"large": large, "small": {dtype: _end_to_end(v, lead) for dtype, v in small.items()}}


def _detached(leaf: Any) -> Any:
    """An array that stays as it is when the leaf is donated."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return np.array(leaf)
    # Orbax copies from a device to the host before it returns, but reads a CPU's array in place.
    if leaf.sharding.mesh.devices.flat[0].platform != "cpu":
        return leaf
    pieces = [jax.device_put(np.array(s.data), s.device) for s in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, pieces)


def _end_to_end(leaves: list[Any], lead: int) -> Any:
    """Small arrays as one, `[n]` or `[e, n]`; a global array where no process has all members."""
    local = [_local_members(leaf) for leaf in leaves]
    joined = np.concatenate([x.reshape(*x.shape[:lead], -1) for x in local], axis=-1)
    first = leaves[0]
    if not lead or joined.shape[0] == first.shape[0]:
        return joined
    over_members = NamedSharding(first.sharding.mesh, PartitionSpec(ENSEMBLE_AXIS))
    return jax.make_array_from_process_local_data(
        over_members, joined, (first.shape[0], joined.shape[1])
    )


def _local_members(leaf: Any) -> np.ndarray:
    """A small array as far as this process holds its members."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return np.asarray(leaf)
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    pieces = {shard.index[0].start or 0: shard.data for shard in leaf.addressable_shards}
    return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])


def unpacked(stored: dict[str, dict[str, Any]], template: TrainState) -> TrainState:
    """The state that `packed` stored, with the template's shapes and, where given, shardings."""
    lead = template.step.ndim
    start = dict.fromkeys(stored["small"], 0)
    leaves = []
    for name, like in _named(template).items():
        if is_large(like.shape[lead:]):
            leaf = stored["large"][name]
            leaf = _placed(leaf, like) if isinstance(leaf, np.ndarray) else leaf
        else:
            dtype, size = np.dtype(like.dtype).name, math.prod(like.shape[lead:])
            leaf = stored["small"][dtype][..., start[dtype] : start[dtype] + size]
            leaf = _placed(leaf.reshape(like.shape), like)
            start[dtype] += size
        leaves.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _placed(leaf: np.ndarray, like: Any) -> jax.Array:
    sharding = getattr(like, "sharding", None)
    return jax.device_put(leaf) if sharding is None else put(leaf, sharding)


def _packed_like(template: TrainState) -> dict[str, dict[str, Any]]:
    """What to restore into: large arrays in their places, small ones on the host of everyone."""
    lead = template.step.ndim
    large, sizes = {}, {}
    for name, like in _named(template).items():
        if is_large(like.shape[lead:]):
            placed = getattr(like, "sharding", None) is not None
            large[name] = like if placed else np.empty(like.shape, like.dtype)
        else:
            dtype = np.dtype(like.dtype).name
            sizes[dtype] = sizes.get(dtype, 0) + math.prod(like.shape[lead:])
    return {
        "large": large,
        "small": {
            dtype: np.empty((*template.step.shape, size), dtype) for dtype, size in sizes.items()
        },
    }


def _take(state: TrainState, other: TrainState, members: np.ndarray) -> TrainState:
    """The state with some members, `[e]` bool, replaced by those of another."""

    def take(leaf, replacement):
        pieces = []
        for ours, theirs in zip(
            leaf.addressable_shards, replacement.addressable_shards, strict=True
        ):
            chosen = members[ours.index[0]]
            chosen = chosen.reshape(-1, *(1,) * (leaf.ndim - 1))
            piece = np.where(chosen, np.asarray(theirs.data), np.asarray(ours.data))
            pieces.append(jax.device_put(piece, ours.device))
        return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, pieces)

    return jax.tree.map(take, state, other)


def _named(state: TrainState) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _shapes(state: TrainState) -> dict[str, list[int]]:
    return {name: list(leaf.shape) for name, leaf in _named(state).items()}


def _difference(stored: dict[str, list[int]], wanted: dict[str, list[int]]) -> str:
    """The first names and shapes that differ, `-` for those stored and `+` for those wanted."""
    lines = [f"  - {n} {shape}" for n, shape in stored.items() if wanted.get(n) != shape]
    lines += [f"  + {n} {shape}" for n, shape in wanted.items() if stored.get(n) != shape]
    shown = lines[:LINES_SHOWN]
    if len(lines) > LINES_SHOWN:
        shown.append(f"  and {len(lines) - LINES_SHOWN} more")
    return "\n".join(shown)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
