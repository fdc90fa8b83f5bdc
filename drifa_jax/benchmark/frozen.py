"""Fusion and heads on frozen features: a whole training is one program, all seeds at once.

The network is `DRIFANet` as ever, whose branches hand on features that are there already; losses,
optimiser and step are those of `drifa train`. Features are pooled, so modalities meet once, after
the last stage, and an attention within a map sees one place. Folds are filled up to equal sizes
with records that nothing counts, so that a method is compiled once a set.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.special import softmax

from drifa_jax.config import Config
from drifa_jax.data.record import MISSING_LABEL
from drifa_jax.models.backbones.contract import Stage
from drifa_jax.models.drifa_net import DRIFANet
from drifa_jax.models.functional import Functional
from drifa_jax.network_options import READ_LAST, NetworkOptions
from drifa_jax.rng import root_key, stream
from drifa_jax.train.losses import TaskLoss, class_prior, total_loss
from drifa_jax.train.optimizer import make_optimizer
from drifa_jax.train.state import initial_state
from drifa_jax.train.step import make_train_step

Arrays = Mapping[str, np.ndarray]
TASK = "task"
KEPT_PROGRAMS = 32


@dataclass(frozen=True)
class Split:
    """Records of one split as arrays.

    Attributes:
      inputs: modality -> `[n, c]` float32, features or a row of a table.
      present: modality -> `[n]` bool.
      labels: `[n]` int32, negative for records that fill up the split.
    """

    inputs: Arrays
    present: Arrays
    labels: np.ndarray

    def only(self, names: tuple[str, ...]) -> Split:
        """With these modalities, all when there are none."""
        kept = [m for m in self.inputs if not names or m in names]
        return Split(
            {m: self.inputs[m] for m in kept}, {m: self.present[m] for m in kept}, self.labels
        )

    def filled(self, size: int) -> Split:
        """Filled up to so many records, with some that hold nothing."""
        more = size - len(self.labels)
        return Split(
            {m: np.pad(x, ((0, more), (0, 0))) for m, x in self.inputs.items()},
            {m: np.pad(held, (0, more)) for m, held in self.present.items()},
            np.pad(self.labels, (0, more), constant_values=MISSING_LABEL),
        )


class FeatureBranch(nnx.Module):
    """A `Backbone` of one stage, whose features are its input."""

    def __init__(self, num_features: int):
        self.plan = (Stage("features", num_features, 1, dropout=False),)

    def stem(self, images, *, train, present=None):
        """The features as they are."""
        return images

    def stage(self, number, x, *, train, present=None):
        """The features as they are."""
        return x


class RowBranch(nnx.Module):
    """A `Backbone` of one stage for a row of numbers: one hidden layer, which is trained."""

    def __init__(self, num_numbers: int, plan: tuple[Stage, ...], *, rngs: nnx.Rngs):
        self.plan = plan
        self.embed = nnx.Linear(num_numbers, plan[0].channels, rngs=rngs)

    def stem(self, images, *, train, present=None):
        """`[b, num_numbers] -> [b, channels]`."""
        return self.embed(images)

    def stage(self, number, x, *, train, present=None):
        """The hidden layer."""
        return jax.nn.relu(x)


@dataclass(frozen=True)
class Recipe:
    """All that a program depends on besides its data."""

    model: NetworkOptions
    widths: tuple[tuple[str, int], ...]
    tables: frozenset[str]
    num_classes: int
    num_steps: int
    num_epochs: int
    batch_size: int
    learning_rate: float
    schedule: str
    weight_decay: float
    product_weight: float
    dropped: float


@dataclass(frozen=True)
class Costs:
    """What one network costs besides its branches, as compiled.

    Attributes:
      flops: of one record's answer, as XLA counts them.
      train_bytes: that the training program holds at once, data included.
    """

    flops: float
    train_bytes: float


@dataclass(frozen=True)
class Trained:
    """What the networks of all seeds learnt.

    Attributes:
      recipe: of them.
      test_size: records to which tested ones are filled up.
      params, statistics: with a leading axis of seeds.
      num_params: of one network, without the branches.
      costs: of one network, without the branches.
    """

    recipe: Recipe
    test_size: int
    params: dict
    statistics: dict
    num_params: int
    costs: Costs

    def probabilities(self, split: Split) -> np.ndarray:
        """`[s, n, k]` float64, without dropout."""
        filled = split.filled(self.test_size)
        arguments = (self.params, self.statistics, dict(filled.inputs), dict(filled.present))
        logits = _compiled(self.recipe, "answer", *arguments)(*arguments)
        return softmax(np.asarray(logits, np.float64)[:, : len(split.labels)], axis=-1)


def standardised(train: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each feature over the training records that have it."""
    known = train[held]
    return known.mean(0), np.maximum(known.std(0), 1e-6)


