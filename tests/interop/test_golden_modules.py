"""MFA, MIFA and RRA against the authors' code: outputs, gates, gradients, batch statistics.

Tolerances in float32 are those at which the authors' own float32 run departs from its float64
recomputation, times a small factor; float64 runs must agree with that recomputation to 1e-10.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax.models.mfa import MFA
from drifa_jax.models.mifa import MIFA
from drifa_jax.models.rra import RRABlock
from drifa_jax.network_options import NetworkOptions

FLOAT32, FLOAT64 = np.float32, np.float64
DTYPES = pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=["float32", "float64"])
RELATIVE64 = 1e-10


def expected(golden: dict, key: str, dtype) -> np.ndarray:
    return golden[f"f64/{key}" if dtype == FLOAT64 else key]


def check_weight_gradients(found, golden, key, dtype, *, rtol, atol):
    for name, gradient in found.items():
        wanted = expected(golden, f"{key}{name}", dtype)
        limit = rtol * np.abs(wanted).max() + atol
        assert np.abs(gradient - wanted).max() <= limit, name


@DTYPES
@pytest.mark.parametrize("case", ["mfa_8x8_c16", "mfa_17x13_c32"])
def test_mfa_equals_the_authors(case, dtype, golden, golden_part, below, rel, precision):
    numbers = golden(case)
    with precision(dtype):
        channels = numbers["x"].shape[-1]
        part = golden_part(
            lambda rngs: MFA(channels, dtype=jnp.dtype(dtype), rngs=rngs),
            below(numbers, "w/"),
            "mfa",
            dtype,
        )

        def weighted(params, x):
            (y, gates), _ = part.functional.apply(params, {}, x, method="attend")
            return jnp.sum(y * numbers["ct"].astype(dtype)), (y, gates["gate"])

        gradients, (y, gate) = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))(
            part.params, numbers["x"].astype(dtype)
        )
    limit = 2e-6 if dtype == FLOAT32 else RELATIVE64
    assert rel(y, expected(numbers, "y", dtype)) < limit
    assert rel(gate, expected(numbers, "attention", dtype)[:, 0, 0]) < limit
    assert rel(gradients[1], expected(numbers, "g/x", dtype)) < limit
    rtol, atol = (2e-5, 1e-6) if dtype == FLOAT32 else (RELATIVE64, 1e-14)
    check_weight_gradients(part.named(gradients[0]), numbers, "g/w/", dtype, rtol=rtol, atol=atol)


@DTYPES
@pytest.mark.parametrize("case", ["mifa_8x8_c16", "mifa_5x9_c64"])
def test_mifa_equals_the_authors(case, dtype, golden, golden_part, below, rel, precision):
    numbers = golden(case)
    with precision(dtype):
        channels = numbers["x_0"].shape[-1]
        part = golden_part(
            lambda rngs: MIFA(["0", "1"], channels, dtype=jnp.dtype(dtype), rngs=rngs),
            below(numbers, "w/"),
            "mifa",
            dtype,
        )
        images = {m: numbers[f"x_{m}"].astype(dtype) for m in "01"}

        def weighted(params, x):
            (y, gates), _ = part.functional.apply(params, {}, x, method="attend")
            total = sum(jnp.sum(y[m] * numbers[f"ct_{m}"].astype(dtype)) for m in "01")
            return total, (y, gates["gate"])

        gradients, (y, gate) = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))(
            part.params, images
        )
    limit = 2e-6 if dtype == FLOAT32 else RELATIVE64
    assert rel(gate, expected(numbers, "attention", dtype)[:, 0, 0]) < limit
    for m in "01":
        assert rel(y[m], expected(numbers, f"y_{m}", dtype)) < limit
        assert rel(gradients[1][m], expected(numbers, f"g/x_{m}", dtype)) < limit
    rtol, atol = (2e-5, 1e-6) if dtype == FLOAT32 else (RELATIVE64, 1e-14)
    check_weight_gradients(part.named(gradients[0]), numbers, "g/w/", dtype, rtol=rtol, atol=atol)


@DTYPES
@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("case, stride", [("rra_s1_c16", 1), ("rra_s2_c16_c32", 2)])
def test_rra_equals_the_authors(
    case, stride, train, dtype, golden, golden_part, below, rel, precision
):
    numbers = golden(case)
    with precision(dtype):
        # Keras 2 remembers the unbiased variance in float32 and the biased one in float64, where
        # it also rounds its decay of 0.01 to float32.
        options = NetworkOptions(
            compute_dtype=jnp.dtype(dtype).name,
            batch_norm_unbiased=dtype == FLOAT32,
            batch_norm_momentum=0.99 if dtype == FLOAT32 else 1 - float(np.float32(1 - 0.99)),
        )
        num_out = numbers["infer/y"].shape[-1]
        part = golden_part(
            lambda rngs: RRABlock(16, num_out, stride, options=options, rngs=rngs),
            below(numbers, "w/"),
            "rra",
            dtype,
        )

        def weighted(params, x):
            y, statistics = part.functional.apply(params, part.statistics, x, train=train)
            return jnp.sum(y * numbers["ct"].astype(dtype)), (y, statistics)

        gradients, (y, statistics) = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))(
            part.params, numbers["x"].astype(dtype)
        )
    prefix = "train/" if train else "infer/"
    limit = 5e-6 if dtype == FLOAT32 else RELATIVE64
    assert rel(y, expected(numbers, prefix + "y", dtype)) < limit
    assert rel(gradients[1], expected(numbers, prefix + "g/x", dtype)) < limit
    if dtype == FLOAT64:
        # The projection's bias, right before a batch norm, has a gradient of exactly zero.
        rtol, atol = RELATIVE64, 1e-12
    else:
        rtol, atol = (5e-4, 1e-4) if train else (2e-5, 1e-6)
    check_weight_gradients(
        part.named(gradients[0]), numbers, prefix + "g/w/", dtype, rtol=rtol, atol=atol
    )
    for name, value in part.named(statistics, statistics=True).items():
        wanted = expected(numbers, f"train/new/{name}", dtype) if train else numbers[f"w/{name}"]
        assert rel(value, wanted) < (5e-7 if dtype == FLOAT32 else RELATIVE64), name
