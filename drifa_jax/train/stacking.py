"""Small leaves of equal shape as one array, so that an optimiser runs few operations.

A DRIFA-Net has about a thousand parameters of two dozen shapes. Adam and its norms on each of
them alone are half of all operations that XLA compiles, loads and launches in a training step,
and most of them are on vectors of a few hundred numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from drifa_jax.models.kernels.tracing import tracing
from drifa_jax.sharding import is_large

Stacks = dict[str, jax.Array]
"""Dtype and shape in words -> `[n, *shape]`, the n leaves of that kind in the order of the tree;
of large leaves each has a place of its own, `[1, *shape]`: to copy it into a stack and its update
back takes longer than the operations that a stack saves, and alone it is updated as soon as its
gradient is there."""

_STACK = re.compile(r"(apart )?\w+\[[\d,]*\]")
"""Names of stacks; one of a large leaf has its number besides."""

APART = "apart "
"""Begins the name of a stack of leaves that are treated unlike others of their shape."""


class StackedState(NamedTuple):
    """State of a stacked optimiser.

    Attributes:
      inner: the wrapped optimiser's, on stacks.
      rows: the numbers 0, 1, 2... as scalars, int32. XLA compiles one kernel for all leaves of
        a shape when the row to read is data, and one for each leaf when it is a constant.
    """

    inner: Any
    rows: tuple[jax.Array, ...]


def stack(tree: Any, apart: Any = None) -> Stacks:
    """All leaves of a tree, small ones of equal shape and dtype on a new leading axis.

    Args:
      tree: of arrays.
      apart: a bool for each leaf, whether it is in a stack whose name begins with `APART`; None
        puts none apart.
    """
    groups: dict[str, list[jax.Array]] = {}
    leaves = jax.tree.leaves(tree)
    for place, leaf in zip(_places(leaves, apart), leaves, strict=True):
        groups.setdefault(place, []).append(leaf)
    return {place: jnp.stack(members) for place, members in groups.items()}


def stacked(inner: optax.GradientTransformation, apart: Any = None) -> optax.GradientTransformation:
    """An optimiser that treats every number alike, run on stacks; the same updates come out.

    Args:
      inner: elementwise, or reading global norms; its initial state depends on shapes alone, and
        what it takes from the shape of a leaf, it takes from one with a leading axis more.
      apart: as in `stack`, for optimisers that do not treat every leaf alike.
    """

    def init(params):
        shapes = jax.eval_shape(lambda tree: stack(tree, apart), params)
        # Stacking the values themselves would compile a program for each shape.
        zeros = jax.tree.map(lambda like: np.zeros(like.shape, like.dtype), shapes)
        longest = max(like.shape[0] for like in shapes.values())
        rows = tuple(jnp.asarray(row, jnp.int32) for row in range(longest))
        return StackedState(inner.init(zeros), rows)

    def update(gradients, state, params=None):
        stacked_params = None if params is None else stack(params, apart)
        updates, inner_state = inner.update(stack(gradients, apart), state.inner, stacked_params)
        whole = _unstack(updates, gradients, state.rows, apart)
        return whole, StackedState(inner_state, state.rows)

    return optax.GradientTransformation(init, update)


def is_stack_of_small(path: Sequence[Any]) -> bool:
    """Whether a path of `jax.tree_util` leads to a stack of leaves that are small by themselves.

    On several devices such a stack is better whole: cut in pieces, each of its leaves' updates
    would be gathered for itself, some three hundred of them in a step.
    """
    places = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
    return any(_STACK.fullmatch(str(place)) for place in places)


def _unstack(stacks: Stacks, like: Any, rows: tuple[jax.Array, ...], apart: Any) -> Any:
    leaves, treedef = jax.tree.flatten(like)
    numbers = {place: iter(rows) for place in stacks}
    return treedef.unflatten(
        lax.squeeze(stacks[place], [0])
        if len(stacks[place]) == 1
        else _row(stacks[place], next(numbers[place]))
        for place in _places(leaves, apart)
    )


def _row(values: jax.Array, number: jax.Array) -> jax.Array:
    """A row of a stack.

    Cut from the stack's rows laid end to end, it keeps its rank: XLA on CPU then adds it to the
    parameter in the operation that cuts it out. A TPU would lay small rows out anew for that.
    """
    if values.ndim == 1 or tracing().platform == "tpu":
        return lax.dynamic_index_in_dim(values, number, axis=0, keepdims=False)
    side = values.shape[1]
    end_to_end = values.reshape(-1, *values.shape[2:])
    return lax.dynamic_slice_in_dim(end_to_end, number * side, side)


def _places(leaves: Sequence[Any], apart: Any) -> Iterator[str]:
    """The stack of each leaf."""
    counts: Counter[str] = Counter()
    marks = [False] * len(leaves) if apart is None else jax.tree.leaves(apart)
    for leaf, mark in zip(leaves, marks, strict=True):
        kind = f"{leaf.dtype.name}[{','.join(str(side) for side in leaf.shape)}]"
        kind = APART * mark + kind
        counts[kind] += 1
        yield f"{kind} {counts[kind]}" if is_large(leaf.shape) else kind
