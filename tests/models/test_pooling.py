import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax.models.kernels.extremes import max_pool, min_pool, share_of_extreme
from drifa_jax.models.pooling import average_pool


@pytest.mark.parametrize("space", [(), (4,), (3, 4), (2, 3, 2)], ids=str)
@pytest.mark.parametrize(
    ("pool", "plain"), [(max_pool, jnp.max), (min_pool, jnp.min)], ids=["max", "min"]
)
def test_extremes_have_the_value_and_gradient_of_the_plain_reduction(pool, plain, space):
    rng = np.random.default_rng(0)
    # Rounding makes ties, which must share the gradient.
    x = jnp.asarray(rng.normal(size=(2, *space, 3)).round(0), jnp.float32)
    axes = tuple(range(1, x.ndim - 1))
    value, back = jax.vjp(pool, x)
    expected, plain_back = jax.vjp(lambda x: plain(x, axes), x)
    cotangent = jnp.asarray(rng.normal(size=value.shape), jnp.float32)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_allclose(back(cotangent)[0], plain_back(cotangent)[0], rtol=1e-6)


def test_extremes_map_over_an_ensemble_axis():
    x = jax.random.normal(jax.random.key(0), (4, 2, 5, 3))
    gradient = jax.grad(lambda x: jnp.sum(jnp.square(max_pool(x))))
    np.testing.assert_allclose(
        jax.vmap(gradient)(x), jnp.stack([gradient(one) for one in x]), rtol=1e-6
    )


@pytest.mark.parametrize("pool", [max_pool, min_pool, average_pool])
def test_pools_of_bfloat16_are_float32(pool):
    assert pool(jnp.ones((2, 3, 4), jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradient_is_not_lost_where_the_map_was_computed_again_with_other_rounding(dtype):
    """The extreme is the next representable number after the one in the map."""
    x = jnp.array([[[0.3], [1.5], [-1.5]]], dtype)
    ulp = jnp.finfo(dtype).eps
    for extreme, row in ((x[:, 1] + ulp, 1), (x[:, 2] - ulp, 2)):
        assert extreme[0, 0] != x[0, row, 0]
        gradient = share_of_extreme(x, extreme, jnp.ones((1, 1), jnp.float32))
        np.testing.assert_array_equal(gradient[0, :, 0], np.eye(3)[row])
