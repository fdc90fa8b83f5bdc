"""Parts that compile in a second, in place of DRIFA-Net's: the tests here are about training.

They have what training can get wrong: a convolution, batch norm over the batch, dropout, a wide
matrix that can be cut into pieces, and a head for each task.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from drifa_jax.config import from_mapping, modality
from drifa_jax.errors import UserError
from drifa_jax.models.backbones.contract import Stage
from drifa_jax.models.batch_norm import BatchNorm
from drifa_jax.models.initial import glorot_uniform
from drifa_jax.models.registry import BACKBONES, READOUTS
from drifa_jax.models.stochastic_depth import residual

WIDTH = 16


def kernel(rngs, *shape):
    return nnx.Param(glorot_uniform(rngs.params(), shape))


class ToyBackbone(nnx.Module):
    plan = (Stage("convolution", 4, 2, dropout=False),)

    def __init__(self, num_channels, *, options, rngs):
        self.kernel = kernel(rngs, 3, 3, num_channels, 4)
        self.norm = BatchNorm(4)

    def stem(self, images, *, train, present):
        x = jax.lax.conv_general_dilated(
            images, self.kernel[...], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(self.norm(x, train=train, present=present))

    def stage(self, number, x, *, train, present):
        return x


class LayeredToyBackbone(ToyBackbone):
    """The same with a block that records can skip, and layers that it declares."""

    num_blocks = 2

    def parts_in_order(self):
        return [(self.kernel,), (self.norm,)]

    def stage(self, number, x, *, train, present, depth=None):
        return x + residual(x, depth, 1, self.num_blocks)


class ToyBackboneOfProcess0(ToyBackbone):
    """What a machine that lacks a file is to a run."""

    def __init__(self, num_channels, *, options, rngs):
        if jax.process_index():
            raise UserError("a file is not here")
        super().__init__(num_channels, options=options, rngs=rngs)


class ToyReadout(nnx.Module):
    def __init__(self, num_features, num_classes, *, options, rngs):
        self.wide = kernel(rngs, sum(num_features.values()), WIDTH)
        self.head = kernel(rngs, WIDTH, num_classes)

    def __call__(self, pooled, present):
        x = jnp.concatenate(list(pooled.values()), -1)
        return jax.nn.relu(x @ self.wide[...]) @ self.head[...]


BACKBONES["toy"] = ToyBackbone
BACKBONES["toy_layers"] = LayeredToyBackbone
BACKBONES["toy_of_process_0"] = ToyBackboneOfProcess0
READOUTS["toy"] = ToyReadout


def toy_config(*, train=None, backbone="toy", **groups):
    """Two epochs of four steps; `train`, the backbone and whole groups change it."""
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
            "model": {
                "backbone": backbone,
                "readout": "toy",
                "stage_mfa_parts": (),
                "mifa_parts": (),
            },
            "train": {"batch_size": 8, "num_epochs": 2, "learning_rate": 0.01, **(train or {})},
            "eval": {"batch_size": 8},
            # Nothing here is about what follows training.
            "uncertainty": {"fit_decisions": False},
            **groups,
        }
    )
