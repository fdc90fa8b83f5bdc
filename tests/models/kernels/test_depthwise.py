import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax.models.kernels.depthwise import depthwise, plain_depthwise

CASES = {
    "window 7": ((2, 9, 8, 3), (7, 7), 1, "SAME"),
    "stride 2, even": ((2, 8, 10, 3), (3, 3), 2, "SAME"),
    "stride 2, odd, window 5": ((2, 9, 7, 3), (5, 5), 2, "SAME"),
    "stride 2, PyTorch's padding": ((1, 8, 7, 2), (5, 5), 2, ((2, 2), (2, 2))),
    "unread end": ((1, 9, 8, 2), (2, 2), 2, ((0, 0), (0, 0))),
    "volume": ((1, 4, 5, 6, 2), (3, 3, 3), 2, "SAME"),
    "line": ((2, 9, 2), (3,), 1, "SAME"),
}


@pytest.mark.parametrize(("shape", "window", "stride", "padding"), CASES.values(), ids=CASES)
def test_value_and_gradients_equal_those_of_xla(shape, window, stride, padding):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    kernel = rng.normal(size=(*window, 1, shape[-1])).astype(np.float32)
    pads = padding
    if padding == "SAME":
        pads = jax.lax.padtype_to_pads(shape[1:-1], window, (stride,) * len(window), "SAME")

    @jax.jit
    def both(x, kernel):
        found = []
        for function, edges in ((depthwise, padding), (plain_depthwise, pads)):
            y, pull = jax.vjp(lambda x, k, f=function, e=edges: f(x, k, stride, e), x, kernel)
            cotangent = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
            found.append((y, *pull(cotangent)))
        return found

    for ours, theirs in zip(*both(x, kernel), strict=True):
        # At most 144 products of normal numbers, added in another order.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_windows_of_many_positions_are_left_to_xla():
    x, kernel = jnp.ones((1, 7, 7, 7, 2)), jnp.ones((5, 5, 5, 1, 2))
    jaxpr = jax.make_jaxpr(lambda x, kernel: depthwise(x, kernel, 1, "SAME"))(x, kernel)
    assert "conv_general_dilated" in str(jaxpr)
    assert "custom_vjp" not in str(jaxpr)
