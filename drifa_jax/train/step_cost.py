"""What a training step takes of memory and time, before there are any data."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp

from drifa_jax.compilation import training_options, without_garbage_collection
from drifa_jax.config import Config
from drifa_jax.data.record import pixel_spec
from drifa_jax.models.building import build_network
from drifa_jax.models.description import NetworkDescription, describe_network
from drifa_jax.train.losses import TaskLoss
from drifa_jax.train.optimizer import make_optimizer
from drifa_jax.train.parameter_groups import parameter_groups
from drifa_jax.train.state import abstract_state
from drifa_jax.train.step import make_train_step
from drifa_jax.whole_files import cache_folder, written_whole

MEASURED_AT = 4
"""Records of the batch that is compiled; what a record takes hardly changes with their number."""
TIMED = 3
"""Steps that are run; the fastest counts, as others may compute on the machine."""


@dataclass(frozen=True)
class StepCost:
    """A training step on one device.

    Attributes:
      fixed: bytes of parameters, their gradients and moments, and statistics, whatever the batch.
      by_record: bytes of images, and of features that are kept for the gradient.
      seconds: of a step over its records, of few records; on accelerators many take less each.
    """

    fixed: int
    by_record: int
    seconds: float = 0.0

    def of(self, batch_size: int) -> int:
        """Bytes of a step of so many records."""
        return self.fixed + batch_size * self.by_record

    def largest_batch(self, num_bytes: int) -> int:
        """The most records whose step fits; 0 where not even one does."""
        return max(0, (num_bytes - self.fixed) // self.by_record)


def step_cost(config: Config, tasks: Mapping[str, int]) -> StepCost:
    """Measures by compiling the step of a small batch and running it; remembered on disk.

    Modalities made of columns of tables are left out: beside images they take next to nothing.

    Args:
      config: of the run; only what shapes the step is read.
      tasks: task -> number of classes.

    Test: tests/train/test_step_cost.py.
    """
    description = described(config, tasks)
    cache = cache_folder() / "step_cost" / f"{_digest(config, description)}.json"
    try:
        return StepCost(**json.loads(cache.read_text()))
    except (OSError, ValueError, TypeError):
        found = _measured(config, description)
    cache.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(cache) as partial:
        partial.write_text(json.dumps(asdict(found)))
    return found


def described(config: Config, tasks: Mapping[str, int]) -> NetworkDescription:
    """The network of a configuration, of its images alone."""
    specs = [pixel_spec(name, modality) for name, modality in config.data.modalities.items()]
    return describe_network(config, specs, tasks)


def device_memory() -> int | None:
    """Bytes that programs may take on a device: on a CPU what is free now; None where unknown."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    try:
        with open("/proc/meminfo") as lines:
            told = dict(line.split(":", 1) for line in lines)
        return int(told["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _measured(config: Config, description: NetworkDescription) -> StepCost:
    network = build_network(description)
    groups = parameter_groups(description, config.train)
    optimizer = make_optimizer(
        learning_rate=config.train.learning_rate,
        schedule="constant",
        num_steps=1,
        warmup_steps=0,
        weight_decay=config.train.weight_decay,
        clip_norm=config.train.clip_norm,
        groups=groups,
    )
    losses = {task: TaskLoss(weight=1 / len(description.tasks)) for task in description.tasks}
    step = make_train_step(
        network, optimizer, losses, groups=groups, rematerialise=config.train.rematerialise
    )
    state = abstract_state(network, optimizer, groups=groups)
    batch = {
        "images": {
            name: jax.ShapeDtypeStruct((MEASURED_AT, *modality.size, modality.channels), jnp.uint8)
            for name, modality in description.modalities.items()
        },
        "labels": {
            task: jax.ShapeDtypeStruct((MEASURED_AT,), jnp.int32) for task in description.tasks
        },
    }
    options = training_options(network.abstract_params)
    with without_garbage_collection():
        lowered = jax.jit(step, donate_argnums=0, compiler_options=options).lower(
            state, batch, jax.eval_shape(lambda: jax.random.key(0))
        )
    compiled = lowered.compile()
    planned = compiled.memory_analysis()
    gradients = groups.trained(network.abstract_params)
    fixed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state, gradients)))
    total = planned.argument_size_in_bytes + planned.temp_size_in_bytes
    total += planned.output_size_in_bytes - planned.alias_size_in_bytes
    return StepCost(fixed, max(1, (total - fixed) // MEASURED_AT), _seconds(compiled, state, batch))


def _seconds(compiled: Any, state: Any, batch: Any) -> float:
    """Of a record, on weights and pixels of nothing, which take as long as others."""
    state, batch = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), (state, batch))
    taken = []
    for _ in range(TIMED):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, batch, jax.random.key(0)))
        taken.append(time.perf_counter() - began)
    return min(taken) / MEASURED_AT


def _digest(config: Config, description: NetworkDescription) -> str:
    train: dict[str, Any] = {
        "frozen": config.train.frozen,
        "weight_decay": config.train.weight_decay,
        "clip_norm": config.train.clip_norm,
        "rematerialise": config.train.rematerialise,
    }
    told = [description.to_json(), train, jax.__version__, jax.local_devices()[0].device_kind]
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
