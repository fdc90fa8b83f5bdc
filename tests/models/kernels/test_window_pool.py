import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax.models import kernels
from drifa_jax.models.kernels.window_pool import max_pool_3x3


@pytest.mark.parametrize("padding", ["SAME", ((1, 1), (1, 1))], ids=["tensorflow", "torch"])
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (1, 3)], ids=str)
def test_value_and_gradient_equal_those_of_reduce_window(size, padding):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))

    @jax.jit
    def both(x):
        value, back = jax.vjp(lambda x: max_pool_3x3(x, padding), x)
        with kernels.plain():
            expected, plain_back = jax.vjp(lambda x: max_pool_3x3(x, padding), x)
        cotangent = jax.random.normal(jax.random.key(1), value.shape)
        return value, back(cotangent)[0], expected, plain_back(cotangent)[0]

    value, gradient, expected, plain_gradient = both(x)
    np.testing.assert_array_equal(value, expected)
    # Up to four windows share a pixel; the order of that sum differs.
    np.testing.assert_allclose(gradient, plain_gradient, rtol=1e-5, atol=1e-6)


def test_three_spatial_axes():
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 6, 2))
    with kernels.plain():
        expected = jax.jit(lambda x: max_pool_3x3(x))(x)
    np.testing.assert_array_equal(jax.jit(max_pool_3x3)(x), expected)


def test_ties_follow_torch():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).integers(0, 3, (2, 8, 9, 3)).astype(np.float32)
    value, back = jax.vjp(lambda x: max_pool_3x3(x, ((1, 1), (1, 1))), jnp.asarray(x))
    cotangent = np.random.default_rng(1).normal(size=value.shape).astype(np.float32)
    theirs = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    pooled = torch.nn.functional.max_pool2d(theirs, 3, 2, 1)
    pooled.backward(torch.tensor(cotangent.transpose(0, 3, 1, 2)))
    np.testing.assert_array_equal(value, pooled.detach().numpy().transpose(0, 2, 3, 1))
    np.testing.assert_allclose(
        back(jnp.asarray(cotangent))[0], theirs.grad.numpy().transpose(0, 2, 3, 1), atol=1e-6
    )


def test_a_constant_map_sends_the_gradient_to_the_first_position():
    gradient = jax.grad(lambda x: jnp.sum(max_pool_3x3(x)))(jnp.ones((1, 4, 4, 1)))
    # Windows start at even pixels (padding is at the end), and each first pixel wins its own.
    expected = np.zeros((4, 4))
    expected[::2, ::2] = 1.0
    np.testing.assert_array_equal(gradient[0, :, :, 0], expected)


def test_padding_never_wins():
    assert max_pool_3x3(jnp.full((1, 5, 5, 1), -3.0)).max() == -3.0


def test_the_gradient_maps_over_an_ensemble_axis():
    x = jax.random.normal(jax.random.key(0), (2, 1, 6, 6, 2))
    gradient = jax.grad(lambda x: jnp.sum(jnp.square(max_pool_3x3(x))))
    np.testing.assert_allclose(
        jax.jit(jax.vmap(gradient))(x), jnp.stack([jax.jit(gradient)(one) for one in x]), rtol=1e-6
    )


def test_a_damaged_pixel_is_seen_whether_or_not_there_is_a_gradient():
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 1)).at[0, 1, 1].set(jnp.nan)
    pooled = max_pool_3x3(x)
    assert jnp.isnan(pooled[0, 0, 0])
    np.testing.assert_array_equal(jax.vjp(max_pool_3x3, x)[0], pooled)
