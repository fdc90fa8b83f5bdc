"""Compiled programs kept on disk, so that the second start of a run is fast."""

from __future__ import annotations

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
