"""Checkpoints: the newest states to go on from, and the best one to predict with.

Orbax writes each checkpoint under a temporary name and renames it when it is complete, so a
kill at any moment leaves the ones before intact. A state has thousands of small arrays, each of
which costs orbax milliseconds; they travel in one vector per dtype (`packed`).
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from drifa_jax.errors import UserError
from drifa_jax.train.state import TrainState

VALIDATION_LOSS = "validation_loss"
Progress = dict[str, Any]
"""What the host remembers beside the state: plain JSON values."""


class Checkpoints:
    """The checkpoints in one directory, numbered by training step.

    Args:
      directory: created when missing.
      keep: how many of the newest stay, besides the best.
    """

    def __init__(self, directory: Path, *, keep: int = 2):
        policies = ocp.checkpoint_managers
        self._directory = directory.absolute()
        self._options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics[VALIDATION_LOSS],
            best_mode="min",
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    policies.BestN(
                        get_metric_fn=lambda metrics: metrics[VALIDATION_LOSS],
                        reverse=True,
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(self._directory, options=self._options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def save(
        self, state: TrainState, progress: Progress, validation_loss: float | None = None
    ) -> None:
        """Writes a checkpoint in the background.

        Args:
          state: may be donated as soon as this returns.
          progress: what the host needs to go on.
          validation_loss: given at the end of an epoch; the lowest marks the best checkpoint.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(packed(state)),
                names=ocp.args.JsonSave(_shapes(state)),
                progress=ocp.args.JsonSave(progress),
            ),
            metrics=None if validation_loss is None else {VALIDATION_LOSS: validation_loss},
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
            try:
                return self._read(step, template)
            except Exception as error:
                aside = self._move_aside(step)
                logging.getLogger(__name__).warning(
                    "Checkpoint %d cannot be read (%s). It was moved to %s; "
                    "going on from the one before it.",
                    step,
                    str(error).splitlines()[0][:200] if str(error) else type(error).__name__,
                    aside,
                )
        return None

    def best(self, template: TrainState) -> tuple[TrainState, Progress]:
        """The checkpoint with the lowest validation loss.

        Raises:
          UserError: when no epoch was completed, or the checkpoint is damaged.
        """
        step = self._manager.best_step()
        if step is None:
            raise UserError(f"{self._directory} holds no checkpoint of a completed epoch.")
        try:
            return self._read(step, template)
        except Exception as error:
            raise UserError(
                f"The best checkpoint, {self._directory / str(step)}, cannot be read: {error}"
            ) from error

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

    def _move_aside(self, step: int) -> Path:
        aside = self._directory.parent / "damaged_checkpoints" / str(step)
        aside.parent.mkdir(exist_ok=True)
        if aside.exists():
            shutil.rmtree(aside)
        shutil.move(self._directory / str(step), aside)
        self._manager.close()
        self._manager = ocp.CheckpointManager(self._directory, options=self._options)
        return aside


LARGE = 2**18
"""Elements from which an array is stored on its own."""


def packed(state: TrainState) -> dict[str, dict[str, Any]]:
    """The state as few arrays on the host: `large` by name, and `small` ones by dtype, end to end.

    All are copies, so that the state may be donated at once.
    """
    large, small = {}, {}
    for name, leaf in _named(state).items():
        if leaf.size >= LARGE:
            large[name] = np.array(leaf)
        else:
            small.setdefault(leaf.dtype.name, []).append(np.asarray(leaf).reshape(-1))
    return {"large": large, "small": {dtype: np.concatenate(v) for dtype, v in small.items()}}


def unpacked(stored: dict[str, dict[str, Any]], template: TrainState) -> TrainState:
    """The state that `packed` stored, with the template's shapes and, where given, shardings."""
    start = dict.fromkeys(stored["small"], 0)
    leaves = []
    for name, like in _named(template).items():
        if like.size >= LARGE:
            leaf = stored["large"][name]
        else:
            dtype = np.dtype(like.dtype).name
            leaf = stored["small"][dtype][start[dtype] : start[dtype] + like.size]
            leaf = leaf.reshape(like.shape)
            start[dtype] += like.size
        leaves.append(leaf)
    shardings = [getattr(like, "sharding", None) for like in jax.tree.leaves(template)]
    return jax.tree.unflatten(jax.tree.structure(template), jax.device_put(leaves, shardings))


def _packed_like(template: TrainState) -> dict[str, dict[str, Any]]:
    large, sizes = {}, {}
    for name, like in _named(template).items():
        if like.size >= LARGE:
            large[name] = np.empty(like.shape, like.dtype)
        else:
            dtype = np.dtype(like.dtype).name
            sizes[dtype] = sizes.get(dtype, 0) + like.size
    return {
        "large": large,
        "small": {dtype: np.empty(size, dtype) for dtype, size in sizes.items()},
    }


def _named(state: TrainState) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _shapes(state: TrainState) -> dict[str, list[int]]:
    return {name: list(leaf.shape) for name, leaf in _named(state).items()}


def _difference(stored: dict[str, list[int]], wanted: dict[str, list[int]]) -> str:
    """Names and shapes that differ, `-` for those stored and `+` for those wanted."""
    lines = [f"  - {n} {shape}" for n, shape in stored.items() if wanted.get(n) != shape]
    lines += [f"  + {n} {shape}" for n, shape in wanted.items() if stored.get(n) != shape]
    return "\n".join(lines)
