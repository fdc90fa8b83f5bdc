"""A product of experts: Bayes' rule for independent witnesses, with whoever is there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.nn import log_softmax

from drifa_jax.errors import UserError
from drifa_jax.models.building import build_network, drifa_net
from drifa_jax.models.description import NetworkDescription
from drifa_jax.models.functional import Functional
from drifa_jax.models.readouts.experts import FUSED, ExpertHeads
from drifa_jax.network_options import NetworkOptions

WIDTHS = {"mri": 3, "ct": 5}
PRIOR = np.array([0.6, 0.3, 0.1], np.float32)
# A few additions and exponentials in float32.
TOLERANCE = 2e-5


def heads(**temperatures):
    """Heads that know a prior; every temperature is 1 unless named."""
    head = ExpertHeads(WIDTHS, 3, rngs=nnx.Rngs(params=jax.random.key(0)))
    head.log_prior[...] = jnp.log(PRIOR)
    return taught(head, **temperatures)


def taught(head, **temperatures):
    """Heads that say something; every temperature is 1 unless named."""
    for number, layer in enumerate(head.linear.values()):
        layer.kernel[...] = jax.random.normal(jax.random.key(number), layer.kernel[...].shape)
    for e in head.log_temperatures:
        head.log_temperatures[e][...] = jnp.log(jnp.float32(temperatures.get(e, 1.0)))
    return head


def features():
    draw = np.random.default_rng(0)
    return {m: jnp.asarray(draw.normal(size=(4, w)), jnp.float32) for m, w in WIDTHS.items()}


def log_probabilities(head, pooled):
    """Of each expert alone."""
    prior = head.log_prior[...][None]
    read = pooled | {FUSED: jnp.concatenate(list(pooled.values()), -1)}
    return {e: np.asarray(log_softmax(prior + head.linear[e](x))) for e, x in read.items()}


def test_the_answer_is_the_product_of_the_experts_over_the_prior():
    head, pooled = heads(), features()
    own = log_probabilities(head, pooled)
    expected = sum(own.values()) - (len(own) - 1) * np.log(PRIOR)
    np.testing.assert_allclose(log_softmax(head(pooled)), log_softmax(expected), atol=TOLERANCE)


def test_a_temperature_weakens_what_an_expert_adds_to_the_prior():
    head, pooled = heads(mri=3.0, fused=1e9), features()
    own = log_probabilities(head, pooled)
    log_prior = np.log(PRIOR)
    expected = log_prior + (own["mri"] - log_prior) / 3 + (own["ct"] - log_prior)
    np.testing.assert_allclose(log_softmax(head(pooled)), log_softmax(expected), atol=TOLERANCE)


def test_before_training_every_expert_and_the_answer_are_the_prior():
    head = ExpertHeads(WIDTHS, 3, rngs=nnx.Rngs(params=jax.random.key(0)))
    head.log_prior[...] = jnp.log(PRIOR)
    for e in head.log_temperatures:
        np.testing.assert_allclose(jnp.exp(head.log_temperatures[e][...]), 2.0, rtol=1e-6)
    said = head.opinions(features())
    for logits in (said.logits, *said.experts.values()):
        np.testing.assert_array_equal(logits, jnp.tile(jnp.log(PRIOR), (4, 1)))


def test_at_a_temperature_of_2_it_is_the_geometric_mean_of_product_and_fused_expert():
    head, pooled = ExpertHeads(WIDTHS, 3, rngs=nnx.Rngs(params=jax.random.key(0))), features()
    taught(head, mri=2.0, ct=2.0, fused=2.0)
    own = log_probabilities(head, pooled)
    product = own["mri"] + own["ct"]  # over a uniform prior
    expected = (log_softmax(product) + own[FUSED]) / 2
    np.testing.assert_allclose(log_softmax(head(pooled)), log_softmax(expected), atol=TOLERANCE)


def test_an_absent_modality_is_an_absent_factor():
    head, pooled = heads(), features()
    present = {"mri": jnp.array([True, True, False, True]), "ct": jnp.array([True, False] * 2)}
    answer = head(pooled, present)
    evidence = head.opinions(pooled).evidence
    log_prior = head.log_prior[...]
    # The very same additions with a zero for the factor: equal bit by bit.
    np.testing.assert_array_equal(
        answer[1], log_prior + (evidence["mri"] + 0.0 + evidence[FUSED])[1]
    )
    np.testing.assert_array_equal(
        answer[2], log_prior + (0.0 + evidence["ct"] + evidence[FUSED])[2]
    )
    np.testing.assert_array_equal(answer[0], head(pooled)[0])


def test_what_fills_the_place_of_an_absent_modality_gets_no_gradient():
    head, pooled = heads(fused=np.inf), features()
    present = {"mri": jnp.ones(4, bool), "ct": jnp.array([False, True, True, True])}
    gradient = jax.grad(lambda x: head(pooled | {"ct": x}, present)[:, 0].sum())(pooled["ct"])
    assert not np.any(gradient[0]) and np.any(gradient[1])


def test_the_tempered_answer_teaches_the_temperatures_alone():
    head, pooled = heads(), features()
    graph, params, statistics = nnx.split(head, nnx.Param, nnx.BatchStat)

    def confidence(params):
        return nnx.merge(graph, params, statistics).opinions(pooled).tempered[:, 0].sum()

    np.testing.assert_array_equal(head.opinions(pooled).tempered, head(pooled))
    gradient = nnx.to_pure_dict(jax.grad(confidence)(params))
    assert all(np.any(g) for g in gradient["log_temperatures"].values())
    assert not any(np.any(g) for g in jax.tree.leaves(gradient["linear"]))


def test_the_network_shows_what_each_expert_says():
    options = NetworkOptions(
        width=2, backbone="resnet10", mfa_parts=(), stage_mfa_parts=(), mifa_parts=(),
        readout="experts",
    )  # fmt: skip
    network = Functional(
        lambda rngs: drifa_net({"mri": 1}, {"tumour": 3}, options=options, tables={"age": 2},
                               rngs=rngs)
    )  # fmt: skip
    params, statistics = network.init(jax.random.key(0))
    inputs = {"mri": jnp.ones([2, 16, 16, 1]), "age": jnp.ones([2, 2])}
    apply = jax.jit(network.apply, static_argnames="train")
    (logits, seen), _ = apply(params, statistics, inputs, train=False)
    evidence = [seen[f"evidence/tumour/{e}"] for e in ("mri", "age", FUSED)]
    np.testing.assert_allclose(
        logits["tumour"],
        statistics["heads"]["tumour"]["log_prior"][None] + sum(evidence),
        rtol=1e-5,
    )
    assert seen["experts/tumour/age"].shape == (2, 3)


@pytest.mark.parametrize(
    ("modalities", "tasks", "message"),
    [({"mri": 1}, {"age": 1}, "two classes or more"), ({FUSED: 1}, {"tumour": 3}, "rename")],
)
def test_what_cannot_be_a_product_is_refused(modalities, tasks, message):
    options = NetworkOptions(width=2, backbone="resnet10", readout="experts")
    with pytest.raises(UserError, match=message):
        build_network(NetworkDescription(modalities, tasks, options))
