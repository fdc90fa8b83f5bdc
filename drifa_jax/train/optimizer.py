"""Adam, its learning-rate schedules, and the plateau rule of the authors' training."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

import jax
import optax

from drifa_jax.train.parameter_groups import ALL_ALIKE, ParameterGroups
from drifa_jax.train.stacking import APART, stacked

SCHEDULES = ("constant", "cosine")


def make_optimizer(
    *,
    learning_rate: float,
    schedule: str = "constant",
    num_steps: int = 1,
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    groups: ParameterGroups = ALL_ALIKE,
) -> optax.GradientTransformation:
    """Adam (AdamW with weight decay) over the whole run.

    Args:
      learning_rate: peak step size; the authors use 1e-3.
      schedule: "constant", or "cosine" from the peak to 0 at `num_steps`.
      num_steps: length of the run, for "cosine".
      warmup_steps: linear rise from 0 to the peak.
      weight_decay: decoupled, on matrices and kernels only; 0 switches it off.
      clip_norm: gradients of a larger global norm are scaled down to it; 0 switches it off.
      groups: which parameters decay, and the scale of each one's learning rate.

    Raises:
      ValueError: for an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}; choose one of {SCHEDULES}.")
    after_warmup = (
        optax.cosine_decay_schedule(learning_rate, max(num_steps - warmup_steps, 1))
        if schedule == "cosine"
        else optax.constant_schedule(learning_rate)
    )
    rate = (
        optax.join_schedules(
            [optax.linear_schedule(0.0, learning_rate, warmup_steps), after_warmup], [warmup_steps]
        )
        if warmup_steps
        else after_warmup
    )
    parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    parts.append(optax.scale_by_adam())
    if weight_decay:
        parts.append(optax.add_decayed_weights(weight_decay, mask=_kernels))
    parts.append(optax.scale_by_learning_rate(rate))
    optimizer = stacked(optax.chain(*parts), groups.embeddings)
    return optimizer if groups.rate_scales is None else with_scales(optimizer, groups.rate_scales)


def _kernels(stacks):
    """True for matrices and convolution kernels; scales, biases and embeddings do not decay."""
    return {
        place: values.ndim - 1 > 1 and not place.startswith(APART)
        for place, values in stacks.items()
    }


def with_scales(inner: optax.GradientTransformation, scales: Any) -> optax.GradientTransformation:
    """The updates of an optimiser, each leaf's times its own scale."""

    def update(gradients, state, params=None):
        updates, state = inner.update(gradients, state, params)
        return jax.tree.map(operator.mul, updates, scales), state

    return optax.GradientTransformation(inner.init, update)


@dataclass(frozen=True)
class Plateau:
    """Lowers the learning rate when the validation loss stops falling, and says when to stop.

    Attributes:
      factor: what the rate is multiplied by (the authors' 0.2); 1 leaves it alone.
      patience: epochs without improvement before that (the authors' 5).
      min_scale: the rate never falls below this share of the peak (the authors' 1e-5 / 1e-3).
      best: lowest validation loss so far.
      waited: epochs since the last improvement or reduction.
      since_best: epochs since the last improvement; early stopping reads it.
      scale: current share of the peak.

    Source: Keras' ReduceLROnPlateau as the authors set it, with a threshold of 1e-4.
    """

    factor: float = 0.2
    patience: int = 5
    min_scale: float = 1e-2
    best: float = float("inf")
    waited: int = 0
    since_best: int = 0
    scale: float = 1.0

    def after_epoch(self, loss: float) -> Plateau:
        """The rule's state after an epoch with this validation loss."""
        if loss < self.best - 1e-4:
            return replace(self, best=loss, waited=0, since_best=0)
        waited = self.waited + 1
        if waited < self.patience:
            return replace(self, waited=waited, since_best=self.since_best + 1)
        return replace(
            self,
            waited=0,
            since_best=self.since_best + 1,
            scale=max(self.scale * self.factor, self.min_scale),
        )
