import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drifa_jax.models import kernels
from drifa_jax.models.functional import Functional
from drifa_jax.models.kernels.attention_pools import attention_pools, clia_pool, hifa_pools
from drifa_jax.models.mfa import MFA

NUM_CHANNELS = 5
# Float32 against float64: a chain of four products of length 5 and as many sigmoids loses a few
# units in the last place (6e-8 each) relative to the largest value.
FLOAT32 = 2e-6


def network(**parts):
    return Functional(lambda rngs: MFA(NUM_CHANNELS, rngs=rngs, **parts))


def features(*space, dtype=np.float32, seed=1):
    return np.random.default_rng(seed).normal(size=(3, *space, NUM_CHANNELS)).astype(dtype)


@pytest.mark.parametrize("space", [(), (7,), (4, 6), (2, 3, 4)], ids=str)
def test_mfa_equals_the_reference_for_any_number_of_spatial_axes(reference, randomised, space):
    params, x = randomised(network().abstract_params), features(*space)
    refined, _ = network().apply(params, {}, x)
    wide = jax.tree.map(np.float64, params)
    expected = reference.mfa(np.float64(x), wide)
    np.testing.assert_allclose(refined, expected, rtol=0, atol=FLOAT32 * np.abs(expected).max())


def test_mfa_in_float64_equals_the_reference_to_float64_rounding(reference, randomised):
    with jax.enable_x64(True):
        double = Functional(lambda rngs: MFA(NUM_CHANNELS, dtype=jnp.float64, rngs=rngs))
        params = randomised(double.abstract_params, dtype=np.float64)
        x = features(4, 6, dtype=np.float64)
        refined, _ = double.apply(params, {}, jnp.asarray(x))
        assert refined.dtype == jnp.float64
        np.testing.assert_allclose(refined, reference.mfa(x, params), rtol=1e-12, atol=1e-13)


def pool_arguments(dtype, constant=False):
    rng = np.random.default_rng(0)
    convs = [
        (rng.normal(size=(NUM_CHANNELS,) * 2), rng.normal(size=NUM_CHANNELS)) for _ in range(4)
    ]
    x = np.ones((2, 3, 4, NUM_CHANNELS)) if constant else rng.normal(size=(2, 3, 4, NUM_CHANNELS))
    cotangents = [rng.normal(size=(2, NUM_CHANNELS)) for _ in range(4)]
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), (tuple(convs), x, tuple(cotangents)))


def value_and_cotangents(pools, convs, x, cotangents):
    values, back = jax.vjp(pools, convs, x)
    return values, back(cotangents)


def side_by_side(convs, x):
    """HIFA's pools, and CLIA's of weights of its own."""
    return attention_pools(convs, jax.tree.map(lambda a: -0.7 * a, convs[2]), x)


def test_an_mfa_for_a_tpu_is_that_of_other_devices(randomised):
    """Both parts of one product, which rounds as two."""
    network = Functional(lambda rngs: MFA(NUM_CHANNELS, rngs=rngs))
    params, x = randomised(network.abstract_params), jnp.asarray(features(4, 6))
    expected, _ = network.apply(params, {}, x, method="attend")
    with kernels.batch_over(1, "tpu"):
        found, _ = network.apply(params, {}, x, method="attend")
    chex.assert_trees_all_close(found, expected, rtol=1e-5)


@pytest.mark.parametrize("constant", [False, True], ids=["random", "every pixel a maximum"])
@pytest.mark.parametrize("pools", [hifa_pools, clia_pool, side_by_side])
def test_pools_have_the_gradient_of_the_plain_formula(pools, constant):
    with jax.enable_x64(True):
        convs, x, cotangents = pool_arguments(jnp.float64, constant)
        if pools is clia_pool:
            convs, cotangents = convs[0], cotangents[0]
        if pools is side_by_side:
            cotangents = cotangents, cotangents[1]
        found = value_and_cotangents(pools, convs, x, cotangents)
        with kernels.plain():
            expected = value_and_cotangents(pools, convs, x, cotangents)
        # float64, and sums over pixels in another order.
        chex.assert_trees_all_close(found, expected, rtol=1e-11, atol=1e-13)


