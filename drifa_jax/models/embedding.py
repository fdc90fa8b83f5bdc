"""Learned inputs, such as tokens and positions: values of a map, and no weights of one."""

from __future__ import annotations

from flax import nnx


class Embedding(nnx.Param):
    """A parameter that enters a network as features do; weight decay leaves it alone."""
