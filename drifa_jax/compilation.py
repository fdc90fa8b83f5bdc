"""Compiled programs kept on disk, so that the second start of a run is fast."""

from __future__ import annotations

import functools
import gc
import math
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from drifa_jax.memory import give_back_freed_memory


def use_compilation_cache() -> Path:
    """Keeps compiled programs in a folder of the user's; returns it.

    `JAX_COMPILATION_CACHE_DIR` chooses another folder. Called by commands, never at import.
    """
    folder = Path(
        os.environ.get("JAX_COMPILATION_CACHE_DIR")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drifa_jax" / "xla"
    )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


@functools.cache
def compiler_options() -> dict[str, str]:
    """Options for `jax.jit` of large programs: on CPU, a shorter time to the first step.

    XLA's preset for fast compilation makes the same training step as fast; see
    docs/performance.md. Empty on accelerators, and where this XLA does not know the option.
    """
    return _known({"xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_COMPILE"})


SMALL_NETWORK = 10**7
"""Parameters below which XLA's library fusions of sums cost more than they save."""

_SUMS = "LIBRARY_FUSION_TYPE_REDUCE"


def training_options(params: Any) -> dict[str, str]:
    """Options for the training step of one network on one device.

    On CPU XLA hands products, convolutions and sums to a library, and to load each of two
    thousand such fusions from the compilation cache it searches the whole program. Here only a
    large network's sums are, which are faster so; products and convolutions are not. Where
    several host devices run one program at once, programs without the fusions were seen to give
    wrong numbers; on one device they agree with float64 as well as those with them
    (`benchmarks/train_step.py --check`, tests/train/test_exactness.py).

    Args:
      params: of the network; only their shapes are read.
    """
    small = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) < SMALL_NETWORK
    return _with_fusions_of("" if small else _SUMS) or compiler_options()


@functools.cache
def _with_fusions_of(kinds: str) -> dict[str, str]:
    return _known(compiler_options() | {"xla_cpu_experimental_ynn_fusion_type": kinds})


def _known(options: dict[str, str]) -> dict[str, str]:
    """The options; none on accelerators, or where this XLA does not know one of them."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """For tracing, which makes a million objects that stay; looking among them takes a second."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def compiled_beside(lowered: Any) -> Future:
    """A lowered program's executable, compiled or loaded while this thread does something else."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="compile")
    compiled = executor.submit(_compile, lowered)
    executor.shutdown(wait=False)
    return compiled


def _compile(lowered: Any) -> Any:
    compiled = lowered.compile()
    give_back_freed_memory()
    return compiled