def test_hifa_pools_map_over_an_ensemble_axis():
    convs, x, cotangents = pool_arguments(jnp.float32)
    stacked = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a]), convs)

    def gradient(convs):
        return jax.vjp(hifa_pools, convs, x)[1](cotangents)

    together = jax.vmap(gradient)(stacked)
    for member in range(2):
        alone = gradient(jax.tree.map(lambda a, i=member: a[i], stacked))
        jax.tree.map(
            lambda a, b, i=member: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5),
            together,
            alone,
        )


def test_gates_stay_in_their_ranges(randomised):
    loud = jax.tree.map(lambda p: 4.0 * p, randomised(network().abstract_params))
    gates, _ = network().apply(loud, {}, features(4, 6), method="gates")
    for name, upper in (("hifa", 1.0), ("clia", 2.0), ("gate", 1.0)):
        assert gates[name].shape == (3, NUM_CHANNELS)
        assert 0.0 < gates[name].min() and gates[name].max() < upper


def test_a_fresh_mfa_is_near_a_constant_factor():
    params, _ = network().init(jax.random.key(0))
    gates, _ = network().apply(params, {}, features(4, 6), method="gates")
    # sigmoid(a HIFA + b CLIA) with scales one, HIFA in (0, 1) and CLIA in (0, 2)
    assert 0.5 < gates["gate"].min() and gates["gate"].max() < 1 / (1 + np.exp(-3.0))


@pytest.mark.parametrize("part", ["hifa", "clia"])
def test_an_ablated_part_leaves_the_other_alone(part, randomised):
    whole = randomised(network().abstract_params)
    kept = {"hifa": "clia", "clia": "hifa"}[part]
    ablated = network(**{part: False})
    names = {name for name in whole if part not in name}
    assert set(ablated.abstract_params) == names
    gates, _ = ablated.apply({n: whole[n] for n in names}, {}, features(4, 6), method="gates")
    expected, _ = network().apply(whole, {}, features(4, 6), method="gates")
    assert set(gates) == {kept, "gate"}
    np.testing.assert_array_equal(gates[kept], expected[kept])


def test_mfa_refines_records_independently(randomised):
    params, x = randomised(network().abstract_params), features(4, 6)
    together, _ = network().apply(params, {}, x)
    alone, _ = network().apply(params, {}, x[1:2])
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-5, atol=1e-6)


def test_mfa_is_blind_to_where_pixels_lie(randomised):
    params, x = randomised(network().abstract_params), features(24)
    order = np.random.default_rng(0).permutation(24)
    straight, _ = network().apply(params, {}, x)
    shuffled, _ = network().apply(params, {}, x[:, order])
    np.testing.assert_allclose(straight[:, order], shuffled, rtol=1e-5, atol=1e-6)


def test_bfloat16_maps_keep_parameters_and_gates_in_float32(randomised):
    half = Functional(lambda rngs: MFA(NUM_CHANNELS, dtype=jnp.bfloat16, rngs=rngs))
    params, x = randomised(half.abstract_params), jnp.asarray(features(4, 6), jnp.bfloat16)

    def loss(params):
        refined, gates = half.apply(params, {}, x, method="attend")[0]
        return jnp.sum(refined.astype(jnp.float32)), (refined, gates)

    gradients, (refined, gates) = jax.grad(loss, has_aux=True)(params)
    assert refined.dtype == jnp.bfloat16
    assert {gate.dtype for gate in gates.values()} == {jnp.dtype("float32")}
    assert {g.dtype for g in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}
    exact, _ = network().apply(params, {}, features(4, 6), method="gates")
    # bfloat16 has 8 bits: a relative error of 2^-8 in each of a few steps, before two sigmoids
    np.testing.assert_allclose(gates["gate"], exact["gate"], atol=0.02)


def test_mfa_stands_alone_in_another_flax_network():
    mfa = MFA(16, rngs=nnx.Rngs(params=jax.random.key(0)))
    assert mfa(jnp.ones([2, 8, 8, 16])).shape == (2, 8, 8, 16)


def test_mfa_without_parts_is_refused():
    with pytest.raises(ValueError, match="MFA needs HIFA, CLIA or both"):
        MFA(4, hifa=False, clia=False, rngs=nnx.Rngs(0))


def test_wrong_channels_are_refused():
    mfa = MFA(4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="built for 4 channels but got a map of shape"):
        mfa(jnp.ones([2, 3, 5]))
