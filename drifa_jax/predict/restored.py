"""What a run directory holds for prediction: the best parameters and the shape of its data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drifa_jax.config import Config, DataConfig
from drifa_jax.data.dataset import Dataset, open_dataset
from drifa_jax.data.record import ModalitySpec, TabularSpec
from drifa_jax.errors import UserError
from drifa_jax.models.functional import Functional
from drifa_jax.predict.reading import Reading, readings_of
from drifa_jax.sharding import data_mesh, replicated
from drifa_jax.train.checkpoint import Checkpoints
from drifa_jax.train.experiment import build_network
from drifa_jax.train.optimizer import make_optimizer
from drifa_jax.train.run_directory import saved_config, write_whole
from drifa_jax.train.state import TrainState, abstract_state

DESCRIPTION_FILE = "preprocessing.json"


@dataclass(frozen=True)
class Description:
    """What goes into a network and what comes out, by name.

    Attributes:
      modalities: size and channels that every image is brought to; of a table, its features.
      readings: modality -> how its files or rows are read.
      tasks: task -> class names.
      may_lack_modalities: whether it was trained on records that lack some.
      synthetic: whether it was trained on drawn data.
      data: where the training records came from, in words.
    """

    modalities: tuple[ModalitySpec | TabularSpec, ...]
    readings: Mapping[str, Reading]
    tasks: Mapping[str, tuple[str, ...]]
    may_lack_modalities: bool
    synthetic: bool
    data: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Description:
        specs = tuple(
            (TabularSpec if "num_features" in spec else ModalitySpec)(**spec)
            for spec in values["modalities"]
        )
        if "readings" in values:
            readings = {s.name: Reading.from_json(values["readings"][s.name]) for s in specs}
        else:  # of runs that read images alone
            readings = {s.name: Reading(fit=values["fits"][s.name]) for s in specs}
        return cls(
            specs,
            readings,
            {task: tuple(classes) for task, classes in values["tasks"].items()},
            bool(values["may_lack_modalities"]),
            bool(values["synthetic"]),
            str(values["data"]),
        )


@dataclass(frozen=True)
class Restored:
    """One or several runs of one network, each of one member or more, as one ensemble.

    Attributes:
      runs: their directories.
      config: of the first; all agree in data and model.
      description: of the data.
      network: the functional core.
      params, statistics: of the best checkpoints, along a leading axis `e`: the members of the
        first run, then those of the next.
      steps: training step of each member's checkpoint.
    """

    runs: tuple[Path, ...]
    config: Config
    description: Description
    network: Functional
    params: Any
    statistics: Any
    steps: tuple[int, ...]


def save_description(run: Path, config: DataConfig, dataset: Dataset) -> Description:
    """Writes what the network reads and answers beside its checkpoints; returns it."""
    source = dataset.train
    description = Description(
        tuple(source.modalities),
        readings_of(config, source.modalities, dataset.tables),
        {task.name: tuple(task.classes) for task in source.tasks},
        bool(dataset.may_lack_modalities),
        bool(source.synthetic),
        source.description,
    )
    write_whole(run / DESCRIPTION_FILE, json.dumps(description.to_json(), indent=2) + "\n")
    return description


def restore(runs: Sequence[str | Path]) -> Restored:
    """Runs as one ensemble.

    Raises:
      UserError: when there is none, one holds no usable checkpoint, or two differ in what they
        read, answer or are built of.
    """
    if not runs:
        raise UserError("Give at least one run directory.")
    paths = tuple(Path(run) for run in runs)
    if len({path.resolve() for path in paths}) != len(paths):
        raise UserError("The same run was given twice; an ensemble needs different members.")
    configs = [saved_config(path) for path in paths]
    descriptions = [_description(path, c) for path, c in zip(paths, configs, strict=True)]
    for path, config, description in zip(paths[1:], configs[1:], descriptions[1:], strict=True):
        if config.model != configs[0].model:
            raise UserError(
                f"{path} and {paths[0]} are different networks: {config.model} against "
                f"{configs[0].model}. Members of an ensemble share config.model."
            )
        for field in ("modalities", "readings", "tasks"):
            theirs, ours = getattr(description, field), getattr(descriptions[0], field)
            if theirs != ours:
                raise UserError(f"{path} and {paths[0]} differ in their {field}: {theirs}, {ours}.")
    first = descriptions[0]
    network = build_network(
        configs[0].model,
        {m.name: m.channels for m in first.modalities if isinstance(m, ModalitySpec)},
        {task: len(classes) for task, classes in first.tasks.items()},
        {m.name: m.num_features for m in first.modalities if isinstance(m, TabularSpec)},
    )
    states = [_best(path, c, network) for path, c in zip(paths, configs, strict=True)]
    params, statistics = jax.tree.map(
        lambda *leaves: np.concatenate(leaves), *[(s.params, s.statistics) for s in states]
    )
    steps = tuple(np.concatenate([state.step for state in states]).tolist())
    return Restored(paths, configs[0], first, network, params, statistics, steps)


def _description(run: Path, config: Config) -> Description:
    path = run / DESCRIPTION_FILE
    if not path.is_file():
        # A run that is older than this file: its data say the same.
        return save_description(run, config.data, open_dataset(config.data))
    try:
        return Description.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it, and it is written anew from the run's data."
        ) from error


def _best(run: Path, config: Config, network: Functional) -> TrainState:
    """The best state of each member, every leaf `[e, ...]` on the host."""
    directory = run / "checkpoints"
    if not directory.is_dir():
        raise UserError(f"{run} holds no checkpoint; train it to the end of an epoch first.")
    train = config.train
    optimizer = make_optimizer(
        learning_rate=train.learning_rate,
        schedule="cosine" if train.schedule == "cosine" else "constant",
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        clip_norm=train.clip_norm,
    )
    sharding = replicated(data_mesh())
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_state(network, optimizer, config.ensemble.num_members),
    )
    with Checkpoints(directory) as checkpoints:
        state, _ = checkpoints.best(template)
    state = jax.device_get(state)
    if state.step.ndim == 0:
        return jax.tree.map(lambda leaf: leaf[None], state)
    return state
