import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax.models import kernels
from drifa_jax.models.kernels.few_pixels import convolve

CASES = [
    # side of the map, of the window, stride, padding
    (2, 3, 1, "SAME"),
    (4, 3, 2, "SAME"),
    # All but the middle of the window sees padding alone.
    (1, 3, 1, "SAME"),
    (2, 5, 1, "SAME"),
    (5, 7, 2, ((3, 3), (3, 3))),
    (2, 3, 1, ((0, 1), (1, 0))),
]


def arrays(side, window):
    kernel_key, map_key, way_key = jax.random.split(jax.random.key(side + 10 * window), 3)
    kernel = jax.random.normal(kernel_key, (window, window, 4, 5))
    return jax.random.normal(map_key, (3, side, side, 4)), kernel, way_key


def value_and_gradients(x, kernel, stride, padding, way_key):
    def value(x, kernel):
        y = convolve(x, kernel, stride, padding)
        return jnp.sum(y * jax.random.normal(way_key, y.shape)), y

    (_, y), gradients = jax.value_and_grad(value, (0, 1), has_aux=True)(x, kernel)
    return y, gradients


@pytest.mark.parametrize(("side", "window", "stride", "padding"), CASES)
def test_values_and_gradients_are_those_of_the_convolution(side, window, stride, padding):
    x, kernel, way_key = arrays(side, window)
    ours = value_and_gradients(x, kernel, stride, padding, way_key)
    with kernels.plain():
        plain = value_and_gradients(x, kernel, stride, padding, way_key)
    # Sums of at most 196 products in another order.
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def lowered(side, window, stride, **traced):
    x, kernel, _ = arrays(side, window)
    with kernels.batch_over(1, **traced):
        return jax.jit(lambda x, kernel: convolve(x, kernel, stride, "SAME")).lower(x, kernel)


@pytest.mark.parametrize(("side", "window", "stride"), [(2, 3, 1), (4, 3, 2)])
def test_a_map_of_fewer_pixels_than_the_window_is_no_convolution(side, window, stride):
    assert "stablehlo.convolution" not in lowered(side, window, stride).as_text()


@pytest.mark.parametrize(("side", "stride"), [(3, 1), (6, 2), (16, 1)])
def test_a_larger_one_stays_a_convolution(side, stride):
    assert "stablehlo.convolution" in lowered(side, 3, stride).as_text()


def test_on_a_tpu_every_map_stays_a_convolution():
    assert "stablehlo.convolution" in lowered(2, 3, 1, platform="tpu").as_text()


def test_a_volume_is_one_product_as_well():
    x, kernel = jnp.ones((2, 2, 2, 2, 4)), jnp.ones((3, 3, 3, 4, 5))
    y = convolve(x, kernel, 1, "SAME")
    np.testing.assert_array_equal(y, jnp.full((2, 2, 2, 2, 5), 32.0))
