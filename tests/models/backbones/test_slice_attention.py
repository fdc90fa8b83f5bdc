from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drifa_jax import sharding
from drifa_jax.models.backbones.contract import SkippingBackbone
from drifa_jax.models.backbones.convnext import ConvNeXt, ConvNeXtPlan
from drifa_jax.models.backbones.resnet import ResNet
from drifa_jax.models.backbones.slice_attention import SliceAttention, SlicePooling, over_slices
from drifa_jax.models.backbones.vit import ViT, ViTPlan
from drifa_jax.models.drifa_net import DRIFANet
from drifa_jax.models.functional import Functional
from drifa_jax.models.pooling import average_pool
from drifa_jax.models.stochastic_depth import StochasticDepth
from drifa_jax.network_options import NetworkOptions
from drifa_jax.sharding import Layout, device_mesh, put

OPTIONS = NetworkOptions(width=2)
VOLUMES = np.random.default_rng(0).random((2, 3, 16, 16, 1), np.float32)


@nnx.jit
def stages(branch, x, key=None):
    """Maps after the stem and every stage, of a branch with or without tokens.

    With a key half of the records skip its last block, fewer those before.
    """
    options = {"train": False, "present": None}
    depth = {} if key is None else {"depth": StochasticDepth(key, 0.5)}
    if hasattr(branch, "stem_with_tokens"):
        states = [branch.stem_with_tokens(x, **options)]
        for number in range(len(branch.plan)):
            states.append(branch.stage_with_tokens(number, *states[-1], **options, **depth))
        return [x for x, _ in states]
    maps = [branch.stem(x, **options)]
    for number in range(len(branch.plan)):
        maps.append(branch.stage(number, maps[-1], **options, **depth))
    return maps


def resnet(rngs):
    return ResNet(1, (1, 1), options=OPTIONS, rngs=rngs)


def vit(rngs):
    return ViT(1, ViTPlan(8, 4, 2, patch=8, grid=2), options=OPTIONS, rngs=rngs)


def convnext(rngs):
    return ConvNeXt(1, ConvNeXtPlan((1, 1), (4, 6), 2), options=OPTIONS, rngs=rngs)


def assert_equal_but_for_rounding(x, y):
    """A batch of three times the records is summed in another order: some 2**-23 of the largest."""
    assert np.abs(x - y).max() <= 2e-6 * np.abs(y).max()


@pytest.mark.parametrize("make", [resnet, vit])
def test_each_slice_goes_through_the_backbone_of_pictures(make):
    plain = make(nnx.Rngs(params=jax.random.key(0)))
    branch = over_slices(plain, options=OPTIONS, rngs=nnx.Rngs(params=jax.random.key(1)))
    ours = stages(branch, VOLUMES)
    for k in range(3):
        of_slice = stages(plain, VOLUMES[:, k])
        for x, y in zip(ours, of_slice, strict=True):
            # The attention begins with equal weights, which change nothing.
            assert_equal_but_for_rounding(x[:, k], y)


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


@pytest.mark.parametrize("make", [convnext, vit])
def test_a_record_skips_a_block_with_all_of_its_slices(make):
    """Volumes that repeat one picture skip what a batch of that picture skips."""
    plain = make(nnx.Rngs(params=jax.random.key(0)))
    branch = over_slices(plain, options=OPTIONS, rngs=nnx.Rngs(params=jax.random.key(1)))
    assert isinstance(branch, SkippingBackbone) and branch.num_blocks == plain.num_blocks
    picture, key = np.repeat(VOLUMES[:1, 0], 8, axis=0), jax.random.key(2)
    skipped = stages(plain, picture, key)[-1]
    assert np.ptp(skipped, axis=0).max() > 0.01  # some records skip what others do not
    of_volumes = stages(branch, np.repeat(picture[:, None], 3, axis=1), key)[-1]
    for k in range(3):
        assert_equal_but_for_rounding(of_volumes[:, k], skipped)


def test_what_cannot_skip_blocks_cannot_over_slices_either():
    branch = over_slices(
        resnet(nnx.Rngs(params=jax.random.key(0))),
        options=OPTIONS,
        rngs=nnx.Rngs(params=jax.random.key(1)),
    )
    assert not isinstance(branch, SkippingBackbone)


def test_gradients_over_devices_and_in_pieces_are_those_of_one_device(
    randomised, monkeypatch, every_device
):
    """Volumes over four devices, parameters over all eight, blocks skipped by record."""
    monkeypatch.setattr(sharding, "LARGE", 64)
    options = NetworkOptions(mfa_parts=(), stage_mfa_parts=(), fuse_at=(-1,))

    def build(rngs):
        branch = over_slices(convnext(rngs), options=options, rngs=rngs)
        return DRIFANet({"ct": branch}, {"lesion": 2}, options=options, rngs=rngs)

    network = Functional(build)
    params = randomised(network.abstract_params)
    statistics = randomised(network.abstract_statistics, seed=1)
    layout = Layout(device_mesh(data=4, model=2), shard_state=True)
    draw = np.random.default_rng(1)
    volumes = {"ct": draw.random((4, 3, 16, 16, 1), np.float32)}

    @partial(jax.jit, static_argnames="layout")
    def gradients(params, volumes, layout=None):
        def loss(params):
            depth = StochasticDepth(jax.random.key(3), 0.5)
            (logits, _), _ = network.apply(params, statistics, volumes, train=True, depth=depth)
            return jnp.sum(jnp.sin(logits["lesion"]))

        return jax.grad(loss)(params if layout is None else layout.gathered(params))

    alone = gradients(params, volumes)
    cut = jax.tree.map(lambda leaf, like: put(leaf, like.sharding), params, layout.state(params))
    for part in ("slices", "pooling"):
        pieces = jax.tree.leaves(cut["branches"]["ct"][part])
        assert any(piece.addressable_data(0).size < piece.size for piece in pieces), part
    together = gradients(cut, layout.place_batch(volumes), layout)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(alone))
    jax.tree.map(
        # Sums over the batch are taken in another order.
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * scale),
        alone,
        together,
    )
