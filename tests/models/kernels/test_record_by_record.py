"""Attention over large maps, one record after another."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from drifa_jax.models import kernels
from drifa_jax.models.kernels.attention_pools import clia_pool, hifa_pools
from drifa_jax.models.kernels.record_by_record import pooled_by_record, refined_by_record
from drifa_jax.models.mifa import mlifa_pools
from drifa_jax.models.pooling import over_space

pytestmark = pytest.mark.usefixtures("every_device")

NUM_RECORDS, NUM_CHANNELS = 4, 3
POOLS = {
    "hifa": (hifa_pools, lambda convs: convs),
    "clia": (clia_pool, lambda convs: convs[0]),
    "mlifa": (mlifa_pools, lambda convs: convs[0]),
}


def gates(convs, x):
    return {"clia": jax.nn.sigmoid(clia_pool(convs[0], x))}


def refine(convs, gates, x):
    return x * over_space(gates["clia"] * convs[1][1][None], x)


def refined_at_once(convs, x):
    of = gates(convs, x)
    return refine(convs, of, x), of


refined = functools.partial(refined_by_record, gates, refine)


@pytest.fixture
def every_map_is_large(monkeypatch):
    monkeypatch.setattr("drifa_jax.models.kernels.record_by_record.LARGE_MAP", 0)


def arguments(dtype=jnp.float64):
    draw = np.random.default_rng(0)
    convs = tuple(
        (draw.normal(size=(NUM_CHANNELS,) * 2), draw.normal(size=NUM_CHANNELS)) for _ in range(4)
    )
    x = draw.normal(size=(NUM_RECORDS, 3, 5, NUM_CHANNELS))
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), (convs, x))


def value_and_gradient(function, weights, x):
    """Of a sum of all outputs with weights that differ between records, pixels and channels."""

    def weighted(weights, x):
        outputs = jax.tree.leaves(function(weights, x))
        return sum(jnp.sum(o * jnp.arange(o.size, dtype=o.dtype).reshape(o.shape)) for o in outputs)

    return jax.jit(jax.value_and_grad(weighted, argnums=(0, 1)))(weights, x)


@pytest.mark.parametrize("name", POOLS)
def test_a_loop_gives_the_values_and_gradients_of_the_whole_batch(name, every_map_is_large):
    pools, choose = POOLS[name]
    with jax.enable_x64(True):
        convs, x = arguments()
        looped = value_and_gradient(functools.partial(pooled_by_record, pools), choose(convs), x)
        whole = value_and_gradient(pools, choose(convs), x)
        # float64, and sums over records in another order.
        chex.assert_trees_all_close(looped, whole, rtol=1e-12)


def test_a_loop_refines_as_the_whole_batch_does(every_map_is_large):
    with jax.enable_x64(True):
        convs, x = arguments()
        looped = value_and_gradient(refined, convs, x)
        whole = value_and_gradient(refined_at_once, convs, x)
        # float64, and sums over records in another order.
        chex.assert_trees_all_close(looped, whole, rtol=1e-12)


@pytest.mark.parametrize("function", [functools.partial(pooled_by_record, hifa_pools), refined])
def test_no_map_but_the_input_is_kept_for_the_backward_pass(function, every_map_is_large):
    convs, x = arguments(jnp.float32)
    _, back = jax.vjp(function, convs, x)
    assert sum(leaf.size >= x.size for leaf in jax.tree.leaves(back)) == 1


@pytest.mark.parametrize("function", [functools.partial(pooled_by_record, hifa_pools), refined])
def test_a_tpu_takes_as_many_records_together_as_find_room(function, monkeypatch):
    module = "drifa_jax.models.kernels.record_by_record"
    convs, x = arguments(jnp.float32)
    monkeypatch.setattr(f"{module}.RECOMPUTED_BATCH", 0)
    monkeypatch.setattr(f"{module}.LARGE_BATCH", 0)
    # A record's map of 3 x 5 x 3 takes three tiles of 8 x 128 floats; of four records two fit.
    monkeypatch.setattr(f"{module}.TPU_BLOCK", 2 * 3 * 8 * 128 * 4 + 1)
    whole = value_and_gradient(function, convs, x)
    with kernels.batch_over(1, "tpu"):
        traced = str(jax.make_jaxpr(functools.partial(value_and_gradient, function))(convs, x))
        looped = value_and_gradient(function, convs, x)
    assert "length=2" in traced and "length=4" not in traced and "platform_index" not in traced
    # float32, and sums over records in another order.
    chex.assert_trees_all_close(looped, whole, rtol=1e-5, atol=1e-5)


def test_batches_that_find_room_on_a_tpu_are_taken_at_once_and_recomputed(monkeypatch):
    convs, x = arguments(jnp.float32)
    monkeypatch.setattr("drifa_jax.models.kernels.record_by_record.RECOMPUTED_BATCH", 0)
    with kernels.batch_over(1, "tpu"):
        assert "scan" not in str(jax.make_jaxpr(functools.partial(refined, convs))(x))
        _, back = jax.vjp(refined, convs, x)
    assert sum(leaf.size >= x.size for leaf in jax.tree.leaves(back)) == 1


def test_small_maps_are_not_looped_over():
    convs, x = arguments(jnp.float32)
    for function, weights in (
        (functools.partial(pooled_by_record, clia_pool), convs[0]),
        (refined, convs),
    ):
        assert "scan" not in str(jax.make_jaxpr(functools.partial(function, weights))(x))


@pytest.mark.parametrize("function", [functools.partial(pooled_by_record, hifa_pools), refined])
def test_members_of_an_ensemble_are_looped_over_together(function, every_map_is_large):
    with jax.enable_x64(True):
        convs, x = arguments()
        stacked = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a]), convs)
        of_member = functools.partial(value_and_gradient, function)
        together = jax.vmap(of_member, (0, None))(stacked, x)
        alone = [of_member(jax.tree.map(lambda a, i=i: a[i], stacked), x) for i in range(2)]
        chex.assert_trees_all_close(
            together, jax.tree.map(lambda *a: jnp.stack(a), *alone), rtol=1e-12
        )


@pytest.mark.parametrize("function", [functools.partial(pooled_by_record, hifa_pools), refined])
def test_each_device_loops_over_its_own_records(function, every_map_is_large):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    convs, x = arguments(jnp.float32)
    whole = value_and_gradient(function, convs, x)
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    weights = jax.device_put(convs, NamedSharding(mesh, PartitionSpec()))
    with kernels.batch_over(2):
        program = jax.jit(function).lower(weights, placed).compile()
        spread = value_and_gradient(function, weights, placed)
    assert "all-gather" not in program.as_text()
    # float32, and sums over records in another order.
    chex.assert_trees_all_close(spread, whole, rtol=1e-5, atol=1e-5)
