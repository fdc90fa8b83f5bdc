"""The training step as one program over all devices, and what is known of it beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from drifa_jax.compilation import (
    KeptMemory,
    compiled_beside,
    compiler_options,
    training_options,
    without_garbage_collection,
)
from drifa_jax.models import kernels
from drifa_jax.rng import root_key
from drifa_jax.sharding import AXES, DATA_AXIS, Layout, put, replicated
from drifa_jax.train.experiment import Experiment
from drifa_jax.train.stacking import is_stack_of_small
from drifa_jax.train.state import TrainState, abstract_state
from drifa_jax.train.step import make_train_step


class Program:
    """The compiled step of all members; compiled at its first call.

    Args:
      experiment: what is trained.
      layout: where its arrays live.

    Attributes:
      template: shapes, dtypes and shardings of the state.
      flops: floating-point operations of one step over all devices and members, as XLA counts
        them before it optimises; None before `analyse`.
      device_bytes: memory of the step on one device, by kind, as XLA plans it; empty before the
        first step, and on several devices before `analyse`.
    """

    def __init__(self, experiment: Experiment, layout: Layout):
        self.template: TrainState = layout.state(
            abstract_state(
                experiment.network,
                experiment.optimizer,
                layout.num_members,
                experiment.groups,
                experiment.evaluation,
            ),
            is_stack_of_small,
        )
        self.flops: float | None = None
        self.device_bytes: dict[str, int] = {}
        self._layout = layout
        self._seed = experiment.config.train.seed
        self._keys: jax.Array | None = None
        self._asked = NamedSharding(layout.mesh, PartitionSpec(AXES))
        self._lowered: Any = None
        self._compiling: Future | None = None
        self._memory: KeptMemory | None = None
        if layout.mesh.size == 1 and not layout.is_ensemble:
            options = training_options(self.template.params, layout.platform)
        else:
            options = compiler_options(layout.platform)
        self._step = jax.jit(
            _over_mesh(experiment, layout),
            donate_argnums=0,
            out_shardings=(
                jax.tree.map(lambda leaf: leaf.sharding, self.template),
                replicated(layout.mesh),
            ),
            compiler_options=options,
        )

    def use_seed(self, seed: int) -> None:
        """Runs with the keys of another seed from here on; nothing is compiled anew."""
        self._seed, self._keys = seed, None

    @property
    def is_compiling(self) -> bool:
        """Whether `start_compiling` was called, be it long ago."""
        return self._compiling is not None

    def start_compiling(self, batch: Mapping[str, Any]) -> None:
        """Traces the step for such batches and compiles it in a thread, unless that was done.

        Args:
          batch: from `Layout.place_batch`; only its shapes, dtypes and shardings are read.
        """
        if self._compiling is not None:
            return
        self._lowered = self.lowered(batch)
        self._compiling = compiled_beside(self._lowered)

    def lowered(self, batch: Mapping[str, Any]) -> Any:
        """The step for such batches, traced and not compiled; no device is needed.

        Args:
          batch: arrays or their shapes, dtypes and shardings.
        """
        mesh = self._layout.mesh
        lead = (self._layout.num_members,) * self._layout.is_ensemble
        kind = jax.eval_shape(root_key, 0).dtype
        keys = jax.ShapeDtypeStruct(lead, kind, sharding=replicated(mesh))
        asked = jax.ShapeDtypeStruct((mesh.size,), jnp.int32, sharding=self._asked)
        # Large maps are looped over record by record, of each device of the mesh one.
        traced_for = kernels.batch_over(mesh.shape[DATA_AXIS], self._layout.platform)
        with without_garbage_collection(), traced_for:
            return self._step.lower(self.template, batch, keys, asked)

    def __call__(
        self, state: TrainState, batch: Mapping[str, Any], asked: int
    ) -> tuple[TrainState, dict[str, Any]]:
        """One step.

        Args:
          state: donated.
          batch: from `Layout.place_batch`.
          asked: number of the signal that this process got, or 0. The largest number that any
            process gave comes back in the sums, so that all of them leave after the same step.
        """
        self.start_compiling(batch)
        compiled = self._compiling.result()
        if self._memory is None:
            # With several devices JAX runs the program in threads of its own.
            if self._layout.mesh.size == 1:
                self.device_bytes = planned_bytes(compiled)
            self._memory = KeptMemory(self.device_bytes.get("temporary", 0))
        if self._keys is None:
            self._keys = put_keys(self._seed, self._layout)
        return self._memory.run(compiled, state, batch, self._keys, self._flags(asked))

    def give_back_memory(self) -> None:
        """Returns to the system what is kept from step to step, until the next step."""
        if self._memory is not None:
            self._memory.give_back()

    def analyse(self) -> None:
        """Finds `flops` and `device_bytes`, which takes a second, and forgets what was traced.

        To be called after a step has been.
        """
        if self._lowered is not None:
            self.flops = _flops(self._lowered)
            self.device_bytes = self.device_bytes or planned_bytes(self._compiling.result())
            self._lowered = None

    def flops_of(self, batch: Mapping[str, Any]) -> float | None:
        """`flops` of a step on such a batch, without compiling it."""
        return _flops(self.lowered(batch))

    def _flags(self, asked: int) -> jax.Array:
        mesh = self._layout.mesh
        return jax.make_array_from_process_local_data(
            self._asked, np.full(len(mesh.local_devices), asked, np.int32), (mesh.size,)
        )


def put_keys(seed: int, layout: Layout) -> jax.Array:
    """The root key of each member, `[e]`, or of the one network, `[]`, on every device."""
    data = np.stack(
        [jax.random.key_data(root_key(seed + member)) for member in range(layout.num_members)]
    )
    if not layout.is_ensemble:
        data = data[0]
    return jax.random.wrap_key_data(put(data, replicated(layout.mesh)))


def _over_mesh(experiment: Experiment, layout: Layout):
    step = make_train_step(
        experiment.network,
        experiment.optimizer,
        experiment.losses,
        mix=experiment.mix,
        masks_absent=experiment.dataset.may_lack_modalities,
        groups=experiment.groups,
        evaluation=experiment.evaluation,
        stochastic_depth=experiment.config.train.stochastic_depth,
        rematerialise=experiment.config.train.rematerialise,
        gathered=layout.gathered,
        reduced=layout.reduced,
    )
    of_members = layout.of_members(step)

    def program(state, batch, keys, asked):
        after, sums = of_members(state, batch, keys)
        return after, sums | {"asked": jnp.max(asked)}

    return program


def _flops(lowered: Any) -> float | None:
    return (_analysed(lowered.cost_analysis) or {}).get("flops")


def planned_bytes(compiled: Any) -> dict[str, int]:
    """Memory of a program on one device, by kind; empty where the backend cannot say."""
    memory = _analysed(compiled.memory_analysis)
    if memory is None:
        return {}
    return {
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "outputs_not_donated": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    }


def _analysed(analyse: Callable[[], Any]) -> Any:
    """What the backend knows of a program; not every one can say."""
    try:
        return analyse()
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        return None
