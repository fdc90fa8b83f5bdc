"""Activations that the backward pass computes again, instead of the forward pass keeping them.

What is small and dear is kept: gates and batch statistics, which are sums and maxima of whole maps.
Source: Chen et al., "Training deep nets with sublinear memory cost", 2016.
Test: tests/models/test_rematerialisation.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from drifa_jax.models.kernels.tracing import KEPT, rematerialising


def computed_again(part: Callable[..., Any], module: nnx.Module, *arguments: Any) -> Any:
    """`part(module, *arguments)`, inside of which the backward pass computes maps again.

    Args:
      part: may change batch statistics of the module, which change once.
      module: owns parameters and batch statistics alone.
      arguments: trees of arrays, which are kept.
    """

    def pure(*arguments):
        own = nnx.merge(*nnx.split(module), copy=True)
        before = [statistic.get_value() for statistic in _statistics(own)]
        result = part(own, *arguments)
        after = [statistic.get_value() for statistic in _statistics(own)]
        both = zip(before, after, strict=True)
        return result, {n: new for n, (old, new) in enumerate(both) if new is not old}

    policy = jax.checkpoint_policies.save_only_these_names(KEPT)
    with rematerialising():
        result, changed = jax.checkpoint(pure, policy=policy)(*arguments)
    statistics = _statistics(module)
    for number, value in changed.items():
        statistics[number].set_value(value)
    return result


def _statistics(module: nnx.Module) -> list[nnx.BatchStat]:
    """In an order that a copy of the module has as well."""
    return [node for _, node in nnx.iter_graph(module) if isinstance(node, nnx.BatchStat)]
