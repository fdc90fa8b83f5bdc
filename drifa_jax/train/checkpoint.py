"""Checkpoints: the newest states to go on from, and the best one to predict with.

Orbax writes each checkpoint under a temporary name and renames it when it is complete, so a
kill at any moment leaves the ones before intact.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
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
        # On CPU orbax reads the device's own memory, which the next step overwrites.
        copied = jax.tree.map(jnp.copy, state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(copied), progress=ocp.args.JsonSave(progress)
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
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(like), progress=ocp.args.JsonRestore()
            ),
        )
        return restored["state"], restored["progress"]

    def _move_aside(self, step: int) -> Path:
        aside = self._directory.parent / "damaged_checkpoints" / str(step)
        aside.parent.mkdir(exist_ok=True)
        if aside.exists():
            shutil.rmtree(aside)
        shutil.move(self._directory / str(step), aside)
        self._manager.close()
        self._manager = ocp.CheckpointManager(self._directory, options=self._options)
        return aside
