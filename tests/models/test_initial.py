import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drifa_jax.models.initial import BLOCK, KeySequence, glorot_uniform, initial_rngs
from drifa_jax.models.mfa import MFA

KEY = jax.random.key(0)


@pytest.mark.parametrize("shape", [(64, 96), (3, 3, 32, 48)], ids=str)
def test_kernels_are_glorot_uniform(shape):
    kernel = np.asarray(glorot_uniform(KEY, shape))
    window = np.prod(shape[:-2])
    limit = np.sqrt(6.0 / (window * (shape[-2] + shape[-1])))
    assert kernel.dtype == np.float32 and np.abs(kernel).max() <= limit
    # Kolmogorov-Smirnov distance from the uniform law; beyond 1.95 / sqrt(n) one time in 1000.
    ordered = (np.sort(kernel.ravel()) / limit + 1) / 2
    distance = np.abs(ordered - np.arange(kernel.size) / kernel.size).max()
    assert distance < 1.95 / np.sqrt(kernel.size)


def test_numbers_are_equal_inside_and_outside_jit_across_blocks():
    shape = (BLOCK // 64 + 1, 70)
    np.testing.assert_array_equal(
        glorot_uniform(KEY, shape), jax.jit(glorot_uniform, static_argnums=1)(KEY, shape)
    )


def test_blocks_of_one_kernel_differ():
    flat = np.asarray(glorot_uniform(KEY, (2, BLOCK))).ravel()
    assert np.mean(flat[:BLOCK] == flat[BLOCK:]) < 0.01


def test_other_keys_give_other_kernels():
    other = glorot_uniform(jax.random.key(1), (4, 4))
    assert np.all(glorot_uniform(KEY, (4, 4)) != other)


def test_the_counted_keys_are_those_of_flax():
    theirs, ours = nnx.Rngs(params=KEY), initial_rngs(KEY)
    assert isinstance(ours.params, KeySequence)
    for _ in range(3):
        np.testing.assert_array_equal(
            jax.random.key_data(theirs.params()), jax.random.key_data(ours.params())
        )


def test_a_module_built_with_flax_rngs_starts_alike():
    theirs = MFA(3, rngs=nnx.Rngs(params=KEY))
    ours = MFA(3, rngs=initial_rngs(KEY))
    jax.tree.map(
        np.testing.assert_array_equal,
        nnx.to_pure_dict(nnx.state(theirs)),
        nnx.to_pure_dict(nnx.state(ours)),
    )


def test_biases_start_at_zero_and_scales_at_one():
    mfa = MFA(3, rngs=initial_rngs(KEY))
    np.testing.assert_array_equal(mfa.hifa.conv1.bias[...], jnp.zeros(3))
    for scale in (mfa.hifa_scale, mfa.clia_scale, mfa.alpha):
        np.testing.assert_array_equal(scale[...], jnp.ones(scale.shape))
