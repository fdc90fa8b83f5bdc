import jax
import numpy as np
import pytest

from drifa_jax.models.convolution import Convolution
from drifa_jax.models.functional import Functional
from drifa_jax.network_options import NetworkOptions


@pytest.mark.parametrize("window", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (5, 6)], ids=str)
def test_symmetric_padding_equals_torch(randomised, window, stride, size):
    torch = pytest.importorskip("torch")
    net = Functional(
        lambda rngs: Convolution(
            2, 3, window, stride, options=NetworkOptions(padding="symmetric"), rngs=rngs
        )
    )
    params = randomised(net.abstract_params)
    x = np.random.default_rng(0).normal(size=(2, *size, 2)).astype(np.float32)
    y, _ = net.apply(params, {}, x)
    theirs = torch.nn.functional.conv2d(
        torch.tensor(x.transpose(0, 3, 1, 2)),
        torch.tensor(params["kernel"].transpose(3, 2, 0, 1)),
        torch.tensor(params["bias"]),
        stride,
        window // 2,
    )
    np.testing.assert_allclose(y, theirs.numpy().transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("window", "stride"), [(7, 2), (3, 1), (3, 2), (1, 2)])
def test_same_padding_equals_the_reference(reference, randomised, window, stride):
    net = Functional(
        lambda rngs: Convolution(2, 3, window, stride, options=NetworkOptions(), rngs=rngs)
    )
    params = randomised(net.abstract_params)
    x = np.random.default_rng(0).normal(size=(2, 9, 8, 2)).astype(np.float32)
    y, _ = net.apply(params, {}, x)
    expected = reference.convolution(np.float64(x), jax.tree.map(np.float64, params), stride)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
