"""The one bridge between Flax NNX modules and plain JAX: nested dicts in, nested dicts out.

Everything else in the package sees parameters and batch statistics as plain pytrees, so that
`jax.jit`, `jax.vmap`, `jax.grad` and sharding need nothing special.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Parameters = dict[str, Any]
BatchStatistics = dict[str, Any]


class Functional:
    """`init` and `apply` over plain pytrees for a module that `build` makes.

    Args:
      build: makes the module from `nnx.Rngs`; it must own nothing but `nnx.Param` and
        `nnx.BatchStat`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from drifa_jax.models.drifa_net import NetworkOptions, drifa_net
        >>> network = Functional(lambda rngs: drifa_net(
        ...     {"mri": 1}, {"tumour": 4}, options=NetworkOptions(width=4), rngs=rngs))
        >>> params, statistics = network.init(jax.random.key(0))
        >>> (logits, _), _ = network.apply(
        ...     params, statistics, {"mri": jnp.ones([2, 32, 32, 1])}, train=False)
        >>> logits["tumour"].shape
        (2, 4)
    """

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module]):
        self._build = build
        abstract = nnx.eval_shape(lambda: build(nnx.Rngs(params=jax.random.key(0))))
        self._graphdef, params, statistics = nnx.split(abstract, nnx.Param, nnx.BatchStat)
        self.abstract_params: Parameters = nnx.to_pure_dict(params)
        self.abstract_statistics: BatchStatistics = nnx.to_pure_dict(statistics)

    def init(self, key: jax.Array) -> tuple[Parameters, BatchStatistics]:
        """Initial parameters and batch statistics; a pure function of the key."""
        module = self._build(nnx.Rngs(params=key))
        _, params, statistics = nnx.split(module, nnx.Param, nnx.BatchStat)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(statistics)

    def apply(
        self,
        params: Parameters,
        statistics: BatchStatistics,
        *args: Any,
        method: str = "__call__",
        **kwargs: Any,
    ) -> tuple[Any, BatchStatistics]:
        """Calls a method of the module; returns its result and the batch statistics after it."""
        module = nnx.merge(self._graphdef, params, statistics)
        result = getattr(module, method)(*args, **kwargs)
        return result, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))
