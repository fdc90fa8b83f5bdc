"""What each modality contributes to an answer: leave-one-out and exact Shapley values.

Both ask the network again with modalities taken away, through the path that serves records that
lack one. A network that never saw such a record answers them all the same, but what it says then
is an extrapolation: `Contributions.trained_for_it` tells.

A readout that multiplies experts says what each gave in closed form: its factor, in nats, which
needs no other question and is exact.

Source: Shapley, "A value for n-person games", 1953.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from drifa_jax.explain.members import Pixels, Present, over_members
from drifa_jax.models.functional import Functional
from drifa_jax.models.pixels import scale_pixels
from drifa_jax.predict.restored import Restored

LARGEST_NUMBER = 8
"""Modalities up to which all subsets are tried."""


@dataclass(frozen=True)
class Contributions:
    """Of every modality to the probability of one class of each record.

    Attributes:
      leave_one_out: modality -> `[e, b]`, how much the probability falls without it.
      shapley: modality -> `[e, b]`; they add up to `everything - nothing`.
      everything: `[e, b]`, the probability with all that the record holds.
      nothing: `[b]`, the probability before anything is seen.
      trained_for_it: whether the network was trained on records that lack modalities. If not,
        the figures describe answers to inputs unlike any that it learnt from.
      factors: expert -> `[e, b]`, what it adds to the log probability of the class, in nats, above
        what it adds to the average class. With the prior's they add up to that of the answer:
        `sum(factors) = clr(p) - clr(prior)`, where `clr` takes the mean over classes off the log.
        Empty where the readout combines no experts.
    """

    leave_one_out: Mapping[str, np.ndarray]
    shapley: Mapping[str, np.ndarray]
    everything: np.ndarray
    nothing: np.ndarray
    trained_for_it: bool
    factors: Mapping[str, np.ndarray]


def contributions(
    restored: Restored,
    pixels: Pixels,
    task: str,
    classes: np.ndarray,
    *,
    present: Present | None = None,
    prior: Sequence[float] | None = None,
) -> Contributions:
    """Contributions to the probability of `classes` `[b]`, dropout off.

    Args:
      restored: the members.
      pixels: modality -> `[b, h, w, c]` uint8 at the network's size.
      task: whose answer is explained.
      classes: `[b]` int, one class a record.
      present: modality -> `[b]` bool; an absent modality contributes exactly nothing.
      prior: probability of each class before anything is seen, such as its frequency; None
        takes all classes as equally probable.

    Raises:
      ValueError: for more modalities than `LARGEST_NUMBER`, or a prior that does not fit.

    Test: tests/explain/test_contribution.py.
    """
    names = tuple(pixels)
    if len(names) > LARGEST_NUMBER:
        raise ValueError(f"{len(names)} modalities have too many subsets to try them all.")
    num_classes = len(restored.description.tasks[task])
    prior = np.full(num_classes, 1 / num_classes) if prior is None else np.asarray(prior, float)
    if prior.shape != (num_classes,) or abs(prior.sum() - 1) > 1e-3 or (prior < 0).any():
        raise ValueError(f"prior must hold {num_classes} probabilities that add up to 1.")
    classes = np.asarray(classes, np.int32)
    held = {m: np.ones(len(classes), bool) if present is None else present[m] for m in names}
    nothing = prior[classes]
    values = _values(restored, pixels, task, classes, held, nothing)
    everything = values[frozenset(names)]
    shapley = {}
    for name in names:
        total = np.zeros_like(everything)
        others = [other for other in names if other != name]
        for size in range(len(names)):
            weight = math.factorial(size) * math.factorial(len(names) - size - 1)
            for subset in itertools.combinations(others, size):
                without = frozenset(subset)
                total += weight * (values[without | {name}] - values[without])
        shapley[name] = total / math.factorial(len(names))
    left_out = {m: everything - values[frozenset(names) - {m}] for m in names}
    factors = over_members(
        restored, _compiled_factors(restored.network, task), dict(pixels), classes, held
    )
    return Contributions(
        left_out, shapley, everything, nothing, restored.description.may_lack_modalities, factors
    )


def _values(restored, pixels, task, classes, held, nothing) -> dict[frozenset, np.ndarray]:
    """Subset of modalities -> probability `[e, b]` of the class with these alone."""
    function = _compiled(restored.network, task)
    num_members = len(jax.tree.leaves(restored.params)[0])
    values: dict[frozenset, np.ndarray] = {}
    for size in range(len(pixels) + 1):
        for subset in itertools.combinations(pixels, size):
            seen = {m: held[m] & (m in subset) for m in pixels}
            anything = np.any(list(seen.values()), axis=0)
            value = np.tile(nothing, (num_members, 1))
            if anything.any():
                # The place of a record that shows nothing is filled, and not read.
                asked = {m: np.where(anything, seen[m], held[m]) for m in pixels}
                answer = over_members(restored, function, dict(pixels), classes, asked)
                value[:, anything] = answer[:, anything]
            values[frozenset(subset)] = value
    return values


@functools.lru_cache(maxsize=16)
def _compiled_factors(network: Functional, task: str):
    prefix = f"evidence/{task}/"

    def factors(params, statistics, pixels, classes, present):
        (_, seen), _ = network.apply(
            params, statistics, scale_pixels(pixels), train=False, present=present
        )

        def of_class(evidence):
            own = jax.numpy.take_along_axis(evidence, classes[:, None], axis=1)[:, 0]
            return own - jax.numpy.mean(evidence, axis=1)

        return {
            name.removeprefix(prefix): of_class(evidence)
            for name, evidence in seen.items()
            if name.startswith(prefix)
        }

    return jax.jit(factors)


@functools.lru_cache(maxsize=16)
def _compiled(network: Functional, task: str):
    def probability(params, statistics, pixels, classes, present):
        (logits, _), _ = network.apply(
            params, statistics, scale_pixels(pixels), train=False, present=present
        )
        probabilities = jax.nn.softmax(logits[task])
        return jax.numpy.take_along_axis(probabilities, classes[:, None], axis=1)[:, 0]

    return jax.jit(probability)
