"""Residual blocks that records skip in training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drifa_jax.models.backbones.convnext import ConvNeXt, ConvNeXtPlan
from drifa_jax.models.backbones.efficientnet import EfficientNet, Group, scaled
from drifa_jax.models.backbones.swin import Swin, SwinPlan
from drifa_jax.models.backbones.vit import ViT, ViTPlan
from drifa_jax.models.stochastic_depth import StochasticDepth, residual
from drifa_jax.network_options import NetworkOptions

KEY = jax.random.key(7)
GROUPS = (Group(3, 1, 1, 8, 2), Group(3, 2, 2, 8, 2))
BACKBONES = {
    "convnext": (ConvNeXt, ConvNeXtPlan((1, 2), (4, 8))),
    "efficientnet": (EfficientNet, scaled(1.0, 1.0, groups=GROUPS)),
    "swin": (Swin, SwinPlan((1, 2), (1, 2), 4, window=2)),
    "vit": (ViT, ViTPlan(8, 4, 2, patch=8, grid=4)),
}


LATER = {
    "convnext": lambda net: [
        net.resolutions["resolution_1"].blocks[f"block_{k}"].project.kernel for k in (0, 1)
    ],
    "efficientnet": lambda net: [net.blocks[f"block_{k}"].project.norm.scale for k in (1, 3)],
    "swin": lambda net: [
        matrix
        for block in net.blocks["resolution_1"].values()
        for matrix in (block.attention.out.kernel, block.project.kernel)
    ],
    "vit": lambda net: [
        matrix
        for k in (1, 2, 3)
        for block in (net.blocks[f"block_{k}"],)
        for matrix in (block.attention.out.kernel, block.project.kernel)
    ],
}
"""Last matrices of all blocks that can be skipped but the first; their biases are zero."""


def test_rate_rises_linearly_over_the_blocks_and_what_is_kept_makes_up_for_it():
    y = jnp.ones((20_000, 1))
    depth = StochasticDepth(KEY, 0.5)
    for block, rate in ((0, 0.0), (2, 0.25), (4, 0.5)):
        after = np.asarray(residual(y, depth, block, 5))
        kept = after != 0
        np.testing.assert_allclose(after[kept], 1 / (1 - rate), rtol=1e-6)
        # Five standard deviations of a mean over 20 000 records.
        assert np.mean(kept) == pytest.approx(1 - rate, abs=0.018)


def test_a_record_skips_a_residual_whole_and_apart_from_others():
    after = np.asarray(residual(jnp.ones((64, 3, 3, 2)), StochasticDepth(KEY, 0.5), 1, 2))
    of_records = after.reshape(64, -1)
    assert np.all(of_records == of_records[:, :1])
    assert 0 < np.mean(of_records[:, 0] == 0) < 1


def test_blocks_parts_and_branches_draw_for_themselves():
    y, depth = jnp.ones((64, 1)), StochasticDepth(KEY, 0.5)
    draws = [
        residual(y, depth.of("mri"), 4, 5),
        residual(y, depth.of("ct"), 4, 5),
        residual(y, depth.of("mri"), 4, 5, "dense"),
        residual(y, StochasticDepth(depth.of("mri").key, 0.5 * 4 / 3), 3, 5),
    ]
    assert len({np.asarray(draw).tobytes() for draw in draws}) == 4


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_skips_the_blocks_that_are_drawn(name, monkeypatch):
    """With each draw replaced by "skip", all that is left is the first block."""
    make, plan = BACKBONES[name]
    backbone = make(1, plan, options=NetworkOptions(), rngs=nnx.Rngs(params=jax.random.key(0)))
    tokens = "_with_tokens" if name == "vit" else ""
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 1))

    def features(depth):
        @nnx.jit
        def compiled(backbone, images):
            passed = getattr(backbone, f"stem{tokens}")(images, train=False)
            for number in range(len(backbone.plan)):
                passed = passed if tokens else (passed,)
                call = getattr(backbone, f"stage{tokens}")
                passed = call(number, *passed, train=False, depth=depth)
            return passed[0] if tokens else passed

        return np.asarray(compiled(backbone, images))

    usual, drawn = features(None), features(StochasticDepth(KEY, 0.5))
    np.testing.assert_array_equal(usual, features(StochasticDepth(KEY, 0.0)))
    assert np.any(usual != drawn)
    monkeypatch.setattr(jax.random, "bernoulli", lambda key, p, shape: jnp.zeros(shape, bool))
    skipped = features(StochasticDepth(KEY, 0.5))
    for matrix in LATER[name](backbone):
        matrix.set_value(jnp.zeros_like(matrix[...]))
    np.testing.assert_allclose(skipped, features(None), rtol=1e-6)
