"""What a run directory holds for prediction: the best parameters and the shape of its data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from drifa_jax.config import Config, DataConfig
from drifa_jax.digests import digest
from drifa_jax.errors import UserError
from drifa_jax.models.building import build_network
from drifa_jax.models.description import NetworkDescription, describe_network
from drifa_jax.models.functional import Functional
from drifa_jax.predict.common_tables import in_common, translated
from drifa_jax.predict.described import Description
from drifa_jax.predict.reading import readings_of
from drifa_jax.sealed_files import read_sealed, write_sealed
from drifa_jax.train.checkpoint import best_model
from drifa_jax.train.run_directory import CONFIG_FILE, SPLITS_FOLDER, differences, saved_config
from drifa_jax.train.state import Model

if TYPE_CHECKING:
    from drifa_jax.data.dataset import Dataset

DESCRIPTION_FILE = "preprocessing.json"


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
      model_identity: digest of the weights of all members, of what they read and answer, and of
        the network's options; what is kept beside a run carries it, so that it is never taken for
        another network's.
    """

    runs: tuple[Path, ...]
    config: Config
    description: Description
    network: Functional
    params: Any
    statistics: Any
    steps: tuple[int, ...]
    model_identity: str

    def open_dataset(self) -> Dataset:
        """The data of the first run, in the splits that it saved."""
        # Imported where data are opened, as an answer needs none: it waits for it otherwise.
        from drifa_jax.data.dataset import open_dataset

        return open_dataset(self.config.data, self.runs[0] / SPLITS_FOLDER)


def describe(config: DataConfig, dataset: Dataset) -> Description:
    """What a network of this data reads and answers."""
    source = dataset.train
    return Description(
        tuple(source.modalities),
        readings_of(config, source.modalities, dataset.tables),
        {task.name: tuple(task.classes) for task in source.tasks},
        bool(dataset.may_lack_modalities),
        bool(source.synthetic),
        source.description,
    )


def save_description(run: Path, description: Description) -> None:
    """Writes what the network reads and answers beside its checkpoints."""
    write_sealed(run / DESCRIPTION_FILE, description.to_json())


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
    for path, config in zip(paths[1:], configs[1:], strict=True):
        if config.model != configs[0].model:
            raise UserError(
                f"{path} and {paths[0]} are different networks: {config.model} against "
                f"{configs[0].model}. Members of an ensemble share config.model."
            )
    first, *others = loaded = [_load(*run) for run in zip(paths, configs, strict=True)]
    descriptions = in_common([run.description for run in loaded])
    for run, description in zip(others, descriptions[1:], strict=True):
        for field in ("modalities", "readings", "tasks"):
            theirs, ours = (getattr(d, field) for d in (description, descriptions[0]))
            if theirs != ours:
                raise UserError(
                    f"{run.path} and {first.path} differ in their {field}: {theirs}, {ours}."
                )
    params, statistics = jax.tree.map(
        lambda *leaves: np.concatenate(leaves),
        *[
            (translated(run.model.params, run.description, description), run.model.statistics)
            for run, description in zip(loaded, descriptions, strict=True)
        ],
    )
    description = dataclasses.replace(
        descriptions[0], may_lack_modalities=any(d.may_lack_modalities for d in descriptions)
    )
    network = first.network
    if description.modalities != first.description.modalities:
        network = build_network(_described(first.config, description))
    steps = tuple(np.concatenate([run.model.step for run in loaded]).tolist())
    identities = [run.model.identity for run in loaded]
    identity = digest([identities, first.config.model.identity()])
    return Restored(paths, first.config, description, network, params, statistics, steps, identity)


@dataclass
class _Run:
    """One run and its best model, every leaf `[e, ...]` on the host."""

    path: Path
    config: Config
    description: Description
    network: Functional
    model: Model


def _load(path: Path, config: Config) -> _Run:
    directory = path / "checkpoints"
    if not directory.is_dir():
        raise UserError(f"{path} holds no checkpoint; train it to the end of an epoch first.")
    members = config.ensemble.num_members
    lead = (members,) * (members > 1)
    run = _Run(path, config, None, None, None)

    def template(described: Mapping[str, Any] | None) -> Model:
        run.description = _description(path, config, described)
        network = _network(path, config, run.description, (described or {}).get("network"))
        run.network = build_network(network)
        weights = run.network.abstract_params, run.network.abstract_statistics
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype),
            Model(jax.ShapeDtypeStruct((), np.int32), *weights),
        )

    run.model = best_model(directory, template)
    if not lead:
        run.model = jax.tree.map(lambda leaf: leaf[None], run.model)
    return run


def _network(
    run: Path, config: Config, description: Description, trained: Mapping[str, Any] | None
) -> NetworkDescription:
    """The network that the configuration asks for, which must be the one that was trained.

    Checkpoints of earlier releases do not say which one that was.
    """
    network = _described(config, description)
    if trained is not None:
        wanted = NetworkDescription.from_json(trained, f"the checkpoint of {run}")
        if network != wanted:
            listed = "\n".join(differences(wanted.to_json(), network.to_json()))
            raise UserError(
                f"{run / CONFIG_FILE} was changed since the network was trained:\n{listed}\n"
                "Copy it again from where the run was made."
            )
    return network


def _described(config: Config, description: Description) -> NetworkDescription:
    tasks = {task: len(classes) for task, classes in description.tasks.items()}
    return describe_network(config, description.modalities, tasks)


def _description(run: Path, config: Config, described: Mapping[str, Any] | None) -> Description:
    """What the checkpoint says, with which the file beside it must agree; else what that says.

    A run that is older than both: its data say the same.
    """
    path = run / DESCRIPTION_FILE
    cure = "Delete it, and what the checkpoint or the run's data say is taken."
    try:
        beside = Description.from_json(read_sealed(path, cure)) if path.exists() else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is damaged or was changed ({error!r}). {cure}") from error
    if described is None:
        from drifa_jax.data.dataset import open_dataset

        return beside or describe(config.data, open_dataset(config.data))
    description = Description.from_json(described)
    for field in ("modalities", "readings", "tasks", "may_lack_modalities", "synthetic"):
        ours, theirs = getattr(description, field), getattr(beside or description, field)
        if theirs != ours:
            raise UserError(
                f"{path} was changed: its {field} are {theirs}, and the network was trained with "
                f"{ours}. Delete it, and what the checkpoint says is taken."
            )
    return description
