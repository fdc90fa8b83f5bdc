"""Logits of a whole split, every record exactly once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax, logsumexp

from drifa_jax.compilation import compiler_options
from drifa_jax.data.pipeline import evaluation_batches
from drifa_jax.data.record import Source
from drifa_jax.sharding import Layout, layout_of, replicated
from drifa_jax.train.experiment import Experiment
from drifa_jax.train.losses import TaskLoss, total_loss
from drifa_jax.train.step import make_evaluation_step


@dataclass(frozen=True)
class SplitLogits:
    """What a network, or an ensemble, says of a split.

    Attributes:
      index: `[n]` index of each record in its source, increasing.
      member_logits: task -> `[e, n, num_classes]` float32.
      labels: task -> `[n]` int32, negative where missing.
    """

    index: np.ndarray
    member_logits: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]

    @property
    def logits(self) -> dict[str, np.ndarray]:
        """`[n, num_classes]` by task: of several members, the logarithm of their mean probability.

        That is the answer of the deep ensemble (Lakshminarayanan et al., 2017).
        """
        return {
            task: members[0]
            if len(members) == 1
            else logsumexp(log_softmax(members, axis=-1), axis=0) - np.float32(np.log(len(members)))
            for task, members in self.member_logits.items()
        }

    def losses(self, losses: Mapping[str, TaskLoss]) -> list[dict[str, float]]:
        """For each member `total`, and `loss` and `accuracy` of each task (`task/loss`).

        All are means over labelled records.
        """
        of_members = []
        for total, sums in _scores(self.member_logits, self.labels, tuple(losses.items())):
            scalars = {"total": float(total)}
            for task, of_task in sums.items():
                count = max(float(of_task["count"]), 1.0)
                scalars[f"{task}/loss"] = float(of_task["loss"]) / count
                scalars[f"{task}/accuracy"] = float(of_task["correct"]) / count
            of_members.append(scalars)
        return of_members


@functools.partial(jax.jit, static_argnames="losses")
def _scores(member_logits, labels, losses):
    """Total and sums of each member. One program compiles faster than its operations one by one."""
    num_members = len(next(iter(member_logits.values())))
    return [
        total_loss(
            {task: logits[e] for task, logits in member_logits.items()}, labels, dict(losses)
        )
        for e in range(num_members)
    ]


class SplitPredictor:
    """Runs an evaluation step over a split; compiled once.

    Args:
      evaluation_step: of one network, `(params, statistics, batch) -> logits by task`.
      layout: over whose devices members and batches are split.
    """

    def __init__(self, evaluation_step: Callable[..., dict[str, jax.Array]], layout: Layout):
        self._layout = layout

        def of_one(params, statistics, batch):
            return evaluation_step(layout.gathered(params), statistics, batch)

        of_members = layout.of_members(of_one, (0, 0, None))

        def step(params, statistics, batch):
            seen = {key: batch[key] for key in ("index", "labels", "valid")}
            logits = of_members(params, statistics, batch)
            if not layout.is_ensemble:
                logits = jax.tree.map(lambda leaf: leaf[None], logits)
            # Records first, as in all that is seen of them.
            return seen | {"logits": jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), logits)}

        # Replicated, so that every process holds the whole result.
        self._step = jax.jit(
            step,
            out_shardings=replicated(layout.mesh),
            compiler_options=compiler_options(layout.platform),
        )

    def lowered(self, params: Any, statistics: Any, batch: Mapping, num_records: int) -> Any:
        """The step, traced and not compiled; no device is needed.

        Args:
          params, statistics: arrays or their shapes, dtypes and shardings.
          batch: as read, of any number of records.
          num_records: that are to be predicted together.
        """
        shapes = self._layout.batch_shapes(_narrow(batch), num_records, shared=True)
        return self._step.lower(params, statistics, shapes)

    def __call__(self, params: Any, statistics: Any, batches: Iterable[Mapping]) -> SplitLogits:
        """Logits and labels of every valid record, ordered by its index.

        Args:
          params, statistics: with a leading axis `e` for an ensemble.
          batches: this process's part of each (see `split`).
        """
        pieces, running = [], None
        for batch in batches:
            placed = self._layout.place_shared_batch(_narrow(batch))
            following = self._step(params, statistics, placed)
            if running is not None:
                pieces.append(_valid(jax.device_get(running)))
            running = following
        if running is None:
            raise ValueError("There is no batch to predict.")
        pieces.append(_valid(jax.device_get(running)))
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)
        order = np.argsort(joined["index"], kind="stable")
        joined = jax.tree.map(lambda values: values[order], joined)
        member_logits = jax.tree.map(lambda x: np.swapaxes(x, 0, 1), joined["logits"])
        return SplitLogits(joined["index"], member_logits, joined["labels"])

    def split(self, params: Any, statistics: Any, source: Source, batch_size: int) -> SplitLogits:
        """The same for all records of a source, of which this process reads its part."""
        part = self._layout.host_part
        return self(
            params,
            statistics,
            evaluation_batches(
                source,
                batch_size=batch_size,
                process_index=part.index,
                process_count=part.count,
            ),
        )


def split_predictor(experiment: Experiment, layout: Layout | None = None) -> SplitPredictor:
    """The predictor of an experiment's network; over all devices where no layout is given."""
    return SplitPredictor(
        make_evaluation_step(
            experiment.network, masks_absent=experiment.dataset.may_lack_modalities
        ),
        layout or layout_of(experiment.config),
    )


def _narrow(batch: Mapping) -> dict:
    """Indices as int32, which is what a device holds without 64-bit mode."""
    return {**batch, "index": np.asarray(batch["index"]).astype(np.int32)}


def _valid(outputs: dict[str, Any]) -> dict[str, Any]:
    kept = outputs.pop("valid")
    return jax.tree.map(lambda values: values[kept], outputs)
