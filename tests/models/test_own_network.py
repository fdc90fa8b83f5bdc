"""A module that knows nothing of DRIFA as a branch: what it computes stays what it was."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drifa_jax import with_drifa
from drifa_jax.models.functional import Functional
from drifa_jax.models.own_network import OwnNetwork, StageError, own_backbone
from drifa_jax.network_options import NetworkOptions

STAGES = ("blocks.0", "blocks.1")
SHAPE = (16, 16, 1)
NOTHING = NetworkOptions(stage_mfa_parts=(), mifa_parts=(), dropout_rate=0.0)


class Block(nnx.Module):
    def __init__(self, num_in, num_out, rngs):
        self.conv = nnx.Conv(num_in, num_out, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(num_out, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(nnx.relu(self.norm(self.conv(x))))


class Foreign(nnx.Module):
    """A stem that is read twice, plain functions between the blocks, and a head."""

    def __init__(self, num_channels, *, rngs):
        self.stem = nnx.Conv(num_channels, 4, (3, 3), rngs=rngs)
        self.stem_norm = nnx.BatchNorm(4, rngs=rngs)
        self.blocks = nnx.List([Block(4, 5, rngs), Block(5, 6, rngs)])
        self.unused = nnx.Linear(2, 2, rngs=rngs)
        self.head = nnx.Linear(6, 10, rngs=rngs)

    def __call__(self, images):
        first = nnx.relu(self.stem_norm(self.stem(images)))
        x = jnp.tanh(self.blocks[0](first))
        x = self.blocks[1](x + 0.5 * first[:, ::2, ::2, :1])
        return self.head(x.mean((1, 2)))

    def deepest(self, images):
        first = nnx.relu(self.stem_norm(self.stem(images)))
        x = jnp.tanh(self.blocks[0](first))
        return self.blocks[1](x + 0.5 * first[:, ::2, ::2, :1])


@pytest.fixture(scope="module")
def foreign():
    return Foreign(1, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(4, *SHAPE)).astype(np.float32)


def network(foreign, **options):
    return Functional(
        lambda rngs: with_drifa(
            {"mri": foreign}, tasks={"grade": 2}, stages=STAGES, shapes={"mri": SHAPE}, rngs=rngs,
            **options,
        )
    )  # fmt: skip


@pytest.mark.parametrize("train", [False, True])
def test_without_attention_it_is_the_network_that_it_was(foreign, images, train):
    """Its features, its weights, and its batch statistics, which move once a call."""
    net = network(foreign, options=NOTHING)
    params, statistics = net.init(jax.random.key(0))
    (_, seen), after = jax.jit(lambda *s: net.apply(*s, {"mri": images}, train=train))(
        params, statistics
    )
    itself = nnx.clone(foreign)
    itself.set_attributes(use_running_average=not train, deterministic=True)
    deepest = nnx.jit(lambda module: module.deepest(images))(itself)
    # One program adds in another order than the other.
    np.testing.assert_allclose(seen["stage_1/rra/mri"], deepest, rtol=1e-4, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        after["branches"]["mri"]["module"],
        nnx.to_pure_dict(nnx.state(itself, nnx.BatchStat)),
    )


def test_fused_features_are_what_the_rest_of_the_call_reads(foreign, images):
    branch = OwnNetwork(foreign, STAGES, SHAPE)
    first, passed = branch.stage_with_tokens(0, images, (), train=False)
    second, _ = branch.stage_with_tokens(1, 0.0 * first, passed, train=False)
    itself = nnx.clone(foreign)
    itself.eval()
    stem = nnx.relu(itself.stem_norm(itself.stem(images)))
    expected = itself.blocks[1](jnp.zeros_like(first) + 0.5 * stem[:, ::2, ::2, :1])
    np.testing.assert_allclose(second, expected, rtol=1e-5, atol=1e-6)


def test_its_stages_are_measured(foreign):
    plan = OwnNetwork(foreign, STAGES, SHAPE).plan
    assert [(s.name, s.channels, s.reduction, s.dropout) for s in plan] == [
        ("blocks.0", 5, 2, True),
        ("blocks.1", 6, 4, False),
    ]


def test_it_meets_a_registered_backbone_and_learns(foreign, images):
    """Gradients reach its weights through the attention, and samples differ by key."""
    net = Functional(
        lambda rngs: with_drifa(
            {"mri": foreign, "ct": "resnet10"},
            tasks={"grade": 2},
            stages={"mri": STAGES},
            shapes={"mri": SHAPE, "ct": SHAPE},
            options=NetworkOptions(width=2, mfa_parts=(), fuse_at=(-1,)),
            rngs=rngs,
        )
    )
    params, statistics = net.init(jax.random.key(0))

    @jax.jit
    def gradients(params, key):
        def loss(params):
            (logits, _), _ = net.apply(
                params, statistics, {"mri": images, "ct": images}, train=True, dropout_key=key
            )
            return jnp.sum(jnp.sin(logits["grade"])), logits["grade"]

        return jax.grad(loss, has_aux=True)(params)

    found, logits = gradients(params, jax.random.key(0))
    of_module = found["branches"]["mri"]["module"]
    assert np.any(of_module["stem"]["kernel"]) and np.any(of_module["blocks"][1]["norm"]["scale"])
    # What follows the last stage is left out.
    assert not np.any(of_module["head"]["kernel"])
    assert np.any(logits != gradients(params, jax.random.key(1))[1])


def test_the_module_itself_is_left_alone(foreign, images):
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(foreign, nnx.Param)))
    branch = OwnNetwork(foreign, STAGES, SHAPE)
    branch.stage_with_tokens(0, images, (), train=True)
    assert foreign.blocks[0].drop.rate == 0.5 and type(branch.module.blocks[0]) is Block
    jax.tree.map(
        np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(foreign, nnx.Param))
    )


class Twice(nnx.Module):
    def __init__(self):
        self.layer = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
        self.last = nnx.Linear(3, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.last(self.layer(self.layer(x)))


class Pair(nnx.Module):
    def __call__(self, x):
        return x, x


class Answering(nnx.Module):
    def __init__(self):
        self.pair = Pair()

    def __call__(self, x):
        return self.pair(x)


class Counting(Answering):
    def __init__(self):
        self.pair = Pair()
        self.count = nnx.Variable(jnp.zeros(()))


class Bare(nnx.Module):
    def __call__(self, x):
        return x


@pytest.mark.parametrize(
    ("make", "stages", "message"),
    [
        (Foreign, (), r"Name the stages of Foreign. Its sub-modules are .*blocks.0.conv.*head"),
        (Foreign, ("layer4",), r"There is no sub-module 'layer4'. Its sub-modules are .*blocks.1"),
        (Foreign, ("unused",), r"ended before it reached 'unused', so that it is no stage"),
        (Foreign, ("blocks.1", "blocks.0"), r"reaches 'blocks.0' before 'blocks.1'"),
        (Twice, ("layer", "last"), r"reaches 'layer' twice; name sub-modules that are called once"),
        (Answering, ("pair",), r"'pair' answers with a tuple; a stage answers with one array"),
        (Counting, ("pair",), r"keeps more than parameters and batch statistics: \['count'\]"),
        (Bare, ("x",), r"Bare has no sub-modules: make layers attributes of it"),
    ],
)
def test_a_module_whose_stages_cannot_be_named_is_refused(foreign, make, stages, message):
    module = foreign if make is Foreign else make()
    shape = SHAPE if make is Foreign else (3,)
    with pytest.raises(StageError, match=rf"branches\['mri'\]: .*{message}"):
        with_drifa({"mri": module}, tasks={"grade": 2}, stages=stages, shapes={"mri": shape})


def test_what_is_no_branch_is_refused(foreign):
    tasks = {"grade": 2}
    with pytest.raises(StageError, match=r"must be a flax.nnx.Module, not int"):
        with_drifa({"mri": 3}, tasks=tasks, stages=STAGES)
    with pytest.raises(StageError, match=r"cannot read an image of the shape \(224, 224, 3\)"):
        with_drifa({"mri": foreign}, tasks=tasks, stages=STAGES)
    with pytest.raises(ValueError, match=r"branches\['ct'\] is 'vgg'; choose one of"):
        with_drifa({"ct": "vgg"}, tasks=tasks)
    with pytest.raises(ValueError, match=r"name \['ct'\]; the branches are \['mri'\]"):
        with_drifa({"mri": foreign}, tasks=tasks, stages={"ct": STAGES})


def test_an_entry_of_the_registry_makes_a_branch_of_any_channels():
    entry = own_backbone(Foreign, STAGES, side=16)
    branch = entry(2, options=NetworkOptions(), rngs=nnx.Rngs(params=1))
    assert branch.module.stem.kernel.shape == (3, 3, 2, 4)
    assert [stage.channels for stage in branch.plan] == [5, 6]
