"""The programs that a configuration runs, lowered for devices that need not be there.

They are those of training, evaluation and prediction themselves, not copies.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from drifa_jax.data.pipeline import evaluation_batches, training_batches
from drifa_jax.rng import root_key
from drifa_jax.sharding import Layout
from drifa_jax.train.experiment import Experiment
from drifa_jax.train.prediction import split_predictor
from drifa_jax.train.program import Program
from drifa_jax.uncertainty.mc_dropout import (
    ENSEMBLE_AXIS,
    SAMPLE_AXIS,
    make_sampler,
    record_words,
    sampling_mesh,
)

SAMPLED_TOGETHER = 16
"""Records that the sampler answers together, as `drifa predict` has it."""

PASS_SHARE = 4
"""Of a device's memory, a pass of samples takes one part in so many (`mc_dropout`)."""


class Programs:
    """Training step, evaluation step and Monte Carlo sampler of one configuration.

    Args:
      experiment: what is trained.
      layout: on which devices.
      memory_bytes: of one device.

    Attributes:
      template: shapes and shardings of the train state.
    """

    def __init__(self, experiment: Experiment, layout: Layout, memory_bytes: float):
        self._experiment, self._layout = experiment, layout
        self._memory_bytes = memory_bytes
        self._program = Program(experiment, layout)
        self.template = self._program.template

    @functools.cached_property
    def _trained_on(self) -> Mapping[str, Any]:
        """A training batch of one record, as the network sees it."""
        dataset = self._experiment.dataset
        stream = training_batches(dataset.train, batch_size=1, seed=0, transform=dataset.transform)
        batch = next(stream)
        stream.close()
        return {name: values for name, values in batch.items() if name != "index"}

    @functools.cached_property
    def _evaluated_on(self) -> Mapping[str, Any]:
        return next(iter(evaluation_batches(self._experiment.dataset.validation, batch_size=1)))

    def batch_shapes(self, num_records: int) -> dict[str, Any]:
        """Of a training batch of so many records a member."""
        return self._layout.batch_shapes(self._trained_on, num_records)

    def training_step(self, num_records: int) -> Any:
        """Lowered for batches of so many records a member."""
        return self._program.lowered(self.batch_shapes(num_records))

    def evaluation_step(self, num_records: int) -> Any:
        """Lowered for batches of so many records."""
        weights = self.template.weights()
        return split_predictor(self._experiment, self._layout).lowered(
            *weights, self._evaluated_on, num_records
        )

    def sampler(self) -> Any:
        """Lowered for the devices of one process, which is what predicts."""
        devices = one_process(list(self._layout.mesh.devices.flat))
        num_members = self._layout.num_members
        mesh = sampling_mesh(num_members, devices)
        sampler = make_sampler(
            self._experiment.network,
            num_samples=self._experiment.config.uncertainty.num_mc_samples,
            mesh=mesh,
            pass_bytes=int(self._memory_bytes) // PASS_SHARE,
        )
        place = mesh or Mesh(
            np.array(devices, object).reshape(1, 1),
            (ENSEMBLE_AXIS, SAMPLE_AXIS),
            axis_types=(AxisType.Auto,) * 2,
        )

        def shapes(tree: Any, lead: tuple[int, ...], *axes: str) -> Any:
            sharding = NamedSharding(place, PartitionSpec(*axes))
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((*lead, *np.shape(x)), x.dtype, sharding=sharding),
                tree,
            )

        network = self._experiment.network
        weights = shapes(
            (network.abstract_params, network.abstract_statistics), (num_members,), ENSEMBLE_AXIS
        )
        records = {name: self._evaluated_on[name] for name in ("images", "present")}
        rows = jax.tree.map(lambda x: np.broadcast_to(x, (SAMPLED_TOGETHER, *x.shape[1:])), records)
        present = None
        if self._experiment.dataset.may_lack_modalities:
            present = shapes(rows["present"], ())
        return sampler.lower(
            *weights,
            shapes(rows["images"], ()),
            shapes(jax.eval_shape(root_key, 0), ()),
            shapes(record_words(["record"] * SAMPLED_TOGETHER), ()),
            shapes(jax.ShapeDtypeStruct((num_members,), jnp.int32), (), ENSEMBLE_AXIS),
            present,
        )


def one_process(devices: Sequence[Any]) -> list[Any]:
    """Those of the first device's process."""
    first = devices[0].process_index
    return [device for device in devices if device.process_index == first]