def train_seeds(
    config: Config,
    splits: Mapping[str, Split],
    tables: frozenset[str],
    num_classes: int,
    seeds: tuple[int, ...],
    sizes: Mapping[str, int],
) -> Trained:
    """Trains one network a seed and keeps each at its lowest validation loss.

    Args:
      config: of the method; its groups `model` and `train`, and `data.modality_dropout`, count.
      splits: "train" and "validation".
      tables: the modalities that are rows of numbers, which get a branch that is trained.
      num_classes: k.
      seeds: of initial weights, batches and dropout.
      sizes: split -> records that the largest fold has in it.
    """
    labels = splits["train"].labels
    train, validation = (splits[name].filled(sizes[name]) for name in ("train", "validation"))
    options = config.train
    batch_size = min(options.batch_size, len(train.labels))
    recipe = Recipe(
        # What is read is in the inputs already.
        dataclasses.replace(config.model, read_stages=READ_LAST),
        tuple((m, x.shape[1]) for m, x in train.inputs.items()),
        tables & frozenset(train.inputs),
        num_classes,
        len(train.labels) // batch_size,
        options.num_epochs,
        batch_size,
        options.learning_rate,
        "cosine" if options.schedule == "cosine" else "constant",
        options.weight_decay,
        options.product_weight,
        config.data.modality_dropout,
    )
    network = _network(recipe)
    keys = jnp.stack([root_key(seed) for seed in seeds])
    params, statistics = network.init(stream(keys, "init"))
    prior = np.log(class_prior(labels, num_classes)).astype(np.float32)
    head = statistics.get("heads", {}).get(TASK, {})
    if "log_prior" in head:
        head["log_prior"] = jnp.asarray(np.broadcast_to(prior, head["log_prior"].shape))
        prior = np.zeros_like(prior)
    params["heads"] = _saying(prior, params["heads"])
    arguments = (params, statistics, keys, _arrays(train), _arrays(validation))
    training = _compiled(recipe, "train", *arguments)
    best, statistics = training(*arguments)
    tested = validation.filled(sizes["test"])
    answering = _compiled(
        recipe, "answer", best, statistics, dict(tested.inputs), dict(tested.present)
    )
    held = training.memory_analysis()
    costs = Costs(
        answering.cost_analysis()["flops"] / (len(seeds) * sizes["test"]),
        (held.argument_size_in_bytes + held.temp_size_in_bytes) / len(seeds),
    )
    leaves = jax.tree.leaves(network.abstract_params)
    num_params = sum(leaf.size for leaf in leaves)
    return Trained(recipe, sizes["test"], best, statistics, num_params, costs)


