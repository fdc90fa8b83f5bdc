"""Every backbone by name, in a network: what it declares is what it gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax.models.backbones.convnext import ConvNeXt, ConvNeXtPlan
from drifa_jax.models.backbones.densenet import DenseNet, DenseNetPlan
from drifa_jax.models.backbones.efficientnet import EfficientNet, Group, scaled
from drifa_jax.models.backbones.swin import Swin, SwinPlan
from drifa_jax.models.backbones.vit import ViT, ViTPlan
from drifa_jax.models.building import build_network
from drifa_jax.models.description import NetworkDescription
from drifa_jax.models.drifa_net import DRIFANet
from drifa_jax.models.functional import Functional
from drifa_jax.models.initial import initial_rngs
from drifa_jax.models.registry import BACKBONES, VOLUME_BACKBONES
from drifa_jax.network_options import NetworkOptions
from drifa_jax.sharding import DATA_AXIS, Layout, device_mesh, is_large

SMALL = {
    "convnext": lambda **k: ConvNeXt(1, ConvNeXtPlan((1, 1), (4, 6)), **k),
    "convnextv2": lambda **k: ConvNeXt(1, ConvNeXtPlan((1, 1), (4, 6), 2), **k),
    "efficientnet": lambda **k: EfficientNet(
        1, scaled(0.1, 1, groups=(Group(3, 2, 2, 40, 1), Group(3, 2, 2, 40, 1))), **k
    ),
    "densenet": lambda **k: DenseNet(1, DenseNetPlan((1, 1), 4, 4), **k),
    "swin": lambda **k: Swin(1, SwinPlan((2, 1), (1, 2), 4, window=2), **k),
    "vit": lambda **k: ViT(1, ViTPlan(8, 4, 2, 4, 3, num_registers=1), **k),
}


@pytest.mark.parametrize(
    "name",
    [
        "convnext_atto",
        "efficientnet_lite0",
        "densenet121",
        "swin_tiny",
        "deit_tiny",
        "dinov3_small",
    ],
)
def test_stages_give_what_they_declare(name):
    network = build_network(
        NetworkDescription({"a": 1}, {"grade": 2}, NetworkOptions(backbone=name))
    )
    plan = []

    def declared(key):
        plan[:] = BACKBONES[name](
            1, options=NetworkOptions(backbone=name), rngs=initial_rngs(key)
        ).plan

    jax.eval_shape(declared, jax.random.key(0))
    size = 224  # whole patches of 14 and of 16, and five halvings
    stages, _ = jax.eval_shape(
        lambda *state: network.apply(
            *state, {"a": jnp.ones((1, size, size, 1))}, train=False, method="features"
        ),
        network.abstract_params,
        network.abstract_statistics,
    )
    sides = [size // stage.reduction for stage in plan]
    assert [x["a"].shape[1:] for x in stages] == [
        (side, side, stage.channels) for side, stage in zip(sides, plan, strict=True)
    ]
    assert [stage.dropout for stage in plan] == [True] * (len(plan) - 1) + [False]


@pytest.mark.parametrize("volumes", [False, True])
def test_every_large_array_is_cut_over_the_devices(volumes, every_device):
    """What is kept whole where state is cut into pieces are small arrays alone; nothing is run."""
    layout = Layout(device_mesh(data=8), shard_state=True)
    for name in sorted(VOLUME_BACKBONES if volumes else BACKBONES):
        axes = {"num_axes": 3} if volumes else {}
        backbone = Functional(
            lambda rngs, name=name, axes=axes: BACKBONES[name](
                3, options=NetworkOptions(backbone=name), rngs=rngs, **axes
            )
        )
        for leaf in jax.tree.leaves(layout.state(backbone.abstract_params)):
            assert (DATA_AXIS in leaf.sharding.spec) == is_large(leaf.shape), (name, leaf.shape)


@pytest.mark.parametrize("name", SMALL)
def test_a_network_trains_and_drops_by_key(name):
    """Gradients reach every parameter of a branch, and another key gives another sample."""
    options = NetworkOptions(fuse_at=(-1,))
    network = Functional(
        lambda rngs: DRIFANet(
            {m: SMALL[name](options=options, rngs=rngs) for m in "ab"},
            {"grade": 3},
            options=options,
            rngs=rngs,
        )
    )
    params, statistics = network.init(jax.random.key(0))
    draw = np.random.default_rng(0)
    images = {m: draw.normal(size=(3, 16, 16, 1)).astype(np.float32) for m in "ab"}

    @jax.jit
    def gradients(params, key):
        def loss(params):
            (logits, _), _ = network.apply(params, statistics, images, train=True, dropout_key=key)
            return jnp.sum(jnp.sin(logits["grade"])), logits["grade"]

        return jax.grad(loss, has_aux=True)(params)

    first, logits = gradients(params, jax.random.key(0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(first))
    branch = jax.tree_util.tree_leaves_with_path(first["branches"]["a"])
    # Keys' biases move every score of a query alike, which softmax does not see.
    still = [path for path, g in branch if not np.any(g) and "key" not in str(path)]
    assert not still
    _, others = gradients(params, jax.random.key(1))
    assert np.any(logits != others)
