"""Two tiny networks trained to find a bright square in `mri`, beside a `ct` that is noise."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from drifa_jax.config import from_mapping, modality
from drifa_jax.data.record import ModalitySpec
from drifa_jax.models.backbones.resnet import ResNet
from drifa_jax.models.drifa_net import DRIFANet
from drifa_jax.models.functional import Functional
from drifa_jax.models.pixels import scale_pixels
from drifa_jax.network_options import NetworkOptions
from drifa_jax.predict.described import Description
from drifa_jax.predict.predictor import Predictor
from drifa_jax.predict.restored import Restored

SIDE, SQUARE = 32, 6
NUM_STEPS, BATCH = 120, 16


def picture(draw, corner=None):
    """Noise `[32, 32, 1]` uint8, with a bright square from the corner (row, column)."""
    image = draw.integers(0, 90, (SIDE, SIDE, 1))
    if corner is not None:
        row, column = corner
        image[row : row + SQUARE, column : column + SQUARE] += 150
    return image.astype(np.uint8)


def batch_of(draw, count):
    """Pixels by modality and labels: 1 where mri holds a square."""
    labels = np.arange(count, dtype=np.int32) % 2
    corners = draw.integers(2, SIDE - SQUARE - 2, (count, 2))
    mri = [picture(draw, corner if y else None) for y, corner in zip(labels, corners, strict=True)]
    return {"mri": np.stack(mri), "ct": np.stack([picture(draw) for _ in labels])}, labels


@pytest.fixture(scope="session")
def network():
    options = NetworkOptions(width=4, dropout_rate=0.1, batch_norm_momentum=0.9)

    def build(rngs):
        branches = {m: ResNet(1, plan=(1, 1), options=options, rngs=rngs) for m in ("mri", "ct")}
        return DRIFANet(branches, {"lesion": 2}, options=options, rngs=rngs)

    return Functional(build)


@pytest.fixture(scope="session")
def restore(network):
    """Makes the `Restored` of members `[(params, statistics), ...]`."""
    small = modality(height=SIDE, width=SIDE, channels=1)
    config = from_mapping({"data": {"modalities": {"mri": small, "ct": small}}})

    def make(members, trained_for_it=True):
        description = Description(
            tuple(ModalitySpec(m, SIDE, SIDE, 1) for m in ("mri", "ct")),
            {"mri": "stretch", "ct": "stretch"},
            {"lesion": ("none", "square")},
            trained_for_it,
            True,
            "squares",
        )
        params, statistics = jax.tree.map(
            lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *members
        )
        runs = tuple(Path(f"member-{i}") for i in range(len(members)))
        return Restored(
            runs,
            config,
            description,
            network,
            params,
            statistics,
            (NUM_STEPS,) * len(members),
            "squares",
        )

    return make


@pytest.fixture(scope="session")
def untrained_members(network):
    return [network.init(jax.random.key(seed)) for seed in (10, 11)]


@pytest.fixture(scope="session")
def trained_members(network):
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, statistics, state, pixels, labels, present):
        def objective(p):
            (logits, _), after = network.apply(
                p, statistics, scale_pixels(pixels), train=True, present=present
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits["lesion"], labels)
            return losses.mean(), after

        gradients, after = jax.grad(objective, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), after, state

    members = []
    with jax.numpy_dtype_promotion("standard"):
        for seed in (0, 1):
            draw = np.random.default_rng(seed)
            params, statistics = network.init(jax.random.key(seed))
            state = optimizer.init(params)
            for _ in range(NUM_STEPS):
                pixels, labels = batch_of(draw, BATCH)
                # ct is dropped often and mri sometimes, so that subsets are not news.
                has_mri = draw.random(BATCH) < 0.8
                present = {"mri": has_mri, "ct": ~has_mri | (draw.random(BATCH) < 0.5)}
                params, statistics, state = step(
                    params, statistics, state, pixels, jnp.asarray(labels), present
                )
            members.append((params, statistics))
    return members


@pytest.fixture(scope="session")
def restored(restore, trained_members):
    return restore(trained_members)


@pytest.fixture(scope="session")
def predictor(restored):
    return Predictor(restored, num_samples=2)


@pytest.fixture(scope="session")
def records():
    """Sixteen records that training did not see: pixels and labels."""
    return batch_of(np.random.default_rng(99), 16)


@pytest.fixture(scope="session")
def draw_picture():
    return picture
