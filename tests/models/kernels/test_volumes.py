import jax
import numpy as np
import pytest

from drifa_jax.models import kernels
from drifa_jax.models.kernels.volumes import convolve_volumes


@pytest.mark.parametrize(
    ("window", "stride", "padding"),
    [(3, 1, "SAME"), (3, 2, "SAME"), (5, 2, ((2, 2),) * 3), (1, 2, "SAME")],
)
def test_value_and_gradients_are_those_of_the_plain_convolution(window, stride, padding):
    draw = np.random.default_rng(0)
    # Unlike sides, so that no axis can stand for another.
    x = draw.normal(size=(2, 5, 6, 7, 3)).astype(np.float32)
    kernel = draw.normal(size=(window, window, window, 3, 4)).astype(np.float32)

    def values(x, kernel):
        return convolve_volumes(x, kernel, stride, padding)

    def answer():
        y, back = jax.vjp(jax.jit(values), x, kernel)
        cotangent = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
        return (y, *back(cotangent))

    ours = answer()
    with kernels.plain():
        plain = answer()
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
