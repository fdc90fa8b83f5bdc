"""Statistics of batch norm, estimated anew for the weights that are evaluated.

Moving averages trail behind weights that move: with the paper's momentum of 0.99 validation swings
from epoch to epoch while the training loss falls smoothly. Here the weights stand still while a
few batches pass, without dropout.
"""

from __future__ import annotations

import dataclasses
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from drifa_jax.compilation import compiler_options
from drifa_jax.models import kernels
from drifa_jax.models.pixels import scale_pixels
from drifa_jax.sharding import DATA_AXIS, Layout, put
from drifa_jax.train.experiment import Experiment
from drifa_jax.train.feed import Feed
from drifa_jax.train.parameter_groups import completed, part_like
from drifa_jax.train.state import TrainState


class StatisticsEstimate:
    """Estimates the statistics that a state is evaluated with; compiled at its first call.

    The batches are the first that the run was trained with, augmented as then, so that an estimate
    depends on nothing but the weights and the configuration.

    Args:
      experiment: whose network, records and options.
      layout: where its arrays live.
      template: shapes, dtypes and shardings of a state.

    Source: Wu and Johnson, "Rethinking 'batch' in BatchNorm", 2021 (precise batch norm).
    """

    def __init__(self, experiment: Experiment, layout: Layout, template: TrainState):
        self._experiment, self._layout = experiment, layout
        self._wanted = template.statistics

        def add(sums, params, statistics, batch):
            return self._add(sums, layout.gathered(params), statistics, batch)

        whole = jax.tree.map(lambda leaf: leaf.sharding, self._wanted)
        part = self._part(whole)
        options = compiler_options()
        self._step = jax.jit(
            layout.of_members(add),
            donate_argnums=0,
            out_shardings=(part, part),
            compiler_options=options,
        )
        self._mean = jax.jit(_estimated, out_shardings=whole)

    def __call__(self, state: TrainState) -> TrainState:
        """The state with new statistics to be evaluated with; nothing in training changes."""
        params, old = state.weights()
        sums = (self._zeros(), self._zeros())
        feed = Feed(self._experiment, self._layout, 0)
        with closing(feed), kernels.batch_over(self._layout.mesh.shape[DATA_AXIS]):
            for _ in range(self._experiment.evaluation.statistics_batches):
                sums = self._step(sums, params, old, feed.next(lambda: False)[1])
        evaluated = dataclasses.replace(state.evaluated, statistics=self._mean(*sums, old))
        return dataclasses.replace(state, evaluated=evaluated)

    def _zeros(self) -> Any:
        return jax.tree.map(
            lambda like: put(np.zeros(like.shape, like.dtype), like.sharding),
            self._part(self._wanted),
        )

    def _part(self, statistics: Any) -> Any:
        return self._experiment.groups.trained_statistics(statistics)

    def _add(self, sums: Any, params: Any, statistics: Any, batch: Any) -> Any:
        """Sums of shares of batch statistics, and of these shares, with those of one batch more.

        A moving average becomes `kept * old + (1 - kept) * batch`: its value from 0 and its slope
        say what the batch's statistics are, and whether any record in it had the modality.
        """
        experiment = self._experiment
        present = batch["present"] if experiment.dataset.may_lack_modalities else None
        images = scale_pixels(batch["images"])

        def after(before):
            return self._part(
                experiment.network.apply(
                    params,
                    completed(before, statistics),
                    images,
                    train=experiment.groups.trains_branches(images),
                    present=present,
                )[1]
            )

        nought = jax.tree.map(jnp.zeros_like, self._part(statistics))
        slope = jax.tree.map(jnp.ones_like, nought)
        shares, kept = jax.jvp(after, (nought,), (slope,))
        weights = jax.tree.map(lambda of_old: 1 - of_old, kept)
        return jax.tree.map(jnp.add, sums, (shares, weights))


def _estimated(shares: Any, weights: Any, old: Any) -> Any:
    """Means of batch statistics; what no batch had stays as it was."""

    def mean(share, weight, before):
        known = weight > 0
        return jnp.where(known, share / jnp.where(known, weight, 1), before)

    return completed(jax.tree.map(mean, shares, weights, part_like(shares, old)), old)
