import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def test_a_batch_spread_over_devices_gives_the_gradient_of_one_device(small_network, small_state):
    """Batch norm, extremes and their written-out gradients are global under GSPMD."""
    params, statistics, _ = small_state
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    rng = np.random.default_rng(0)
    images = {
        "mri": rng.uniform(size=(8, 16, 16, 1)).astype(np.float32),
        "ct": rng.uniform(size=(8, 12, 12, 2)).astype(np.float32),
    }

    @jax.jit
    def gradients(params, images):
        def loss(params):
            (logits, _), after = small_network.apply(params, statistics, images, train=True)
            return sum(jnp.mean(jnp.square(x)) for x in logits.values()), after

        return jax.grad(loss, has_aux=True)(params)

    alone = gradients(params, images)
    together = gradients(jax.device_put(params, everywhere), jax.device_put(images, spread))
    scale = max(np.abs(g).max() for g in jax.tree.leaves(alone[0]))
    # Sums over the batch are taken in another order; batch norm divides by small deviations.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * scale), alone, together
    )
