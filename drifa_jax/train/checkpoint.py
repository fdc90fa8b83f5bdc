"""Checkpoints: the newest states to go on from, and the best model to predict with.

    checkpoints/<step>/
      model, model_index         parameters and statistics; what they are, and how good
      training, training_index   the rest of the state, and what the host remembers beside it

Whoever predicts reads `model` alone: where averaged weights or estimated statistics are evaluated,
it holds these, and `training` those in training. An index is JSON: names and shapes of the arrays,
their checksums, and a digest of itself, so that what changed on the disk is noticed when it is
read. Orbax writes each checkpoint under a temporary name and renames it when it is complete, so a
kill at any moment leaves the ones before intact. Readers change nothing, also while a run goes on.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from drifa_jax.digests import digest, sealed
from drifa_jax.errors import UserError
from drifa_jax.processes import on_first
from drifa_jax.train import older_checkpoints
from drifa_jax.train.checkpoint_items import FORMAT, Damaged, read_index, read_item
from drifa_jax.train.evaluated import Evaluated
from drifa_jax.train.identity import model_identity
from drifa_jax.train.packing import checksums, entries, packed
from drifa_jax.train.parameter_groups import completed, part_like
from drifa_jax.train.state import Model, TrainState, steps_done

DELETION_SECONDS = 0.3
"""In which a checkpoint that a run in progress deletes is gone."""

Progress = dict[str, Any]
"""What the host remembers beside the state: plain JSON values."""


class _LatestAndBest(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the newest checkpoints, of each member the best, and those that cannot be judged."""

    def __init__(self, num_latest: int, losses: Mapping[int, list[float] | None]):
        self._num_latest, self._losses = num_latest, losses

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        kept = {info.step for info in checkpoints[-self._num_latest :]}
        kept |= set(best_steps(self._losses))
        return [info.step in kept or info.step not in self._losses for info in checkpoints]


def best_steps(losses: Mapping[int, Sequence[float] | None]) -> list[int]:
    """The step with the lowest validation loss, of each member; empty where none has one.

    Args:
      losses: step -> each member's; None for one within an epoch. The first of equals counts.
    """
    known = {step: of_members for step, of_members in sorted(losses.items()) if of_members}
    steps = list(known)
    return [steps[i] for i in np.argmin(list(known.values()), axis=0)] if known else []


def steps_in(directory: Path) -> list[int]:
    """The steps that a directory holds complete checkpoints of, in order."""
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal())


class Checkpoints:
    """The checkpoints of a run that this process writes, alone or with those that train with it.

    Args:
      directory: created when missing.
      description: of the network and its data as plain JSON values, kept with every model.
      keep: how many of the newest stay, besides the best.
    """

    def __init__(
        self, directory: Path, *, description: Mapping[str, Any] | None = None, keep: int = 2
    ):
        self._directory, self._description = directory.absolute(), description
        self._losses: dict[int, list[float] | None] = {}
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=_LatestAndBest(keep, self._losses), cleanup_tmp_directories=True
        )
        self._open()

    def _open(self) -> None:
        self._manager = ocp.CheckpointManager(self._directory, options=self._options)
        self._losses.clear()
        for step in steps_in(self._directory):
            try:
                self._losses[step] = _judged(self._directory, step)["validation_loss"]
            except Damaged:
                pass  # It is never deleted, and named as soon as it is needed.

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
        step, lead = steps_done(state), state.step.ndim
        if step in self._manager.all_steps():
            return
        losses = None if validation_loss is None else np.atleast_1d(validation_loss).tolist()
        model, training = (packed(tree, lead) for tree in (_model(state), _training(state)))
        arrays, sums = entries(_model(state), lead), checksums(model)
        identity = model_identity(arrays, sums, self._description)
        common = {"format": FORMAT, "step": step, "identity": identity}
        model_index = common | {
            "arrays": arrays,
            "checksums": sums,
            "validation_loss": losses,
            "description": self._description,
        }
        training_index = common | {
            "arrays": entries(_training(state), lead),
            "checksums": checksums(training),
            "progress": progress,
        }
        self._losses[step] = losses
        self._manager.save(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(model),
                model_index=ocp.args.JsonSave(sealed(model_index)),
                training=ocp.args.StandardSave(training),
                training_index=ocp.args.JsonSave(sealed(training_index)),
            ),
        )

    def wait(self) -> None:
        """Returns when everything saved so far is on disk."""
        self._manager.wait_until_finished()

    def newest(self, template: TrainState) -> tuple[TrainState, Progress] | None:
        """The newest readable checkpoint, or None where there is none.

        A damaged one is moved aside, with a warning, and the one before it is taken.

        Args:
          template: shapes, dtypes and shardings to restore into.

        Raises:
          UserError: when an earlier release wrote it.
        """
        self.wait()
        lead = template.step.ndim
        for step in reversed(steps_in(self._directory)):
            if older_checkpoints.is_older(self._directory / str(step)):
                raise UserError(
                    f"{self._directory / str(step)} was written by an earlier release. Its model "
                    "can be used by every command, but training cannot go on from it; choose "
                    "another --workdir, or the release that environment.json beside it names."
                )
            try:
                tree, model = read_item(self._directory, step, "model", _model(template), lead)
                rest, index = read_item(
                    self._directory, step, "training", _training(template), lead
                )
                if index["identity"] != model["identity"]:
                    raise Damaged(step, "its model and its training are of two checkpoints")
            except Damaged as damage:
                self._move_aside(damage)
                continue
            return _joined(template, tree, rest), index["progress"]
        return None

    def best(self, template: TrainState) -> Model:
        """The model with the lowest validation loss; of an ensemble, each member's own.

        A damaged one is moved aside, with a warning, and the next best is taken.

        Raises:
          UserError: when no epoch was completed.
        """
        self.wait()
        like = Model(template.step, template.params, template.statistics)
        while True:
            try:
                return _best(self._directory, lambda _: like)
            except Damaged as damage:
                self._move_aside(damage)

    def _move_aside(self, damage: Damaged) -> None:
        aside = self._directory.parent / "damaged_checkpoints" / str(damage.step)

        def move() -> None:
            aside.parent.mkdir(exist_ok=True)
            if aside.exists():
                shutil.rmtree(aside)
            shutil.move(self._directory / str(damage.step), aside)
            logging.getLogger(__name__).warning(
                "Checkpoint %d cannot be read (%s). It was moved to %s; "
                "going on from the one before it.",
                damage.step,
                damage,
                aside,
            )

        self._manager.close()
        on_first(move)
        self._open()


