"""A network that compiles in a second, in place of DRIFA-Net: the tests here are about training.

It has what training can get wrong: a convolution, batch norm over the batch, dropout, a wide
matrix that can be cut into pieces, and a head for each task.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from drifa_jax.config import from_mapping, modality
from drifa_jax.models.batch_norm import BatchNorm
from drifa_jax.models.dropout import monte_carlo_dropout
from drifa_jax.models.functional import Functional
from drifa_jax.models.initial import glorot_uniform

WIDTH = 16


class Toy(nnx.Module):
    def __init__(self, modalities, tasks, rngs):
        def kernel(*shape):
            return nnx.Param(glorot_uniform(rngs.params(), shape))

        self.stems = nnx.Dict({m: kernel(3, 3, c, 4) for m, c in modalities.items()})
        self.norms = nnx.Dict({m: BatchNorm(4) for m in modalities})
        self.wide = kernel(4 * len(modalities), WIDTH)
        self.heads = nnx.Dict({t: kernel(WIDTH, k) for t, k in tasks.items()})

    def __call__(self, images, *, train, dropout_key=None, present=None):
        pooled = []
        for name, x in images.items():
            x = jax.lax.conv_general_dilated(
                x, self.stems[name][...], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(self.norms[name](x, train=train))
            pooled.append(jnp.mean(x, (1, 2)))
        x = jax.nn.relu(jnp.concatenate(pooled, -1) @ self.wide[...])
        x = monte_carlo_dropout(x, 0.25, dropout_key)
        return {task: x @ head[...] for task, head in self.heads.items()}, {}


def build_network(model, modalities, tasks, tables=None):
    """In place of `drifa_jax.train.experiment.build_network`."""
    return Functional(lambda rngs: Toy(modalities, tasks, rngs))


def toy_config(*, train=None, **groups):
    """Two epochs of four steps; `train` and whole groups change it."""
    return from_mapping(
        {
            "data": {
                "modalities": {
                    "mri": modality(height=16, width=16, channels=1),
                    "ct": modality(height=16, width=16, channels=1),
                },
                "phantoms": {"num_train": 32, "num_validation": 12, "num_test": 20},
                "augmentation": "flip",
            },
            "model": {"width": 2, "backbone": "resnet10"},
            "train": {"batch_size": 8, "num_epochs": 2, "learning_rate": 0.01, **(train or {})},
            "eval": {"batch_size": 8},
            # The toy has no part of its own before dropout.
            "uncertainty": {"fit_decisions": False},
            **groups,
        }
    )
