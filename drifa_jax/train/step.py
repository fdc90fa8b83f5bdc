"""One training step and one evaluation step, as pure functions; `loop.py` jits them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from drifa_jax.models.functional import Functional
from drifa_jax.models.pixels import scale_pixels
from drifa_jax.models.stochastic_depth import StochasticDepth
from drifa_jax.rng import stream
from drifa_jax.train.evaluated import IN_TRAINING, Evaluation
from drifa_jax.train.losses import TaskLoss, total_loss
from drifa_jax.train.parameter_groups import ALL_ALIKE, ParameterGroups, completed
from drifa_jax.train.stacking import stack
from drifa_jax.train.state import TrainState

Batch = Mapping[str, Any]
Sums = dict[str, Any]
Mix = Callable[..., tuple[dict[str, jax.Array], dict[str, jax.Array]]]
"""`(images, labels, key, present=)` -> mixed images and class probabilities by task."""


def make_train_step(
    network: Functional,
    optimizer: optax.GradientTransformation,
    losses: Mapping[str, TaskLoss],
    *,
    mix: Mix | None = None,
    masks_absent: bool = False,
    groups: ParameterGroups = ALL_ALIKE,
    evaluation: Evaluation = IN_TRAINING,
    stochastic_depth: float = 0.0,
    rematerialise: bool = False,
    gathered: Callable[[Any], Any] = lambda params: params,
    reduced: Callable[[Any], Any] = lambda gradients: gradients,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Sums]]:
    """The pure function `(state, batch, root_key) -> (state, sums)`.

    Args:
      network: its `apply` gives `((logits by task, intermediates), statistics)`.
      optimizer: from `optimizer.make_optimizer`.
      losses: task -> how it is scored.
      mix: blends the records of a batch, as `data.mixing.mixup` does; None leaves them alone.
      masks_absent: whether records may lack a modality; when none does, leaving the masks out
        saves their cost.
      groups: which parameters are trained. Of the others no gradient is computed, and nothing is
        differentiated but what leads from the trained ones to the loss.
      evaluation: whether a moving average of the parameters goes along.
      stochastic_depth: rate at which a record skips the last residual block of a branch.
      rematerialise: whether the backward pass computes the activations inside stages again.
      gathered: puts together parameters that lie in pieces.
      reduced: cuts gradients into the same pieces.

    The returned `sums` hold, for each task, sums over the batch's labelled records of `loss` and
    `correct` and their `count`; besides `total` (the loss of this batch) and `gradient_norm`.
    Randomness: dropout draws from `stream(root_key, "dropout", step)`, mixing and stochastic depth
    from the streams "mix" and "stochastic_depth", so that a resumed run draws what an uninterrupted
    one would have drawn.
    """

    def train_step(state: TrainState, batch: Batch, root_key: jax.Array):
        _check(batch)
        present = batch["present"] if masks_absent else None
        images, targets = scale_pixels(batch["images"]), None
        if mix is not None:
            images, targets = mix(
                images, batch["labels"], stream(root_key, "mix", state.step), present=present
            )

        options = {"rematerialise": True} if rematerialise else {}
        if stochastic_depth:
            key = stream(root_key, "stochastic_depth", state.step)
            options["depth"] = StochasticDepth(key, stochastic_depth)

        def objective(trained):
            (logits, seen), statistics = network.apply(
                gathered(completed(trained, state.params)),
                state.statistics,
                images,
                train=groups.trains_branches(images),
                dropout_key=stream(root_key, "dropout", state.step),
                present=present,
                **options,
            )
            total, sums = total_loss(
                logits, batch["labels"], losses, targets, seen=seen, present=present
            )
            return total, (sums, statistics)

        trained = groups.trained(state.params)
        (total, (sums, statistics)), gradients = jax.value_and_grad(objective, has_aux=True)(
            trained
        )
        gradients = reduced(gradients)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, trained)
        updates = jax.tree.map(lambda u: u * state.learning_rate_scale, updates)
        sums |= {"total": total, "gradient_norm": optax.tree.norm(stack(gradients))}
        trained = optax.apply_updates(trained, updates)
        return (
            TrainState(
                step=state.step + 1,
                params=completed(trained, state.params),
                statistics=statistics,
                optimizer_state=optimizer_state,
                learning_rate_scale=state.learning_rate_scale,
                evaluated=evaluation.after_step(state.evaluated, trained, statistics, state.step),
            ),
            sums,
        )

    return train_step


def make_evaluation_step(
    network: Functional, *, masks_absent: bool = False
) -> Callable[[Any, Any, Batch], dict[str, jax.Array]]:
    """The pure function `(params, statistics, batch) -> logits by task`, dropout off.

    Batch norm uses its moving averages, so a record's logits do not depend on its batch mates.
    """

    def evaluation_step(params, statistics, batch: Batch):
        _check(batch)
        (logits, _), _ = network.apply(
            params,
            statistics,
            scale_pixels(batch["images"]),
            train=False,
            present=batch["present"] if masks_absent else None,
        )
        return {task: values.astype(jnp.float32) for task, values in logits.items()}

    return evaluation_step


def _check(batch: Batch) -> None:
    """Refuses, when a step is traced, what would otherwise be broadcast in silence."""
    arrays = [batch[part] for part in ("images", "labels", "present") if part in batch]
    chex.assert_equal_shape_prefix(jax.tree.leaves(arrays), 1)
    labels = list(batch.get("labels", {}).values())
    chex.assert_rank(labels, 1)
    chex.assert_type(labels, int)
