import jax
import numpy as np
import pytest

from drifa_jax.models.functional import Functional
from drifa_jax.models.rra import RRABlock
from drifa_jax.network_options import NetworkOptions


@pytest.mark.parametrize(
    ("num_in", "num_out", "stride", "size"),
    [(4, 4, 1, (5, 6)), (3, 4, 2, (5, 6)), (3, 4, 1, (4, 4))],
    ids=["identity shortcut", "stride 2", "projection without stride"],
)
@pytest.mark.parametrize("train", [False, True], ids=["moving", "batch"])
def test_rra_equals_the_reference(reference, randomised, num_in, num_out, stride, size, train):
    block = Functional(
        lambda rngs: RRABlock(num_in, num_out, stride, options=NetworkOptions(), rngs=rngs)
    )
    params = randomised(block.abstract_params)
    statistics = randomised(block.abstract_statistics, seed=1)
    x = np.random.default_rng(2).normal(size=(3, *size, num_in)).astype(np.float32)
    y, _ = jax.jit(block.apply, static_argnames="train")(params, statistics, x, train=train)
    wide = jax.tree.map(np.float64, (params, statistics))
    expected = reference.rra(np.float64(x), wide[0], None if train else wide[1], stride)
    # Products of length up to 36, then a division by a batch deviation that may be a tenth of
    # the map: float32 rounding of 6e-8 grows to a few 1e-6 of the largest value.
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_projection_appears_only_where_the_shape_changes():
    def names(num_in, num_out, stride):
        build = lambda rngs: RRABlock(num_in, num_out, stride, options=NetworkOptions(), rngs=rngs)  # noqa: E731
        return set(Functional(build).abstract_params)

    assert "projection" not in names(4, 4, 1)
    assert {"projection", "projection_norm"} <= names(4, 4, 2) & names(4, 8, 1)


def test_without_mfa_parts_a_plain_residual_block_remains():
    block = Functional(
        lambda rngs: RRABlock(2, 2, 1, mfa_parts=(), options=NetworkOptions(), rngs=rngs)
    )
    assert set(block.abstract_params) == {"conv1", "norm1", "conv2", "norm2"}


def test_unknown_padding_is_refused():
    with pytest.raises(ValueError, match="padding is 'valid'; choose one of"):
        NetworkOptions(padding="valid")
