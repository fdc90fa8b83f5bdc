"""Pooled vectors of large maps, one record after another."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from drifa_jax.models.hifa_pools import clia_pool, hifa_pools
from drifa_jax.models.mifa import mlifa_pools
from drifa_jax.models.record_by_record import pooled_by_record

NUM_RECORDS, NUM_CHANNELS = 4, 3
POOLS = {
    "hifa": (hifa_pools, lambda convs: convs),
    "clia": (clia_pool, lambda convs: convs[0]),
    "mlifa": (mlifa_pools, lambda convs: convs[0]),
}


@pytest.fixture
def every_map_is_large(monkeypatch):
    monkeypatch.setattr("drifa_jax.models.record_by_record.LARGE_MAP", 0)


def arguments(dtype=jnp.float64):
    draw = np.random.default_rng(0)
    convs = tuple(
        (draw.normal(size=(NUM_CHANNELS,) * 2), draw.normal(size=NUM_CHANNELS)) for _ in range(4)
    )
    x = draw.normal(size=(NUM_RECORDS, 3, 5, NUM_CHANNELS))
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), (convs, x))


def value_and_gradient(function, weights, x):
    """Of a sum of the pools with weights that differ between records and channels."""

    def weighted(weights, x):
        pools = jax.tree.leaves(function(weights, x))
        return sum(jnp.sum(p * jnp.arange(p.size, dtype=p.dtype).reshape(p.shape)) for p in pools)

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


def test_no_map_but_the_input_is_kept_for_the_backward_pass(every_map_is_large):
    convs, x = arguments(jnp.float32)
    _, back = jax.vjp(functools.partial(pooled_by_record, hifa_pools), convs, x)
    assert sum(leaf.size >= x.size for leaf in jax.tree.leaves(back)) == 1


def test_small_maps_are_not_looped_over():
    convs, x = arguments(jnp.float32)
    assert "scan" not in str(jax.make_jaxpr(lambda x: pooled_by_record(clia_pool, convs[0], x))(x))


def test_members_of_an_ensemble_are_looped_over_together(every_map_is_large):
    with jax.enable_x64(True):
        convs, x = arguments()
        stacked = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a]), convs)
        pools = functools.partial(pooled_by_record, hifa_pools)
        together = jax.jit(jax.vmap(pools, (0, None)))(stacked, x)
        alone = [pools(jax.tree.map(lambda a, i=i: a[i], stacked), x) for i in range(2)]
        chex.assert_trees_all_close(
            together, jax.tree.map(lambda *a: jnp.stack(a), *alone), rtol=1e-12
        )


def test_each_device_loops_over_its_own_records(every_map_is_large):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    convs, x = arguments(jnp.float32)
    whole = value_and_gradient(hifa_pools, convs, x)
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    weights = jax.device_put(convs, NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):

        def pools(weights, x):
            return pooled_by_record(hifa_pools, weights, x)

        program = jax.jit(pools).lower(weights, placed).compile()
        spread = value_and_gradient(pools, weights, placed)
    assert "all-gather" not in program.as_text()
    # float32, and sums over records in another order.
    chex.assert_trees_all_close(spread, whole, rtol=1e-5, atol=1e-5)
