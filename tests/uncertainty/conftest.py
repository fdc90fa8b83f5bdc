"""A tiny network with a stacked ensemble of two members, and a batch of three records."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from drifa_jax.models.backbones.resnet import ResNet
from drifa_jax.models.drifa_net import DRIFANet
from drifa_jax.models.functional import Functional
from drifa_jax.network_options import NetworkOptions
from drifa_jax.uncertainty.mc_dropout import make_sampler, record_words

TASKS = {"tumour": 3, "stroke": 2}
NUM_SAMPLES = 4


def build(dropout_rate: float = 0.25) -> Functional:
    """Two modalities and two stages, the first dropped: all kinds of layers, no depth."""
    options = NetworkOptions(width=4, dropout_rate=dropout_rate)

    def network(rngs):
        branches = {m: ResNet(1, plan=(1, 1), options=options, rngs=rngs) for m in ("mri", "ct")}
        return DRIFANet(branches, TASKS, options=options, rngs=rngs)

    return Functional(network)


@pytest.fixture(scope="session")
def ensemble():
    """Network, `params` and `statistics` of two members (leading axis), images of 3 records."""
    network = build()
    members = [network.init(key) for key in jax.random.split(jax.random.key(0), 2)]
    params, statistics = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    draw = np.random.default_rng(0)
    # Statistics as after training, so that reading them differs from reading the batch's own.
    statistics = jax.tree.map(
        lambda leaf: leaf * draw.uniform(0.05, 0.5, leaf.shape).astype(leaf.dtype), statistics
    )
    return SimpleNamespace(
        network=network,
        without_dropout=build(dropout_rate=0.0),
        params=params,
        statistics=statistics,
        images={m: draw.integers(0, 256, (3, 16, 16, 1), np.uint8) for m in ("mri", "ct")},
        words=record_words(["a", "b", "c"]),
        key=jax.random.key(7),
    )


@pytest.fixture(scope="session")
def sampler(ensemble):
    return make_sampler(ensemble.network, num_samples=NUM_SAMPLES, samples_per_pass=2)


@pytest.fixture(scope="session")
def samples(ensemble, sampler):
    """Task -> `[2, 5, 3, k]`."""
    e = ensemble
    return jax.device_get(sampler(e.params, e.statistics, e.images, e.key, e.words))
