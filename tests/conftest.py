"""The suite runs on CPU with eight host devices, strict dtypes and a compilation cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

ROOT = Path(__file__).resolve().parents[1]
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".jax_cache")

import jax
from absl import flags

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Grain's worker processes read a flag; outside `absl.app.run` nobody parses it.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the authors' golden numbers and real images, which only developers have."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the developers' data folder {folder}")
    return folder
