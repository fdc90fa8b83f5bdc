from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drifa_jax.models.backbones.resnet import ResNet
from drifa_jax.models.backbones.slice_attention import SliceAttention, SlicePooling, over_slices
from drifa_jax.models.backbones.vit import ViT, ViTPlan
from drifa_jax.models.functional import Functional
from drifa_jax.models.pooling import average_pool
from drifa_jax.network_options import NetworkOptions

OPTIONS = NetworkOptions(width=2)
VOLUMES = np.random.default_rng(0).random((2, 3, 16, 16, 1), np.float32)


@nnx.jit
def stages(branch, x):
    """Maps after the stem and every stage, of a branch with or without tokens."""
    options = {"train": False, "present": None}
    if hasattr(branch, "stem_with_tokens"):
        states = [branch.stem_with_tokens(x, **options)]
        for number in range(len(branch.plan)):
            states.append(branch.stage_with_tokens(number, *states[-1], **options))
        return [x for x, _ in states]
    maps = [branch.stem(x, **options)]
    for number in range(len(branch.plan)):
        maps.append(branch.stage(number, maps[-1], **options))
    return maps


def resnet(rngs):
    return ResNet(1, (1, 1), options=OPTIONS, rngs=rngs)


def vit(rngs):
    return ViT(1, ViTPlan(8, 4, 2, patch=8, grid=2), options=OPTIONS, rngs=rngs)


@pytest.mark.parametrize("make", [resnet, vit])
def test_each_slice_goes_through_the_backbone_of_pictures(make):
    plain = make(nnx.Rngs(params=jax.random.key(0)))
    branch = over_slices(plain, options=OPTIONS, rngs=nnx.Rngs(params=jax.random.key(1)))
    ours = stages(branch, VOLUMES)
    for k in range(3):
        of_slice = stages(plain, VOLUMES[:, k])
        for x, y in zip(ours, of_slice, strict=True):
            # The attention begins with equal weights, which change nothing.
            np.testing.assert_allclose(x[:, k], y, rtol=1e-5, atol=1e-6)


def test_what_the_heads_read_is_the_mean_that_attention_weighs():
    pooling = SlicePooling(4, options=OPTIONS, rngs=nnx.Rngs(params=jax.random.key(0)))
    draw = np.random.default_rng(1)
    pooling.weight.set_value(jnp.asarray(draw.normal(size=128), jnp.float32))
    x = draw.normal(size=(2, 5, 3, 4, 4)).astype(np.float32)

    def dense(layer, h):
        return h @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])

    h = x.mean((2, 3))
    inside = np.tanh(dense(pooling.value, h)) / (1 + np.exp(-dense(pooling.gate, h)))
    score = np.exp(inside @ np.asarray(pooling.weight[...]))
    weights = score / score.sum(1, keepdims=True)
    assert np.ptp(weights) > 0.05
    np.testing.assert_allclose(pooling.attention(x), weights, rtol=1e-5)
    expected = (weights[..., None] * h).sum(1)
    np.testing.assert_allclose(average_pool(pooling(x)), expected, rtol=1e-4, atol=1e-5)


def test_absent_volumes_enter_no_batch_statistics():
    branch = Functional(lambda rngs: SliceAttention(resnet(rngs), options=OPTIONS, rngs=rngs))
    params, statistics = branch.init(jax.random.key(0))

    def after(volumes, present=None):
        stem = partial(branch.apply, train=True, present=present, method="stem")
        return jax.jit(stem)(params, statistics, volumes)[1]

    held = after(VOLUMES[:1])
    masked = after(VOLUMES, jnp.array([True, False]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), held, masked)


def test_gates_inside_the_backbone_are_one_a_record():
    branch = over_slices(
        resnet(nnx.Rngs(params=jax.random.key(0))),
        options=OPTIONS,
        rngs=nnx.Rngs(params=jax.random.key(1)),
    )
    x, gates = jax.eval_shape(lambda: branch.attend_stem(VOLUMES, train=False))
    assert x.shape == (2, 3, 4, 4, 2)
    assert {name: gate.values.shape for name, gate in gates.items()} == {"mfa": (2, 2)}
