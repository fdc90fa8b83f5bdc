"""Compiled programs kept on disk, so that the second start of a run is fast."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import jax


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
    if jax.default_backend() != "cpu":
        return {}
    options = {"xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_COMPILE"}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def give_back_freed_memory() -> None:
    """Returns to the system what the C library keeps of freed memory, where it is glibc.

    Compiling a training step leaves about a gigabyte that nobody uses and that counts as the
    process' own until something asks for it.
    """
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return
