"""Hand-written gradients and loops, each beside the plain formula that it stands for.

The rest of the package calls them by what they compute. `with kernels.plain():` traces the
formulas instead, differentiated by JAX: the same numbers up to rounding, slower.
"""

from drifa_jax.models.kernels.tracing import batch_over, plain

__all__ = ["batch_over", "plain"]
