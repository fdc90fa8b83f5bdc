import jax
import numpy as np
import pytest

from drifa_jax.models.bottleneck import BottleneckRRABlock
from drifa_jax.models.building import drifa_net
from drifa_jax.models.functional import Functional
from drifa_jax.network_options import NetworkOptions


def block(num_in, num_inside, stride, **more):
    return Functional(
        lambda rngs: BottleneckRRABlock(
            num_in, num_inside, stride, options=NetworkOptions(), rngs=rngs, **more
        )
    )


@pytest.mark.parametrize(
    ("num_in", "stride", "size"),
    [(8, 1, (5, 6)), (3, 2, (5, 6)), (3, 1, (4, 4))],
    ids=["identity shortcut", "stride 2", "projection without stride"],
)
@pytest.mark.parametrize("train", [False, True], ids=["moving", "batch"])
def test_the_bottleneck_equals_the_reference(reference, randomised, num_in, stride, size, train):
    functional = block(num_in, 2, stride)
    params = randomised(functional.abstract_params)
    statistics = randomised(functional.abstract_statistics, seed=1)
    x = np.random.default_rng(2).normal(size=(3, *size, num_in)).astype(np.float32)
    y, _ = functional.apply(params, statistics, x, train=train)
    wide = jax.tree.map(np.float64, (params, statistics))
    expected = reference.bottleneck(np.float64(x), wide[0], None if train else wide[1], stride)
    assert y.shape[-1] == 8
    # As for the block of two convolutions: rounding of 6e-8, grown by batch norm.
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_attention_stands_where_the_block_is_narrow():
    shapes = jax.tree.map(lambda x: x.shape, block(8, 2, 1).abstract_params)
    assert set(shapes) == {"conv1", "mfa1", "norm1", "conv2", "mfa2", "norm2", "conv3", "norm3"}
    assert shapes["mfa1"]["alpha"] == shapes["mfa2"]["alpha"] == (2,)
    plain = block(8, 2, 1, mfa_parts=()).abstract_params
    assert set(plain) == {"conv1", "norm1", "conv2", "norm2", "conv3", "norm3"}


def test_resnet50_has_the_blocks_and_widths_of_its_plan():
    options = NetworkOptions(width=2, backbone="resnet50")
    network = Functional(lambda rngs: drifa_net({"ct": 1}, {"a": 2}, options=options, rngs=rngs))
    params = network.abstract_params
    stages = params["branches"]["ct"]["stages"]
    widths = [stages[f"stage_{k}"]["norm3"]["scale"].shape[0] for k in range(16)]
    assert len(stages) == 16 and widths == [8] * 3 + [16] * 4 + [32] * 6 + [64] * 3
    projects = [k for k in range(16) if "projection" in stages[f"stage_{k}"]]
    assert projects == [0, 3, 7, 13]
    assert params["heads"]["a"]["linear"]["kernel"].shape == (64, 2)