def _saying(log_prior: np.ndarray, heads: dict) -> dict:
    """Heads that say the prior of everybody, so that no method is ahead by how it starts."""

    def start(path, leaf):
        value = {"kernel": np.float32(0), "bias": log_prior}.get(path[-1].key)
        return leaf if value is None else jnp.broadcast_to(value, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(start, heads)


def _arrays(split: Split) -> dict:
    return {
        "images": dict(split.inputs),
        "present": dict(split.present),
        "labels": {TASK: split.labels},
    }


@functools.lru_cache(maxsize=32)
def _network(recipe: Recipe) -> Functional:
    def build(rngs):
        images = {m: FeatureBranch(w) for m, w in recipe.widths if m not in recipe.tables}
        plan = next((b.plan for b in images.values()), (Stage("rows", 64, 1, dropout=False),))
        branches = {
            m: images[m] if m in images else RowBranch(w, plan, rngs=rngs) for m, w in recipe.widths
        }
        return DRIFANet(branches, {TASK: recipe.num_classes}, options=recipe.model, rngs=rngs)

    return Functional(build)


_PROGRAMS: dict[tuple, jax.stages.Compiled] = {}


def _compiled(recipe: Recipe, name: str, *arguments) -> jax.stages.Compiled:
    """The program "train" or "answer" over seeds, compiled once for arguments of these shapes."""
    network = _network(recipe)
    shapes = tuple(leaf.shape for leaf in jax.tree.leaves(arguments))
    key = (recipe, name, shapes)
    if key not in _PROGRAMS:

        def answer(params, statistics, inputs, present):
            (logits, _), _ = network.apply(params, statistics, inputs, train=False, present=present)
            return logits[TASK]

        training = functools.partial(_train, network, recipe)
        function, axes = {
            "train": (training, (0, 0, 0, None, None)),
            "answer": (answer, (0, 0, None, None)),
        }[name]
        while len(_PROGRAMS) >= KEPT_PROGRAMS:
            del _PROGRAMS[next(iter(_PROGRAMS))]
        _PROGRAMS[key] = jax.jit(jax.vmap(function, axes)).lower(*arguments).compile()
    return _PROGRAMS[key]


def _train(network, recipe, params, statistics, key, train, validation):
    """All epochs of one seed; its parameters at the lowest validation loss."""
    experts = network.abstract_params["heads"][TASK].get("log_temperatures", {})
    weights = tuple((e, 1 / len(experts)) for e in experts)
    losses = {TASK: TaskLoss(expert_weights=weights, product_weight=recipe.product_weight)}
    optimizer = make_optimizer(
        learning_rate=recipe.learning_rate,
        schedule=recipe.schedule,
        num_steps=recipe.num_steps * recipe.num_epochs,
        weight_decay=recipe.weight_decay,
    )
    step = make_train_step(network, optimizer, losses, masks_absent=True)
    count = len(train["labels"][TASK])

    def one_step(carry, rows):
        state, number = carry
        batch = jax.tree.map(lambda x: x[rows], train)
        batch["present"] = _some(batch["present"], recipe.dropped, stream(key, "absent", number))
        state, _ = step(state, batch, key)
        return (state, number + 1), None

    def one_epoch(carry, epoch):
        state, number, best, best_loss = carry
        order = jax.random.permutation(stream(key, "order", epoch), count)
        batches = order[: recipe.num_steps * recipe.batch_size].reshape(recipe.num_steps, -1)
        (state, number), _ = jax.lax.scan(one_step, (state, number), batches)
        (logits, _), _ = network.apply(
            state.params,
            state.statistics,
            validation["images"],
            train=False,
            present=validation["present"],
        )
        found, _ = total_loss(logits, validation["labels"], losses)
        better = found < best_loss
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.params, best)
        return (state, number, best, jnp.minimum(found, best_loss)), None

    state = initial_state(params, statistics, optimizer)
    start = (state, jnp.int32(0), params, jnp.float32(np.inf))
    (state, _, best, _), _ = jax.lax.scan(one_epoch, start, jnp.arange(recipe.num_epochs))
    return best, state.statistics


def _some(present, dropped, key):
    """Presence with modalities dropped; a record keeps all that it has rather than nothing."""
    kept = {
        m: held & (jax.random.uniform(stream(key, m), held.shape) >= dropped)
        for m, held in present.items()
    }
    any_left = functools.reduce(jnp.logical_or, kept.values())
    return {m: jnp.where(any_left, kept[m], held) for m, held in present.items()}
