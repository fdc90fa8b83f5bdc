"""Compiled programs kept on disk, so that the second start of a run is fast."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from drifa_jax.cpu.memory import (
    KeptMemory,
    give_back_freed_memory,
    run_programs_in_the_calling_thread,
)
from drifa_jax.cpu.options import compiler_options, training_options
from drifa_jax.whole_files import cache_folder

__all__ = [
    "KeptMemory",
    "compiled_beside",
    "compiler_options",
    "give_back_freed_memory",
    "run_programs_in_the_calling_thread",
    "training_options",
    "use_compilation_cache",
    "without_garbage_collection",
]


def use_compilation_cache() -> Path:
    """Keeps compiled programs in a folder of the user's; returns it.

    `JAX_COMPILATION_CACHE_DIR` chooses another folder. Called by commands, never at import.
    """
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    folder = Path(chosen) if chosen else cache_folder() / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


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
