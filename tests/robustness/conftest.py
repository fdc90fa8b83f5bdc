"""Training uses optax, whose Adam raises a float to an integer power: no strict dtypes here."""

from __future__ import annotations

import jax
import pytest


@pytest.fixture(autouse=True)
def standard_dtype_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield
