import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax.models.batch_norm import BatchNorm
from drifa_jax.models.functional import Functional

NORM = Functional(lambda rngs: BatchNorm(3))


def plain(params, x, present=None):
    """The formula, for JAX to differentiate."""
    axes = tuple(range(x.ndim - 1))
    row = (1,) * (x.ndim - 1) + (-1,)
    weight = jnp.ones(x.shape, x.dtype)
    if present is not None:
        weight = weight * present.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)
    mean = jnp.sum(weight * x, axes) / jnp.sum(weight, axes)
    centred = x - mean.reshape(row)
    var = jnp.sum(weight * jnp.square(centred), axes) / jnp.sum(weight, axes)
    normal = centred / jnp.sqrt(var + 1e-3).reshape(row)
    return normal * params["scale"].reshape(row) + params["bias"].reshape(row)


@pytest.mark.parametrize("space", [(), (4, 5), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradient_equal_those_of_the_formula(randomised, space, masked):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = jax.tree.map(jnp.asarray, randomised(NORM.abstract_params, dtype=np.float64))
        statistics = randomised(NORM.abstract_statistics, dtype=np.float64)
        x = jnp.asarray(rng.normal(size=(4, *space, 3)) * 3 + 2)
        present = jnp.asarray([True, False, True, True]) if masked else None

        def ours(params, x):
            return NORM.apply(params, statistics, x, train=True, present=present)[0]

        value, back = jax.vjp(ours, params, x)
        expected, plain_back = jax.vjp(lambda p, x: plain(p, x, present), params, x)
        cotangent = jnp.asarray(rng.normal(size=value.shape))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11),
            (value, back(cotangent)),
            (expected, plain_back(cotangent)),
        )


def test_moving_averages_take_one_percent_of_the_biased_statistics():
    params, statistics = NORM.init(jax.random.key(0))
    x = np.random.default_rng(0).normal(2.0, 3.0, (4, 5, 6, 3)).astype(np.float32)
    _, after = NORM.apply(params, statistics, x, train=True)
    np.testing.assert_allclose(after["mean"], 0.01 * x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(after["var"], 0.99 + 0.01 * x.var((0, 1, 2)), rtol=1e-5)


def test_inference_uses_and_keeps_the_moving_averages(randomised):
    params, statistics = randomised((NORM.abstract_params, NORM.abstract_statistics))
    x = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    y, after = NORM.apply(params, statistics, x, train=False)
    jax.tree.map(np.testing.assert_array_equal, after, statistics)
    expected = (x - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-3)
    np.testing.assert_allclose(y, expected * params["scale"] + params["bias"], rtol=1e-4, atol=1e-5)


def test_statistics_count_present_records_only():
    params, statistics = NORM.init(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    x[1] = 100.0
    present = jnp.asarray([True, False, True, True])
    masked, after = NORM.apply(params, statistics, x, train=True, present=present)
    alone, alone_after = NORM.apply(params, statistics, x[[0, 2, 3]], train=True)
    np.testing.assert_allclose(np.asarray(masked)[[0, 2, 3]], alone, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after, alone_after)


def test_a_batch_without_the_modality_changes_no_statistics_and_gives_no_nan():
    params, statistics = NORM.init(jax.random.key(0))
    x, nobody = jnp.zeros((2, 4, 3)), jnp.zeros(2, bool)

    def loss(params, x):
        y, after = NORM.apply(params, statistics, x, train=True, present=nobody)
        return jnp.sum(jnp.square(y)), after

    gradients, after = jax.grad(loss, (0, 1), has_aux=True)(params, x)
    jax.tree.map(np.testing.assert_array_equal, after, statistics)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_statistics_of_bfloat16_maps_are_float32():
    params, statistics = NORM.init(jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).normal(5.0, 1.0, (8, 16, 3)), jnp.bfloat16)
    y, after = NORM.apply(params, statistics, x, train=True)
    assert y.dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves(after)} == {jnp.dtype("float32")}
    # Statistics of the same bfloat16 numbers, exact to float32.
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(after["mean"], 0.01 * wide.mean((0, 1)), rtol=1e-5)


def test_batch_norm_maps_over_an_ensemble_axis(randomised):
    params = randomised(NORM.abstract_params)
    _, statistics = NORM.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, 3))

    def gradient(x):
        apply = lambda x: NORM.apply(params, statistics, x, train=True)[0]  # noqa: E731
        return jax.grad(lambda x: jnp.sum(jnp.sin(apply(x))))(x)

    together = jax.vmap(gradient)(x)
    for member in range(2):
        np.testing.assert_allclose(together[member], gradient(x[member]), rtol=1e-4, atol=1e-6)
