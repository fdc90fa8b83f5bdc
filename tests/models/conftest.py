"""Small modules with random weights, and the independent reference."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from drifa_jax.models.backbones.resnet import ResNet
from drifa_jax.models.drifa_net import DRIFANet
from drifa_jax.models.functional import Functional
from drifa_jax.network_options import NetworkOptions


@pytest.fixture(scope="session")
def randomised():
    """Replaces every parameter by random numbers, so that no zero or one hides a mistake."""

    def draw(tree, seed=0, dtype=np.float32):
        rng = np.random.default_rng(seed)

        def leaf(path, x):
            spread = np.sqrt(6.0 / np.prod(x.shape[:-1])) if len(x.shape) > 1 else 0.7
            values = spread * rng.uniform(-1, 1, x.shape)
            positive = path[-1].key == "var"
            return (np.abs(values) + 0.5 if positive else values).astype(dtype)

        return jax.tree_util.tree_map_with_path(leaf, tree)

    return draw


@pytest.fixture(scope="session")
def small_network():
    """Two modalities of different size and channel count, two stages of two widths, two tasks."""
    options = NetworkOptions(width=3)

    def build(rngs):
        branches = {
            modality: ResNet(channels, plan=(1, 1), options=options, rngs=rngs)
            for modality, channels in (("mri", 1), ("ct", 2))
        }
        return DRIFANet(branches, {"tumour": 4, "stroke": 3}, options=options, rngs=rngs)

    return Functional(build)


@pytest.fixture(scope="session")
def small_state(small_network, randomised):
    """Random parameters and statistics of `small_network`, and a batch of three records."""
    params = randomised(small_network.abstract_params)
    statistics = randomised(small_network.abstract_statistics, seed=1)
    rng = np.random.default_rng(2)
    images = {
        "mri": rng.uniform(size=(3, 16, 16, 1)).astype(np.float32),
        "ct": rng.uniform(size=(3, 12, 20, 2)).astype(np.float32),
    }
    return params, statistics, images


@pytest.fixture(scope="session")
def small_apply(small_network):
    """The compiled forward pass, `train` static."""
    return jax.jit(small_network.apply, static_argnames="train")
