"""From a configuration and its data to the objects that training and evaluation work with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np
import optax

from drifa_jax.config import Config, TrainConfig
from drifa_jax.data.dataset import Dataset
from drifa_jax.data.mixing import cutmix, mixup
from drifa_jax.data.pipeline import PairsOnTheFly, class_balanced_weights, steps_per_epoch
from drifa_jax.data.record import TaskSpec
from drifa_jax.errors import UserError
from drifa_jax.models.building import branches_that_skip, build_network
from drifa_jax.models.description import NetworkDescription, describe_network
from drifa_jax.models.functional import Functional
from drifa_jax.train.evaluated import IN_TRAINING, Evaluation
from drifa_jax.train.losses import TaskLoss, balanced_class_weights, class_prior
from drifa_jax.train.optimizer import make_optimizer
from drifa_jax.train.parameter_groups import ALL_ALIKE, ParameterGroups, parameter_groups
from drifa_jax.train.step import Mix


@dataclass(frozen=True)
class Experiment:
    """What one run trains, on what, and how it is scored.

    Attributes:
      config: the resolved configuration.
      dataset: training, validation and test records.
      description: what the network is.
      network: the functional core.
      losses: task -> how it is scored.
      optimizer: over the whole run.
      steps_per_epoch: whole batches in the training records.
      priors: task -> probability of each class before anything is seen, as the network learns it.
      mix: MixUp or CutMix within a batch, or None.
      groups: which parameters are trained, and how.
      evaluation: which weights are evaluated.
    """

    config: Config
    dataset: Dataset
    description: NetworkDescription
    network: Functional
    losses: Mapping[str, TaskLoss]
    optimizer: optax.GradientTransformation
    steps_per_epoch: int
    priors: Mapping[str, tuple[float, ...]]
    mix: Mix | None = None
    groups: ParameterGroups = ALL_ALIKE
    evaluation: Evaluation = IN_TRAINING

    @property
    def num_steps(self) -> int:
        return self.steps_per_epoch * self.config.train.num_epochs


def build_experiment(config: Config, dataset: Dataset) -> Experiment:
    """Everything that a run needs, checked against its data.

    Raises:
      UserError: when batches, task names or class counts do not fit the data.
    """
    train = config.train
    if train.batch_size > len(dataset.train):
        more = ", or draw more by --config.data.phantoms.num_train"
        raise UserError(
            f"train.batch_size is {train.batch_size} but there are only {len(dataset.train)} "
            "training records; lower it with --config.train.batch_size"
            f"{more if config.data.source == 'phantoms' else ''}."
        )
    tasks = {task.name: task for task in dataset.train.tasks}
    for field, named in (
        ("train.task_weights", tuple(train.task_weights)),
        (
            "train.balance_sampling_of",
            (train.balance_sampling_of,) * bool(train.balance_sampling_of),
        ),
    ):
        for name in named:
            if name not in tasks:
                raise UserError(
                    f"config: {field} names {name!r}; the tasks are {', '.join(tasks)}."
                )
    weights = {name: train.task_weights.get(name, 1.0) for name in tasks}
    if min(weights.values()) < 0 or sum(weights.values()) <= 0:
        raise UserError(f"config: train.task_weights gives {weights}; use shares of 0 or more.")
    losses = {
        name: TaskLoss(
            weight=weights[name] / sum(weights.values()),
            class_weights=balanced_class_weights(dataset.train.labels(name), task.num_classes)
            if train.class_weights == "balanced"
            else (),
            focal_gamma=train.focal_gamma,
            label_smoothing=train.label_smoothing,
        )
        for name, task in tasks.items()
    }
    per_epoch = steps_per_epoch(len(dataset.train), train.batch_size)
    classes = {name: task.num_classes for name, task in tasks.items()}
    description = describe_network(config, dataset.train.modalities, classes)
    try:
        network = build_network(description)
    except UserError as error:
        raise UserError(f"config: {error}") from error
    groups = parameter_groups(description, train)
    if train.stochastic_depth and not branches_that_skip(description) - groups.frozen:
        raise UserError(
            f"config: train.stochastic_depth is {train.stochastic_depth}, but no branch in "
            "training can skip blocks (ConvNeXt, EfficientNet, Swin and vision transformers can); "
            "leave it at 0."
        )
    if train.statistics_batches and not _has_batch_norm(network, groups):
        raise UserError(
            f"config: train.statistics_batches is {train.statistics_batches}, but no branch in "
            "training has batch norm; leave it at 0."
        )
    optimizer = make_optimizer(
        learning_rate=train.learning_rate,
        schedule="cosine" if train.schedule == "cosine" else "constant",
        num_steps=per_epoch * train.num_epochs,
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        clip_norm=train.clip_norm,
        groups=groups,
    )
    losses = _with_expert_weights(losses, train, network)
    priors = {
        name: class_prior(
            dataset.train.labels(name),
            task.num_classes,
            losses[name].class_weights,
            _how_often_drawn(dataset, name, train.balance_sampling_of),
        )
        for name, task in tasks.items()
    }
    return Experiment(
        config,
        dataset,
        description,
        network,
        losses,
        optimizer,
        per_epoch,
        priors,
        _mix(train, tasks),
        groups,
        Evaluation.of(train),
    )


def _has_batch_norm(network: Functional, groups: ParameterGroups) -> bool:
    statistics = groups.trained_statistics(network.abstract_statistics)
    return bool(jax.tree.leaves(statistics.get("branches")))


def _with_expert_weights(
    losses: Mapping[str, TaskLoss], train: TrainConfig, network: Functional
) -> dict[str, TaskLoss]:
    """The losses with the shares of the experts, of the readouts that combine some."""
    weighted, known = {}, set()
    for task, loss in losses.items():
        experts = network.abstract_params["heads"][task].get("log_temperatures", {})
        known |= set(experts)
        shares = {e: train.expert_weights.get(e, 1.0) for e in experts}
        if shares and (min(shares.values()) < 0 or sum(shares.values()) <= 0):
            raise UserError(
                f"config: train.expert_weights gives {shares}; use shares of 0 or more."
            )
        weighted[task] = dataclasses.replace(
            loss,
            expert_weights=tuple((e, share / sum(shares.values())) for e, share in shares.items()),
            product_weight=train.product_weight,
        )
    for name in train.expert_weights:
        if name not in known:
            listed = (
                f"the experts are {', '.join(sorted(known))}"
                if known
                else ("this readout has no experts (set model.readout=experts)")
            )
            raise UserError(f"config: train.expert_weights names {name!r}; {listed}.")
    return weighted


def _how_often_drawn(dataset: Dataset, task: str, balanced: str) -> np.ndarray | None:
    """Of each training record; None where all are drawn equally often."""
    apart = isinstance(dataset.train, PairsOnTheFly)
    if not balanced or (balanced != task and apart):
        return None
    return class_balanced_weights(dataset.train, balanced)


def _mix(train: TrainConfig, tasks: Mapping[str, TaskSpec]) -> Mix | None:
    if train.mixing == "none":
        return None
    blend = {"mixup": mixup, "cutmix": cutmix}[train.mixing]
    num_classes = {name: task.num_classes for name, task in tasks.items()}

    def mix(images, labels, key, *, present=None):
        return blend(images, labels, num_classes, key, alpha=train.mixing_alpha, present=present)

    return mix
