"""MFA and batch norm in one go, as TPUs take them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drifa_jax.models import kernels
from drifa_jax.models.batch_norm import BatchNorm
from drifa_jax.models.functional import Functional
from drifa_jax.models.mfa import MFA

NUM_CHANNELS = 5
MODULE = "drifa_jax.models.kernels.record_by_record"


class Refined(nnx.Module):
    def __init__(self, rectified, *, rngs):
        self.mfa = MFA(NUM_CHANNELS, dtype=jnp.float64, rngs=rngs)
        self.norm = BatchNorm(NUM_CHANNELS, unbiased=True)
        self.rectified = rectified

    def __call__(self, x, present):
        return self.mfa.attend_and_normalise(
            self.norm, x, train=True, present=present, rectified=self.rectified
        )


def outputs_and_gradients(network, params, statistics, x, present):
    """Of the map, gates and moving averages, each with weights that differ between elements."""

    def weighted(params, x):
        outputs = network.apply(params, statistics, x, present)
        leaves = jax.tree.leaves(outputs)
        sums = [jnp.sum(o * jnp.cos(jnp.arange(o.size).reshape(o.shape))) for o in leaves]
        return sum(sums), outputs

    return jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True)(params, x)


@pytest.mark.parametrize("rectified", [True, False])
@pytest.mark.parametrize("some_absent", [True, False])
@pytest.mark.parametrize("way", ["kept", "recomputed", "in turns"])
def test_one_go_is_attention_and_batch_norm(randomised, monkeypatch, rectified, some_absent, way):
    """In values, moving averages and gradients, all of them; a mean far from zero included."""
    if way != "kept":
        monkeypatch.setattr(f"{MODULE}.RECOMPUTED_BATCH", 0)
    if way == "in turns":
        monkeypatch.setattr(f"{MODULE}.LARGE_BATCH", 0)
        monkeypatch.setattr(f"{MODULE}.TPU_BLOCK", 2 * 3 * 8 * 128 * 8 + 1)
    with jax.enable_x64(True):
        network = Functional(lambda rngs: Refined(rectified, rngs=rngs))
        params = randomised(network.abstract_params, dtype=np.float64)
        statistics = randomised(network.abstract_statistics, seed=1, dtype=np.float64)
        # Widths differ, since `jit` remembers by shape how a part was traced.
        shape = 4, 3, {"kept": 5, "recomputed": 6, "in turns": 7}[way], NUM_CHANNELS
        x = jnp.asarray(3.0 + np.random.default_rng(0).normal(size=shape))
        present = jnp.asarray([True, False, True, True]) if some_absent else None
        arguments = network, params, statistics, x, present
        expected = outputs_and_gradients(*arguments)
        with kernels.batch_over(1, "tpu"):
            traced = str(jax.make_jaxpr(outputs_and_gradients, static_argnums=0)(*arguments))
            found = outputs_and_gradients(*arguments)
        assert ("scan" in traced) == (way == "in turns")
        # float64, and sums in another order.
        chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-11)
