"""Gates that are one until training finds a use for them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drifa_jax.errors import UserError
from drifa_jax.models.building import drifa_net
from drifa_jax.models.functional import Functional
from drifa_jax.models.fusions.identity_gates import IdentityGates
from drifa_jax.network_options import NetworkOptions
from drifa_jax.plain_values import from_plain

CHANNELS = {"mri": 6, "ct": 4, "age": 4}


def gates(**options):
    return IdentityGates(
        CHANNELS,
        last=False,
        options=NetworkOptions(gate_rank=3, **options),
        rngs=nnx.Rngs(params=jax.random.key(0)),
    )


def strengthened(module, strength=30.0):
    """Gates that use their whole range."""
    for of_part in (module.within, module.across):
        for gate in of_part.values():
            gate.strength[...] = jnp.full_like(gate.strength[...], strength)
    return module


@nnx.jit
def refine(module, features, present=None):
    return module(features, present).features


def features(dtype=jnp.float32):
    draw = np.random.default_rng(0)
    shapes = {"mri": (2, 5, 4, 6), "ct": (2, 3, 3, 3, 4), "age": (2, 4)}
    return {m: jnp.asarray(draw.normal(size=shape), dtype) for m, shape in shapes.items()}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_they_start_as_the_identity_bit_by_bit(dtype):
    chex.assert_trees_all_equal(refine(gates(), features(dtype)), features(dtype))


def test_a_network_with_them_starts_as_one_without_any_fusion():
    def answers(**options):
        options = NetworkOptions(
            width=2, backbone="resnet10", mfa_parts=(), stage_mfa_parts=(), mifa_parts=(), **options
        )
        network = Functional(
            lambda rngs: drifa_net({"mri": 1, "ct": 3}, {"tumour": 3}, options=options, rngs=rngs)
        )
        return network, network.init(jax.random.key(0))

    plain, (params, statistics) = answers()
    gated, (with_gates, _) = answers(fusion="identity_gates")
    # The same branches and heads; only the gates are new.
    params = with_gates | {name: params[name] for name in ("branches", "heads")}
    images = {"mri": jnp.ones([2, 16, 16, 1]), "ct": jnp.full([2, 16, 16, 3], 0.3)}

    @jax.jit
    def both(params, statistics, images):
        expected, _ = plain.apply(params | {"fusion": {}}, statistics, images, train=False)
        return gated.apply(params, statistics, images, train=False)[0], expected

    found, expected = both(params, statistics, images)
    np.testing.assert_array_equal(found[0]["tumour"], expected[0]["tumour"])


def test_they_can_shut_a_channel_off_and_double_it():
    found = np.concatenate(
        [np.ravel(gate.values) for gate in strengthened(gates())(features(), None).gates]
    )
    assert (found > 0).all() and (found < 2).all()
    assert found.min() < 0.6 and found.max() > 1.4


def test_the_strength_learns_from_the_first_step_on():
    module = gates()
    graph, params = nnx.split(module, nnx.Param)

    def squares(params):
        refined = nnx.merge(graph, params)(features(), None).features
        return sum(jnp.sum(x * x) for x in refined.values())

    gradient = nnx.to_pure_dict(jax.jit(jax.grad(squares))(params))
    for part in ("within", "across"):
        for m in CHANNELS:
            assert np.any(gradient[part][m]["strength"])


def test_modalities_meet_across_and_only_there():
    changed = features() | {"ct": 2 - features()["ct"]}
    apart = strengthened(gates(gate_parts=("within",)))
    chex.assert_trees_all_equal(refine(apart, features())["mri"], refine(apart, changed)["mri"])
    together = strengthened(gates(gate_parts=("across",)))
    assert np.any(refine(together, features())["mri"] != refine(together, changed)["mri"])


def test_an_absent_modality_adds_nothing_whatever_fills_its_place():
    module = strengthened(gates())
    present = {m: jnp.array([True, m != "ct"]) for m in CHANNELS}

    # Equal bit by bit where each operation is compiled alone.
    def refined(fill):
        filled = features() | {"ct": features()["ct"].at[1].set(fill)}
        return module(filled, present).features

    chex.assert_trees_all_equal(refined(jnp.nan), refined(7.0))
    assert not np.any(refined(jnp.nan)["ct"][1])
    # As if the modality were no part of the network.
    alone = strengthened(gates())
    for part in (alone.within, alone.across):
        del part["ct"]
    expected = alone({m: x for m, x in features().items() if m != "ct"}, None).features
    np.testing.assert_array_equal(refined(7.0)["mri"][1], expected["mri"][1])
    gradient = jax.jit(jax.grad(lambda x: refined(x)["mri"].sum()))(jnp.nan)
    assert gradient == 0


def test_gates_are_placed_where_they_are_shown():
    found = gates()(features(), None).gates
    assert [(g.kind, g.modality, g.part) for g in found][:4] == [
        ("within", "mri", "gate"), ("within", "ct", "gate"), ("within", "age", "gate"),
        ("across", "mri", "gate"),
    ]  # fmt: skip


def test_options_that_it_cannot_have_are_named():
    with pytest.raises(UserError, match="gate_rank is 0; it must be at least 1"):
        from_plain(NetworkOptions, {"gate_rank": 0}, "model")
    with pytest.raises(UserError, match="gate_parts names"):
        from_plain(NetworkOptions, {"gate_parts": ("beyond",)}, "model")
