"""Logits of a whole split, every record exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from drifa_jax.compilation import compiler_options
from drifa_jax.sharding import data_mesh, place_batch, replicated
from drifa_jax.train.experiment import Experiment
from drifa_jax.train.losses import TaskLoss, total_loss
from drifa_jax.train.step import make_evaluation_step


@dataclass(frozen=True)
class SplitLogits:
    """What a network says of a split.

    Attributes:
      index: `[n]` index of each record in its source, increasing.
      logits: task -> `[n, num_classes]` float32.
      labels: task -> `[n]` int32, negative where missing.
    """

    index: np.ndarray
    logits: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]

    def losses(self, losses: Mapping[str, TaskLoss]) -> dict[str, float]:
        """`total`, and `loss` and `accuracy` of each task (`task/loss`), over labelled records."""
        total, sums = total_loss(self.logits, self.labels, losses)
        scalars = {"total": float(total)}
        for task, of_task in sums.items():
            count = max(float(of_task["count"]), 1.0)
            scalars[f"{task}/loss"] = float(of_task["loss"]) / count
            scalars[f"{task}/accuracy"] = float(of_task["correct"]) / count
        return scalars


class SplitPredictor:
    """Runs an evaluation step over the batches of a split; compiled once.

    Args:
      evaluation_step: `(params, statistics, batch) -> logits by task`.
      mesh: over whose devices each batch is split.
    """

    def __init__(self, evaluation_step: Callable[..., dict[str, jax.Array]], mesh: Mesh):
        self._mesh = mesh

        def step(params, statistics, batch):
            seen = {key: batch[key] for key in ("index", "labels", "valid")}
            return seen | {"logits": evaluation_step(params, statistics, batch)}

        # Replicated, so that every process holds the whole result.
        self._step = jax.jit(
            step, out_shardings=replicated(mesh), compiler_options=compiler_options()
        )

    def __call__(self, params: Any, statistics: Any, batches: Iterable[Mapping]) -> SplitLogits:
        """Logits and labels of every valid record, ordered by its index."""
        pieces, running = [], None
        for batch in batches:
            following = self._step(params, statistics, place_batch(_narrow(batch), self._mesh))
            if running is not None:
                pieces.append(_valid(jax.device_get(running)))
            running = following
        if running is None:
            raise ValueError("There is no batch to predict.")
        pieces.append(_valid(jax.device_get(running)))
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)
        order = np.argsort(joined["index"], kind="stable")
        joined = jax.tree.map(lambda values: values[order], joined)
        return SplitLogits(joined["index"], joined["logits"], joined["labels"])


def split_predictor(experiment: Experiment) -> SplitPredictor:
    """The predictor of an experiment's network, over all devices."""
    return SplitPredictor(
        make_evaluation_step(
            experiment.network, masks_absent=experiment.dataset.may_lack_modalities
        ),
        data_mesh(),
    )


def _narrow(batch: Mapping) -> dict:
    """Indices as int32, which is what a device holds without 64-bit mode."""
    return {**batch, "index": np.asarray(batch["index"]).astype(np.int32)}


def _valid(outputs: dict[str, Any]) -> dict[str, Any]:
    kept = outputs.pop("valid")
    return jax.tree.map(lambda values: values[kept], outputs)
