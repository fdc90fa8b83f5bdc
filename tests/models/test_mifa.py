import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drifa_jax.models.functional import Functional
from drifa_jax.models.mifa import MIFA

NUM_CHANNELS = 5
# As in test_mfa.py; MIFA adds six terms of order one before its sigmoid.
FLOAT32 = 2e-6


def network(modalities=("mri", "ct"), **parts):
    return Functional(lambda rngs: MIFA(modalities, NUM_CHANNELS, rngs=rngs, **parts))


def features(seed=1, **spaces):
    rng = np.random.default_rng(seed)
    return {
        m: rng.normal(size=(3, *space, NUM_CHANNELS)).astype(np.float32)
        for m, space in spaces.items()
    }


IMAGE_PAIR = {"mri": (4, 6), "ct": (3, 3)}


@pytest.mark.parametrize(
    "spaces",
    [
        IMAGE_PAIR,
        {"mri": (4, 6), "ct": (2, 3, 2), "age": ()},
        {"mri": (5,)},
    ],
    ids=["two images", "image, volume and table", "alone"],
)
def test_mifa_equals_the_reference_whatever_the_sizes_and_ranks(reference, randomised, spaces):
    net, maps = network(tuple(spaces)), features(**spaces)
    params = randomised(net.abstract_params)
    refined, _ = net.apply(params, {}, maps)
    expected = reference.mifa(
        {m: np.float64(x) for m, x in maps.items()}, jax.tree.map(np.float64, params)
    )
    for m, x in refined.items():
        scale = np.abs(expected[m]).max()
        np.testing.assert_allclose(x, expected[m], rtol=0, atol=FLOAT32 * scale)


def test_gates_stay_in_their_ranges(randomised):
    params = jax.tree.map(lambda p: 2.0 * p, randomised(network().abstract_params))
    gates, _ = network().apply(params, {}, features(**IMAGE_PAIR), method="gates")
    for name, upper in (("mgifa", 3.0), ("mlifa", 6.0), ("gate", 1.0)):
        assert gates[name].shape == (3, NUM_CHANNELS)
        assert 0.0 < gates[name].min() and gates[name].max() < upper


def test_mifa_swaps_outputs_when_modalities_swap(randomised):
    """Swapping maps together with the weights of their modality changes only the names."""
    params = randomised(network().abstract_params)
    convs, alpha = params["mlifa"]["convs"], params["alpha"]
    swapped = params | {
        "mlifa": {"convs": {"mri": convs["ct"], "ct": convs["mri"]}},
        "alpha": {"mri": alpha["ct"], "ct": alpha["mri"]},
    }
    maps = features(**IMAGE_PAIR)
    straight, _ = network().apply(params, {}, maps)
    crossed, _ = network().apply(swapped, {}, {"mri": maps["ct"], "ct": maps["mri"]})
    np.testing.assert_allclose(straight["mri"], crossed["ct"], rtol=1e-6)
    np.testing.assert_allclose(straight["ct"], crossed["mri"], rtol=1e-6)


def test_every_modality_moves_the_others(randomised):
    params, maps = randomised(network().abstract_params), features(**IMAGE_PAIR)
    sensitivity = jax.grad(
        lambda ct: jnp.sum(network().apply(params, {}, maps | {"ct": ct})[0]["mri"])
    )(maps["ct"])
    assert np.abs(sensitivity).max() > 1e-4


def present(**records):
    return {m: jnp.asarray(held) for m, held in records.items()}


HELD = {"mri": [True, True, False], "ct": [True, False, True]}


def masked_loss(params, maps):
    refined, _ = network().apply(params, {}, maps, present(**HELD))
    return sum(jnp.sum(jnp.square(x)) for x in refined.values()), refined


@pytest.mark.parametrize("filler", [np.nan, np.inf, 7.0])
def test_fillers_of_absent_modalities_change_neither_outputs_nor_gradients(randomised, filler):
    params, maps = randomised(network().abstract_params), features(**IMAGE_PAIR)

    def with_filler(value):
        filled = {m: x.copy() for m, x in maps.items()}
        for m, x in filled.items():
            x[~np.asarray(HELD[m])] = value
        return jax.grad(masked_loss, (0, 1), has_aux=True)(params, filled)

    jax.tree.map(np.testing.assert_array_equal, with_filler(filler), with_filler(0.0))
    gradients, refined = with_filler(filler)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradients, refined)))
    assert np.all(refined["mri"][2] == 0.0) and np.all(refined["ct"][1] == 0.0)


