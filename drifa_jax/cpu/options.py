"""Options for XLA on CPU; none on accelerators, nor where this XLA does not know them."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax


@functools.cache
def compiler_options(platform: str | None = None) -> dict[str, str]:
    """Options for `jax.jit` of large programs: on CPU, a shorter time to the first step.

    XLA's preset for fast compilation makes the same training step as fast; see
    docs/performance.md. Empty on accelerators, and where this XLA does not know the option.

    Args:
      platform: what the program is compiled for; None for the devices of this machine.
    """
    if (platform or jax.default_backend()) != "cpu":
        return {}
    return _known({"xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_COMPILE"})


SMALL_NETWORK = 10**7
"""Parameters below which XLA's library fusions of sums cost more than they save."""

_SUMS = "LIBRARY_FUSION_TYPE_REDUCE"


def training_options(params: Any, platform: str | None = None) -> dict[str, str]:
    """Options for the training step of one network on one device.

    On CPU XLA hands products, convolutions and sums to a library, and to load each of two
    thousand such fusions from the compilation cache it searches the whole program. Here only a
    large network's sums are, which are faster so; products and convolutions are not. Where
    several host devices run one program at once, programs without the fusions were seen to give
    wrong numbers; on one device they agree with float64 as well as those with them
    (`benchmarks/train_step.py --check`, tests/train/test_exactness.py).

    Args:
      params: of the network; only their shapes are read.
      platform: as in `compiler_options`.
    """
    if (platform or jax.default_backend()) != "cpu":
        return {}
    small = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) < SMALL_NETWORK
    return _with_fusions_of("" if small else _SUMS) or compiler_options()


@functools.cache
def _with_fusions_of(kinds: str) -> dict[str, str]:
    return _known(compiler_options() | {"xla_cpu_experimental_ynn_fusion_type": kinds})


def _known(options: dict[str, str]) -> dict[str, str]:
    """The options; none where this XLA does not know one of them."""
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options
