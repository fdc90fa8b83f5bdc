import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from drifa_jax.models.building import drifa_net
from drifa_jax.models.functional import Functional
from drifa_jax.models.readouts.average import AveragedHeads
from drifa_jax.network_options import NetworkOptions


def heads():
    return AveragedHeads({"mri": 3, "ct": 3}, 4, rngs=nnx.Rngs(params=jax.random.key(0)))


def features():
    draw = np.random.default_rng(0)
    return {m: jnp.asarray(draw.normal(size=(2, 3)), jnp.float32) for m in ("mri", "ct")}


def test_probabilities_are_the_mean_of_the_modalities_own():
    head, pooled = heads(), features()
    own = [jax.nn.softmax(head.linear[m](pooled[m])) for m in ("mri", "ct")]
    np.testing.assert_allclose(jax.nn.softmax(head(pooled)), (own[0] + own[1]) / 2, rtol=1e-5)


def test_an_absent_modality_has_no_opinion_and_no_gradient():
    head, pooled = heads(), features()
    present = {"mri": jnp.array([True, True]), "ct": jnp.array([False, True])}
    answer = head(pooled, present)
    np.testing.assert_allclose(
        answer[0], jax.nn.log_softmax(head.linear["mri"](pooled["mri"]))[0], rtol=1e-5
    )
    gradient = jax.grad(lambda x: head(pooled | {"ct": x}, present)[:, 0].sum())(pooled["ct"])
    assert np.all(gradient[0] == 0) and np.any(gradient[1] != 0)


def test_a_network_without_fusion_reads_each_modality_for_itself():
    options = NetworkOptions(
        width=2, backbone="resnet10", mfa_parts=(), stage_mfa_parts=(), mifa_parts=(),
        readout="average",
    )  # fmt: skip
    network = Functional(
        lambda rngs: drifa_net({"mri": 1}, {"tumour": 3}, options=options, tables={"age": 2},
                               rngs=rngs)
    )  # fmt: skip
    params, _ = network.init(jax.random.key(0))
    assert set(params["heads"]["tumour"]["linear"]) == {"mri", "age"}
    assert params["heads"]["tumour"]["linear"]["mri"]["kernel"].shape == (16, 3)


def test_a_network_of_tables_alone_has_the_widths_of_the_plan():
    network = Functional(
        lambda rngs: drifa_net({}, {"tumour": 3}, options=NetworkOptions(width=2),
                               tables={"blood": 5}, rngs=rngs)
    )  # fmt: skip
    assert network.abstract_params["heads"]["tumour"]["linear"]["kernel"].shape == (16, 3)