def test_a_record_without_a_modality_equals_mifa_over_the_others(reference, randomised):
    params, maps = randomised(network().abstract_params), features(**IMAGE_PAIR)
    _, refined = masked_loss(params, maps)
    alone = reference.mifa({"mri": np.float64(maps["mri"])}, jax.tree.map(np.float64, params))
    np.testing.assert_allclose(refined["mri"][1], alone["mri"][1], rtol=1e-5, atol=1e-6)


def test_all_present_equals_no_mask(randomised):
    params, maps = randomised(network().abstract_params), features(**IMAGE_PAIR)
    everything = present(mri=[True] * 3, ct=[True] * 3)
    masked, _ = network().apply(params, {}, maps, everything)
    jax.tree.map(np.testing.assert_array_equal, masked, network().apply(params, {}, maps)[0])


@pytest.mark.parametrize("part", ["mgifa", "mlifa"])
def test_an_ablated_part_takes_its_parameters_along(part):
    assert not any(part in name for name in network(**{part: False}).abstract_params)


def test_mifa_without_parts_or_modalities_is_refused():
    with pytest.raises(ValueError, match="MIFA needs MGIFA, MLIFA or both"):
        MIFA(["mri"], 4, mgifa=False, mlifa=False, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="at least one modality"):
        MIFA([], 4, rngs=nnx.Rngs(0))


def test_wrong_modalities_and_channels_are_refused():
    mifa = MIFA(["mri", "ct"], NUM_CHANNELS, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"modalities \['ct', 'mri'\] but got \['mri'\]"):
        mifa(features(mri=(2, 2)))
    maps = features(mri=(2, 2), ct=(2, 2))
    with pytest.raises(ValueError, match=r"built for 5 channels but 'ct' has shape \(3, 2, 2, 4\)"):
        mifa(maps | {"ct": maps["ct"][..., :4]})


WIDTHS = {"mri": 3, "ct": 5, "age": 4}


def unequal(seed=1):
    rng = np.random.default_rng(seed)
    spaces = {"mri": (4, 6), "ct": (2, 3, 2), "age": ()}
    return {m: rng.normal(size=(3, *spaces[m], c)).astype(np.float32) for m, c in WIDTHS.items()}


@pytest.fixture(scope="module")
def unequal_network():
    return Functional(lambda rngs: MIFA(tuple(WIDTHS), WIDTHS, rngs=rngs))


def test_modalities_of_unequal_channels_equal_the_reference(unequal_network, reference, randomised):
    params = randomised(unequal_network.abstract_params)
    maps = unequal()
    refined, _ = unequal_network.apply(params, {}, maps)
    expected = reference.mifa(
        {m: np.float64(x) for m, x in maps.items()}, jax.tree.map(np.float64, params)
    )
    for m, x in refined.items():
        assert x.shape == maps[m].shape
        scale = np.abs(expected[m]).max()
        np.testing.assert_allclose(x, expected[m], rtol=0, atol=FLOAT32 * scale)


def test_gates_of_unequal_channels_begin_as_one_gate_stretched(unequal_network):
    """So that an untrained network lets everything through, as the paper's does."""
    params, _ = unequal_network.init(jax.random.key(0))
    gates, _ = unequal_network.apply(params, {}, unequal(), method="gates")
    widest = gates["gate/ct"]
    np.testing.assert_allclose(gates["gate/mri"], widest[:, [0, 1, 3]], rtol=1e-6)
    np.testing.assert_allclose(gates["gate/age"], widest[:, [0, 1, 2, 3]], rtol=1e-6)
    assert widest.min() > 0.9


def test_absent_modalities_of_unequal_channels_change_nothing(unequal_network, randomised):
    """Neither what fills their place nor the bias of their projections."""
    params, maps = randomised(unequal_network.abstract_params), unequal()
    held = present(mri=[True, True, True], ct=[True, False, True], age=[False, False, False])

    def of(params, maps):
        def loss(params):
            refined, _ = unequal_network.apply(params, {}, maps, held)
            return sum(jnp.sum(jnp.square(x)) for x in refined.values()), refined

        return jax.grad(loss, has_aux=True)(params)

    def filled(value):
        return {
            m: np.where(np.asarray(held[m]).reshape(-1, *(1,) * (x.ndim - 1)), x, np.float32(value))
            for m, x in maps.items()
        }

    expected = of(params, filled(0.0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
    jax.tree.map(np.testing.assert_array_equal, of(params, filled(np.nan)), expected)
    params["mgifa"]["projections"]["age"]["bias"] += 1.0
    params["mlifa"]["projections"]["age"]["bias"] += 1.0
    jax.tree.map(np.testing.assert_array_equal, of(params, filled(0.0))[1], expected[1])
