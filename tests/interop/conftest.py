"""Golden numbers of the authors' code, read through the public converter."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax.interop.author_names import author_leaf, part_slot
from drifa_jax.interop.tensors import flatten, read_slots, unflatten, write_slots
from drifa_jax.models.description import NetworkDescription
from drifa_jax.models.functional import Functional
from drifa_jax.network_options import NetworkOptions


class GoldenPart:
    """One module with golden weights: its parameters, and gradients under the golden names."""

    def __init__(self, build: Callable[[Any], Any], weights: dict, prefix: str, dtype=np.float32):
        self.functional = Functional(build)
        params = flatten(self.functional.abstract_params)
        statistics = flatten(self.functional.abstract_statistics)
        self.slots = [
            part_slot(path, f"{prefix}/{author_leaf(path.split('/'), ['0', '1'])}", tuple(a.shape))
            for path, a in (params | statistics).items()
        ]
        self.param_slots = [slot for slot in self.slots if slot.path in params]
        self.statistic_slots = [slot for slot in self.slots if slot.path in statistics]
        tensors = read_slots(weights, self.slots, "golden")
        self.params = unflatten({p: jnp.asarray(tensors[p], dtype) for p in params})
        self.statistics = unflatten({p: jnp.asarray(tensors[p], dtype) for p in statistics})

    def named(self, tree: dict, *, statistics: bool = False) -> dict[str, np.ndarray]:
        """A tree of parameters, gradients or statistics under the authors' names."""
        slots = self.statistic_slots if statistics else self.param_slots
        return write_slots(flatten(tree), slots)


def relative_to_max(actual, expected) -> float:
    """Largest absolute difference over the largest magnitude expected."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    return float(difference.max() / np.abs(expected).max())


@pytest.fixture
def rel(request):
    """`relative_to_max`, remembering what it measured for `PARITY_TABLE=FILE pytest`."""

    def measured(actual, expected) -> float:
        relative = relative_to_max(actual, expected)
        largest = float(np.abs(np.asarray(expected)).max())
        worst = MEASURED.get(request.node.name, (0.0, 0.0))
        MEASURED[request.node.name] = (max(worst[0], relative * largest), max(worst[1], relative))
        return relative

    return measured


MEASURED: dict[str, tuple[float, float]] = {}
"""Test -> worst absolute and relative difference of all arrays that it compared."""


def pytest_sessionfinish():
    if MEASURED and "PARITY_TABLE" in os.environ:
        rows = [f"| `{test}` | {a:.1e} | {r:.1e} |\n" for test, (a, r) in MEASURED.items()]
        header = "| test | max abs | max abs / max |\n| --- | --- | --- |\n"
        Path(os.environ["PARITY_TABLE"]).write_text(header + "".join(rows))


@pytest.fixture(scope="session")
def golden_part():
    return GoldenPart


@pytest.fixture(scope="session")
def golden(shared: Path):
    """`golden(name)` loads the arrays of one file of golden numbers."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(shared / "parity" / f"{name}.npz") as file:
            return {key: file[key] for key in file}

    return load


def under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose key starts with the prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


@pytest.fixture(scope="session")
def below():
    return under


@pytest.fixture(scope="session")
def precision():
    """`precision(dtype)`: a context in which float64 is what it says."""

    def context(dtype):
        return jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext()

    return context


@pytest.fixture(scope="session")
def authors_network():
    """`authors_network(width)`: two colour modalities and two heads, as in the notebooks."""

    @functools.cache
    def describe(width: int) -> NetworkDescription:
        return NetworkDescription(
            {"a": 3, "b": 3}, {"cell": 5, "skin": 7}, NetworkOptions(width=width)
        )

    return describe
