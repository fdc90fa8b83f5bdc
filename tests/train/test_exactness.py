"""How the training step is compiled changes nothing but rounding, and runs repeat bit by bit.

At full width: `benchmarks/train_step.py --check`.
"""

from __future__ import annotations

import chex
import jax
import numpy as np
import optax
import pytest

from drifa_jax import compilation
from drifa_jax.cpu import options
from drifa_jax.models.backbones.resnet import ResNet
from drifa_jax.models.drifa_net import DRIFANet
from drifa_jax.models.functional import Functional
from drifa_jax.network_options import NetworkOptions
from drifa_jax.train.losses import TaskLoss
from drifa_jax.train.state import initial_state
from drifa_jax.train.step import make_train_step

FUSION = '"__ynn_fusion"'
BATCH, PIXELS = 16, 32
OPTIMISED = {"xla_backend_optimization_level": "3"}
"""LLVM's own default, which the rest of the suite leaves out."""


def batch_of(seed):
    rng = np.random.default_rng(seed)
    return {
        "images": {"mri": rng.integers(0, 256, (BATCH, PIXELS, PIXELS, 1), np.uint8)},
        "labels": {"tumour": rng.integers(0, 4, BATCH, np.int32)},
    }


@pytest.fixture(scope="module")
def start():
    """A network of two stages with all its attention, and its state before the first step.

    SGD, because Adam turns rounding of gradients near zero into steps of full size.
    """

    def build(rngs):
        options = NetworkOptions(width=4)
        branch = ResNet(1, plan=(1, 1), options=options, rngs=rngs)
        return DRIFANet({"mri": branch}, {"tumour": 4}, options=options, rngs=rngs)

    network = Functional(build)
    optimizer = optax.sgd(0.01)
    step = make_train_step(network, optimizer, {"tumour": TaskLoss()})
    return step, initial_state(*network.init(jax.random.key(0)), optimizer)


LARGE = {"kernel": jax.ShapeDtypeStruct((options.SMALL_NETWORK,), np.float32)}


@pytest.fixture(scope="module", params=["small", "large"])
def size(request):
    """Of the network whose options the step is compiled with."""
    return request.param


@pytest.fixture(scope="module")
def compiled(start, size):
    """The step as training compiles it on one device, and with all of XLA's library fusions."""
    step, state = start
    lowered = jax.jit(step).lower(state, batch_of(0), jax.random.key(0))
    chosen = compilation.training_options(state.params if size == "small" else LARGE)
    ours = lowered.compile(chosen | OPTIMISED)
    usual = lowered.compile(compilation.compiler_options() | OPTIMISED)
    return ours, usual


def after_steps(program, state, seed):
    totals = []
    for number in range(3):
        state, sums = program(state, batch_of([seed, number]), jax.random.key(seed))
        totals.append(sums["total"])
    return jax.device_get((state.params, state.statistics, totals))


def test_training_leaves_out_what_is_slow_to_load(compiled, size):
    ours, usual = (program.as_text().count(FUSION) for program in compiled)
    assert usual > 0
    if size == "small":
        assert ours == 0
    else:
        assert 0 < ours < usual / 2


@pytest.mark.parametrize("seed", range(3))
def test_without_library_fusions_the_same_state_comes_out(seed, compiled, start):
    ours, usual = compiled
    chex.assert_trees_all_close(
        after_steps(ours, start[1], seed), after_steps(usual, start[1], seed), rtol=1e-4, atol=2e-6
    )


def test_steps_repeat_bit_by_bit(compiled, start):
    ours, _ = compiled
    first = after_steps(ours, start[1], 0)
    for _ in range(10):
        chex.assert_trees_all_equal(after_steps(ours, start[1], 0), first)
