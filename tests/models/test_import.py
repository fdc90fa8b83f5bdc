import subprocess
import sys

IMPORT = """
import sys
import drifa_jax
from drifa_jax.models import building, drifa_net, functional, mfa, mifa, registry
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "importing the models started a backend"
heavy = {"tensorflow", "torch", "matplotlib", "optax", "orbax.checkpoint"} & set(sys.modules)
# flax itself imports optax and orbax; what it imports is its own affair.
import subprocess
by_flax = set(subprocess.check_output(
    [sys.executable, "-c", "import sys, flax.nnx; print(*sys.modules)"], text=True).split())
assert heavy <= by_flax, f"importing the models imported {sorted(heavy - by_flax)}"
"""


def test_importing_the_models_starts_no_backend_and_loads_nothing_heavy():
    result = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