def best_model(directory: Path, template: Callable[[Mapping[str, Any] | None], Model]) -> Model:
    """The model with the lowest validation loss in a directory, in which nothing is changed.

    Args:
      directory: of checkpoints; the run may be in progress.
      template: from the description that the checkpoint holds (None where it is of an earlier
        release) to shapes, dtypes and, where leaves are to be on devices, shardings.

    Raises:
      UserError: when no epoch was completed, or a checkpoint is damaged.
    """
    failed: set[int] = set()
    while True:
        try:
            return _best(directory, template)
        except Damaged as damage:
            folder = directory / str(damage.step)
            time.sleep(DELETION_SECONDS)
            # The run that writes it may have deleted it just now; another is the best then.
            if damage.step in failed and folder.exists():
                raise UserError(
                    f"The checkpoint {folder} cannot be read: {damage}. Start the training again, "
                    "which moves it aside and goes on from the one before it; or delete it, and "
                    "the best of the others is taken."
                ) from damage
            failed.add(damage.step)


def _best(directory: Path, template: Callable[[Mapping[str, Any] | None], Model]) -> Model:
    indexes = {step: _judged(directory, step) for step in steps_in(directory)}
    steps = best_steps({step: index["validation_loss"] for step, index in indexes.items()})
    if not steps:
        raise UserError(
            f"{directory} holds no checkpoint of a completed epoch; train to the end of one first."
        )
    description = indexes[steps[0]]["description"]
    like = template(description)
    if len(steps) != np.prod(like.step.shape):
        raise UserError(
            f"{directory} holds the checkpoints of {len(steps)} members, and the configuration "
            f"beside it asks for {int(np.prod(like.step.shape))}."
        )
    best, identities = None, {}
    for step in dict.fromkeys(steps):
        tree, index = read_item(directory, step, "model", _model(like), like.step.ndim)
        identities[step] = index["identity"]
        best = tree if best is None else _take(best, tree, np.array(steps) == step)
    identity = identities[steps[0]]
    if len(identities) > 1:
        identity = digest([identities[step] for step in steps])
    of_members = np.array(steps, np.int32).reshape(like.step.shape)
    return Model(of_members, **best, identity=identity, description=description)


def _judged(directory: Path, step: int) -> Mapping[str, Any]:
    """The index of a model: `validation_loss`, by member or None within an epoch, and more."""
    folder = directory / str(step)
    if older_checkpoints.is_older(folder):
        return {"validation_loss": older_checkpoints.losses(folder), "description": None}
    return read_index(directory, step, "model")


def _model(state: TrainState | Model) -> dict[str, Any]:
    params, statistics = state.weights()
    return {"params": params, "statistics": statistics}


def _training(state: TrainState) -> dict[str, Any]:
    """What the model does not hold: of the weights, those that are evaluated in another form."""
    fields = ("step", "optimizer_state", "learning_rate_scale")
    training = {name: getattr(state, name) for name in fields}
    if state.evaluated is not None:
        params = part_like(state.evaluated.params, state.params)
        training |= {"params": params, "statistics": state.statistics}
    return training


def _joined(template: TrainState, model: dict[str, Any], training: dict[str, Any]) -> TrainState:
    """The state of which these are `_model` and `_training`."""
    if template.evaluated is not None:
        params = part_like(template.evaluated.params, model["params"])
        training = training | {
            "evaluated": Evaluated(params, model["statistics"]),
            "params": completed(training["params"], model["params"]),
        }
    return dataclasses.replace(template, **model | training)


def _take(tree: Any, other: Any, members: np.ndarray) -> Any:
    """The tree with some members, `[e]` bool, replaced by those of another."""

    def chosen(ours, theirs, members):
        return np.where(members.reshape(-1, *(1,) * (ours.ndim - 1)), theirs, ours)

    def take(leaf, replacement):
        if not isinstance(leaf, jax.Array):
            return chosen(leaf, replacement, members)
        pieces = [
            jax.device_put(
                chosen(np.asarray(a.data), np.asarray(b.data), members[a.index[0]]), a.device
            )
            for a, b in zip(leaf.addressable_shards, replacement.addressable_shards, strict=True)
        ]
        return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, pieces)

    return jax.tree.map(take, tree, other)
