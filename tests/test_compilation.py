"""Executables that one start of a command keeps and the next one loads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax.compilation import Program


@pytest.fixture
def kept(tmp_path):
    """The folder of executables, in a compilation cache of this test alone."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path / "executables"
    jax.config.update("jax_compilation_cache_dir", before)


def doubled(x):
    return jnp.sin(x) * 2.0


def never(x):
    raise AssertionError("it was traced")


X = np.linspace(0, 1, 5, dtype=np.float32)


def test_the_next_start_loads_what_was_compiled_and_traces_nothing(kept):
    first = Program(jax.jit(doubled), "doubled")(X)
    (file,) = kept.iterdir()
    assert len(file.name) == 32
    np.testing.assert_array_equal(Program(jax.jit(never), "doubled")(X), first)


def test_another_name_shape_or_setting_is_another_executable(kept):
    Program(jax.jit(doubled), "doubled")(X)
    for named, x in (("other", X), ("doubled", X[:4])):
        with pytest.raises(AssertionError, match="it was traced"):
            Program(jax.jit(never), named)(x)


def test_a_damaged_executable_is_compiled_again(kept):
    first = Program(jax.jit(doubled), "doubled")(X)
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-7] + bytes(7))
    np.testing.assert_array_equal(Program(jax.jit(doubled), "doubled")(X), first)
    assert file.read_bytes() != whole[:-7] + bytes(7)


def test_without_a_name_or_a_cache_nothing_is_kept(kept):
    np.testing.assert_array_equal(Program(jax.jit(doubled))(X), doubled(X))
    assert not kept.exists()


def test_what_xla_loaded_from_its_own_cache_is_not_written_again(kept, monkeypatch):
    """Such an executable loads and then lacks functions when it runs."""
    event = "/jax/compilation_cache/cache_hits"
    lowered = jax.jit(doubled).lower(X)
    compiled = lowered.compile()

    class Loaded:
        def compile(self):
            jax.monitoring.record_event(event)
            return compiled

    monkeypatch.setattr(Program, "_lowered", lambda self, arguments: Loaded())
    np.testing.assert_array_equal(Program(jax.jit(doubled), "loaded")(X), doubled(X))
    assert not kept.exists()


def test_each_shape_is_compiled_once(kept):
    traces = []

    def counted(x):
        traces.append(x.shape)
        return x

    program = Program(jax.jit(counted))
    for x in (X, X[:3], X, X[:3]):
        program(x)
    assert traces == [(5,), (3,)]
