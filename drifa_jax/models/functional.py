"""The one bridge between Flax NNX modules and plain JAX: nested dicts in, nested dicts out.

Everything else in the package sees parameters and batch statistics as plain pytrees, so that
`jax.jit`, `jax.vmap`, `jax.grad` and sharding need nothing special.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from drifa_jax.models.initial import initial_rngs

Parameters = dict[str, Any]
BatchStatistics = dict[str, Any]


class Functional:
    """`init` and `apply` over plain pytrees for a module that `build` makes.

    Args:
      build: makes the module from `nnx.Rngs`; it must own nothing but `nnx.Param` and
        `nnx.BatchStat`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from drifa_jax.models.building import drifa_net
        >>> from drifa_jax.network_options import NetworkOptions
        >>> network = Functional(lambda rngs: drifa_net(
        ...     {"mri": 1}, {"tumour": 4},
        ...     options=NetworkOptions(width=4, backbone="resnet10"), rngs=rngs))
        >>> params, statistics = network.init(jax.random.key(0))
        >>> apply = jax.jit(network.apply, static_argnames="train")
        >>> (logits, _), _ = apply(
        ...     params, statistics, {"mri": jnp.ones([2, 32, 32, 1])}, train=False)
        >>> logits["tumour"].shape
        (2, 4)
    """

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module]):
        self._build = build
        self.abstract_params, self.abstract_statistics = jax.eval_shape(
            self._trace_structure, jax.random.key(0)
        )

    def _trace_structure(self, key: jax.Array) -> tuple[Parameters, BatchStatistics]:
        self._graphdef, params, statistics = nnx.split(
            self._build(initial_rngs(key)), nnx.Param, nnx.BatchStat
        )
        return nnx.to_pure_dict(params), nnx.to_pure_dict(statistics)

    def init(self, key: jax.Array) -> tuple[Parameters, BatchStatistics]:
        """Initial parameters and batch statistics; a pure function of the key.

        Args:
          key: one key; or one per ensemble member, `[e]`, whose results are stacked on a leading
            axis, member `i` equal to `init(key[i])`.

        Best called outside `jax.jit`: the same numbers come out inside it (or inside
        `jax.vmap`), but a draw per kernel is then compiled, which takes minutes.
        """
        if key.ndim == 1:
            members = [self.init(member) for member in key]
            return jax.tree.map(_stack, *members)
        module = self._build(initial_rngs(key))
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


def _stack(*members: jax.Array) -> jax.Array:
    """Arrays on a new leading axis, by NumPy where possible, which compiles nothing."""
    if any(isinstance(member, jax.core.Tracer) for member in members):
        return jnp.stack(members)
    return jnp.asarray(np.stack(members))
