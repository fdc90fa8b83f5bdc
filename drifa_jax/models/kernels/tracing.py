"""How programs are being traced: with hand-written kernels or plainly, for how many devices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

KEPT = "kept"
"""Name of what `keep` keeps."""


@dataclass(frozen=True)
class Tracing:
    """What the kernels need to know of the program that they become a part of.

    Attributes:
      plain: whether it is made of plain formulas, which JAX differentiates.
      num_devices: that each batch is spread over, in equal parts.
      platform: that it is compiled for, where that is known: cpu, gpu or tpu.
      rematerialises: whether the backward pass computes again all that `keep` does not keep.
    """

    plain: bool = False
    num_devices: int = 1
    platform: str = ""
    rematerialises: bool = False


_USUAL = Tracing()
_TRACING: ContextVar[Tracing] = ContextVar("tracing", default=_USUAL)


def tracing() -> Tracing:
    """How the program at hand is being traced."""
    return _TRACING.get()


@contextmanager
def _tracing_with(**changes: Any) -> Iterator[None]:
    token = _TRACING.set(replace(_TRACING.get(), **changes))
    try:
        yield
    finally:
        _TRACING.reset(token)


def plain():
    """Traces plain formulas inside of the block; a program traced before keeps what it has."""
    return _tracing_with(plain=True)


def batch_over(num_devices: int, platform: str = ""):
    """Traces inside of the block for batches that are spread over so many devices of a kind."""
    return _tracing_with(num_devices=num_devices, platform=platform)


def rematerialising():
    """Traces inside of the block a part that the backward pass computes again."""
    return _tracing_with(rematerialises=True)


def keep(arrays: Any) -> Any:
    """The same arrays, small and dear ones that the backward pass need not compute again."""
    if not tracing().rematerialises:
        return arrays
    return jax.tree.map(lambda x: checkpoint_name(x, KEPT), arrays)


def jit(function: Callable[..., Any], static_argnums: Sequence[int] = ()) -> Callable[..., Any]:
    """`jax.jit` for a part of a program: traced once for each way of tracing, not once for all."""

    def part(way, *arguments):
        del way
        return function(*arguments)

    part.__name__ = part.__qualname__ = function.__name__
    compiled = jax.jit(part, static_argnums=(0, *(number + 1 for number in static_argnums)))

    @functools.wraps(function)
    def call(*arguments):
        return compiled(tracing(), *arguments)

    return call


def hand_written(
    formula: Callable[..., Any],
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    nondiff_argnums: Sequence[int] = (),
    plain_on: Sequence[str] = (),
) -> Callable[..., Any]:
    """A function with a gradient of its own, and with the formula's under `plain`.

    Args:
      formula: what it computes.
      forward: its arguments -> outputs and residuals, as `jax.custom_vjp` wants them.
      backward: `nondiff_argnums`' arguments, residuals, cotangents -> cotangents.
      nondiff_argnums: of static arguments.
      plain_on: platforms on which the formula's own gradient is the better one.
    """

    def value(*arguments):
        return forward(*arguments)[0]

    value.__name__ = formula.__name__
    written = jax.custom_vjp(value, nondiff_argnums=tuple(nondiff_argnums))
    written.defvjp(forward, backward)

    @functools.wraps(formula)
    def function(*arguments):
        is_plain = tracing().plain or tracing().platform in plain_on
        return (formula if is_plain else written)(*arguments)

    return function
