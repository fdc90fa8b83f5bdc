import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from drifa_jax.models.functional import Functional
from drifa_jax.models.rra import RRABlock
from drifa_jax.network_options import NetworkOptions


def test_a_batch_spread_over_devices_gives_the_gradient_of_one_device(randomised):
    """Batch norm, extremes and their written-out gradients are global under GSPMD."""
    block = Functional(lambda rngs: RRABlock(3, 3, 1, options=NetworkOptions(), rngs=rngs))
    params = randomised(block.abstract_params)
    statistics = randomised(block.abstract_statistics, seed=1)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    x = np.random.default_rng(2).normal(size=(8, 5, 6, 3)).astype(np.float32)

    @jax.jit
    def gradients(params, x):
        def loss(params):
            y, after = block.apply(params, statistics, x, train=True)
            return jnp.mean(jnp.square(y)), after

        return jax.grad(loss, has_aux=True)(params)

    alone = gradients(params, x)
    together = gradients(jax.device_put(params, everywhere), jax.device_put(x, spread))
    scale = max(np.abs(g).max() for g in jax.tree.leaves(alone[0]))
    # Sums over the batch are taken in another order; batch norm divides by small deviations.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * scale), alone, together
    )
