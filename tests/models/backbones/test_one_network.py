"""Every family of backbones in one network: all else holds for each of them.

Branches of 2 to 4 stages, of different channels at every meeting. One network, because what takes
time is compiling: each claim is compiled once for all families.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drifa_jax import sharding
from drifa_jax.config import from_mapping, modality
from drifa_jax.data.record import ModalitySpec
from drifa_jax.data.table import TableColumns, fit_table
from drifa_jax.explain.contribution import contributions
from drifa_jax.explain.gates import gate_rows, gates
from drifa_jax.explain.grad_cam import grad_cam
from drifa_jax.fusion_presets import NO_ATTENTION
from drifa_jax.models.backbones.convnext import ConvNeXt, ConvNeXtPlan
from drifa_jax.models.backbones.densenet import DenseNet, DenseNetPlan
from drifa_jax.models.backbones.efficientnet import EfficientNet, Group, scaled
from drifa_jax.models.backbones.resnet import ResNet
from drifa_jax.models.backbones.table import TabularBranch
from drifa_jax.models.backbones.vit import ViT, ViTPlan
from drifa_jax.models.drifa_net import DRIFANet
from drifa_jax.models.functional import Functional
from drifa_jax.models.initial import initial_rngs
from drifa_jax.models.own_network import OwnNetwork
from drifa_jax.network_options import NetworkOptions
from drifa_jax.predict.described import Description
from drifa_jax.predict.export import TOLERANCE, export
from drifa_jax.predict.exported import load_exported
from drifa_jax.predict.predictor import Predictor
from drifa_jax.predict.reading import TABLE, Reading
from drifa_jax.predict.restored import Restored
from drifa_jax.sharding import Layout, device_mesh, put
from drifa_jax.uncertainty.mc_dropout import make_sampler, record_words, sample_key

OPTIONS = NetworkOptions(width=4)
IMAGES = {
    "resnet": (16, 16, 1),
    "convnext": (24, 16, 1),
    "vit": (16, 16, 3),
    "efficientnet": (16, 16, 1),
    "densenet": (16, 16, 1),
    "own": (16, 16, 1),
}
BRANCHES = (*IMAGES, "table")
ROWS = [{"age": "40", "sex": "f"}, {"age": "61", "sex": "m"}]
NUM_SAMPLES = 2
IDS = ["a", "b", "c"]


class Own(nnx.Module):
    """Two convolutions, the second of which also reads what was before the first."""

    def __init__(self, rngs):
        self.first = nnx.Conv(1, 5, (3, 3), strides=4, rngs=rngs)
        self.second = nnx.Conv(5, 6, (3, 3), strides=2, rngs=rngs)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)) + x[:, ::4, ::4])


def build(rngs, num_features=5, options=OPTIONS):
    shared = {"options": options, "rngs": rngs}
    groups = (Group(3, 2, 2, 40, 1), Group(3, 2, 2, 40, 1))
    branches = {
        "resnet": ResNet(1, plan=(1, 1), **shared),
        "convnext": ConvNeXt(1, ConvNeXtPlan((1, 1), (3, 6), 2), **shared),
        "vit": ViT(3, ViTPlan(8, 1, 2, 8, 3, num_registers=1), **shared),
        "efficientnet": EfficientNet(1, scaled(0.1, 1, groups=groups), **shared),
        "densenet": DenseNet(1, DenseNetPlan((1, 1), 4, 4), **shared),
        "own": OwnNetwork(Own(nnx.Rngs(rngs.params())), ("first", "second"), (16, 16, 1)),
    }
    branches["table"] = TabularBranch(num_features, branches["resnet"].plan, rngs=rngs)
    return DRIFANet(branches, {"lesion": 3}, options=options, rngs=rngs)


@pytest.fixture(scope="module")
def encoding():
    return fit_table(TableColumns("table", ("age",), ("sex",)), ROWS)


@pytest.fixture(scope="module")
def restored(encoding):
    """Two untrained members."""
    num_features = encoding.spec.num_features
    network = Functional(lambda rngs: build(rngs, num_features))
    params, statistics = network.init(jax.random.split(jax.random.key(0), 2))
    description = Description(
        (*(ModalitySpec(m, *shape) for m, shape in IMAGES.items()), encoding.spec),
        {
            **dict.fromkeys(IMAGES, Reading()),
            "table": Reading(TABLE, encoding=encoding, id_column="id"),
        },
        {"lesion": ("none", "benign", "malignant")},
        True,
        True,
        "noise and rows",
    )
    config = from_mapping(
        {"data": {"modalities": {"resnet": modality(height=16, width=16, channels=1)}}}
    )
    runs = (Path("one"), Path("other"))
    return Restored(runs, config, description, network, params, statistics, (1, 1), "")


@pytest.fixture(scope="module")
def records(encoding):
    """Pixels of three records, of which the last holds but the first modality."""
    draw = np.random.default_rng(0)
    pixels = {m: draw.integers(0, 256, (3, *shape), np.uint8) for m, shape in IMAGES.items()}
    pixels["table"] = draw.normal(size=(3, encoding.spec.num_features)).astype(np.float32)
    present = {m: np.array([True, True, m == "resnet"]) for m in pixels}
    return pixels, present


@pytest.fixture(scope="module")
def sampler(restored):
    sampler = make_sampler(restored.network, num_samples=NUM_SAMPLES)
    key = jax.random.key(3)

    def samples(pixels, ids, present):
        drawn = sampler(
            restored.params, restored.statistics, pixels, key, record_words(ids), None, present
        )
        return np.asarray(drawn["lesion"])

    return samples


@pytest.fixture(scope="module")
def complete(sampler, records):
    """Samples of the records, which hold everything."""
    return sampler(records[0], IDS, {m: np.ones(3, bool) for m in BRANCHES})


def test_the_stages_of_its_branches_are_matched_from_the_end():
    built = []
    jax.eval_shape(lambda key: built.append(build(initial_rngs(key))), jax.random.key(0))
    (net,) = built
    longer = {m: len(plan) - 2 for m, plan in net.plans.items()}
    assert longer["vit"] == 2 and longer["resnet"] == longer["own"] == longer["table"] == 0
    assert [dict(row.stages) for row in net.rows[-2:]] == [
        {m: longer[m] + k for m in BRANCHES} for k in range(2)
    ]
    assert dict(net.rows[0].stages).items() >= {"vit": 0}.items()
    assert len(set(net.num_features.values())) > 2


def test_samples_are_exact_whatever_the_batch_and_its_order(sampler, records):
    """A record's sample depends on its name alone, and samples and members differ."""
    pixels, present = records
    together = sampler(pixels, IDS, present)
    assert together.shape == (2, NUM_SAMPLES, 3, 3)
    order = [2, 0, 1]
    turned = sampler(
        {m: x[order] for m, x in pixels.items()},
        [IDS[i] for i in order],
        {m: held[order] for m, held in present.items()},
    )
    np.testing.assert_allclose(turned, together[:, :, order], rtol=1e-5, atol=1e-6)
    assert np.abs(together[:, 0] - together[:, 1]).max() > 1e-4
    assert np.abs(together[0] - together[1]).max() > 1e-4


def test_what_samples_share_changes_none_of_them(restored, sampler, records):
    """Work before the first dropout is done once; the whole network says the same."""
    pixels, present = records
    member = jax.tree.map(lambda leaf: leaf[1], (restored.params, restored.statistics))
    keys = sample_key(jax.random.key(3), jnp.int32(1), jnp.asarray(record_words(IDS)), jnp.int32(0))

    @jax.jit
    def whole(params, statistics):
        images = {m: jnp.asarray(x, jnp.float32) for m, x in pixels.items()}
        images |= {m: images[m] / 255.0 for m in IMAGES}
        (logits, _), _ = restored.network.apply(
            params, statistics, images, train=False, dropout_key=keys, present=present
        )
        return jax.nn.softmax(logits["lesion"])

    np.testing.assert_allclose(
        whole(*member), sampler(pixels, IDS, present)[1, 0], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_has_no_effect_where_it_is_absent_and_some_where_it_is_not(
    sampler, records, complete, name
):
    pixels = records[0]
    without = {m: np.array([True, True, m != name]) for m in BRANCHES}
    filled = {m: x.copy() for m, x in pixels.items()}
    filled[name][2] = np.nan if name == "table" else 255
    absent = sampler(pixels, IDS, without)
    np.testing.assert_array_equal(sampler(filled, IDS, without), absent)
    assert np.abs(complete[:, :, 2] - absent[:, :, 2]).max() > 1e-5


def test_every_branch_is_explained(restored, records):
    pixels, present = records
    classes = np.array([0, 1, 2])
    maps = grad_cam(restored, pixels, "lesion", classes, present=present)
    assert {m: of.members.shape for m, of in maps.items()} == {
        m: (2, 3, *shape[:2]) for m, shape in IMAGES.items()
    }
    assert all(of.members[:, :2].any() for of in maps.values())
    assert not any(of.members[:, 2].any() for m, of in maps.items() if m != "resnet")

    # Of one member: every subset of seven branches is asked.
    one = jax.tree.map(lambda leaf: leaf[:1], (restored.params, restored.statistics))
    alone = dataclasses.replace(restored, params=one[0], statistics=one[1])
    shares = contributions(alone, pixels, "lesion", classes, present=present)
    for m, share in shares.shapley.items():
        assert share[:, :2].any() and share[:, 2].any() == (m == "resnet")
    np.testing.assert_allclose(
        sum(shares.shapley.values()), shares.everything - shares.nothing, atol=1e-5
    )


def test_every_branch_has_gates_of_its_own_channels(restored, records):
    found = gates(restored, *records[:1], present=records[1])
    meetings = {
        (g.stage, g.modality): g.values.shape[-1]
        for g in found
        if (g.kind, g.part, g.inside) == ("mifa", "gate", "")
    }
    widths = {m: meetings[3, m] for m in BRANCHES}
    assert widths | {"resnet": 8, "convnext": 6, "vit": 8, "own": 6, "table": 8} == widths
    assert {row["modality"] for row in gate_rows(found)} == set(BRANCHES)


def test_it_is_exported_and_answers_alike(restored, records, tmp_path):
    predictor = Predictor(restored, num_samples=NUM_SAMPLES)
    _, differences = export(predictor, tmp_path / "net.drifa")
    assert differences.probability <= TOLERANCE
    pixels, _ = records
    answers = load_exported(tmp_path / "net.drifa")(pixels, IDS)
    live = predictor.samples(pixels, {m: np.ones(3, bool) for m in pixels}, IDS)
    np.testing.assert_allclose(answers["lesion"].samples, live["lesion"], atol=TOLERANCE)


def test_gradients_over_devices_and_in_pieces_are_those_of_one_device(
    randomised, monkeypatch, every_device
):
    """The batch over four devices, parameters over all eight; attention: tests/models."""
    monkeypatch.setattr(sharding, "LARGE", 64)
    plain = dataclasses.replace(OPTIONS, **NO_ATTENTION)
    network = Functional(lambda rngs: build(rngs, options=plain))
    params = randomised(network.abstract_params)
    statistics = randomised(network.abstract_statistics, seed=1)
    layout = Layout(device_mesh(data=4, model=2), shard_state=True)
    draw = np.random.default_rng(1)
    shapes = IMAGES | {"table": (5,)}
    images = {m: draw.random((4, *shape), np.float32) for m, shape in shapes.items()}

    @functools.partial(jax.jit, static_argnames="layout")
    def gradients(params, images, layout=None):
        def loss(params):
            (logits, _), after = network.apply(params, statistics, images, train=True)
            return jnp.sum(jnp.sin(logits["lesion"])), after

        whole = params if layout is None else layout.gathered(params)
        return jax.grad(loss, has_aux=True)(whole)

    alone = gradients(params, images)
    cut = jax.tree.map(lambda leaf, like: put(leaf, like.sharding), params, layout.state(params))
    for m in IMAGES:
        pieces = jax.tree.leaves(cut["branches"][m])
        assert any(piece.addressable_data(0).size < piece.size for piece in pieces), m
    together = gradients(cut, layout.place_batch(images), layout)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(alone[0]))
    jax.tree.map(
        # Sums over the batch are taken in another order; batch norm divides by small deviations.
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * scale),
        alone,
        together,
    )


def test_a_picture_and_a_volume_meet():
    """Nothing is computed: shapes and ranks fit."""
    volume = ConvNeXtPlan((1, 1, 1), (3, 4, 5))
    network = Functional(
        lambda rngs: DRIFANet(
            {
                "ct": ConvNeXt(1, volume, num_axes=3, options=OPTIONS, rngs=rngs),
                "xray": ResNet(1, plan=(1, 1), options=OPTIONS, rngs=rngs),
            },
            {"lesion": 2},
            options=OPTIONS,
            rngs=rngs,
        )
    )
    images = {"ct": jnp.ones((2, 16, 32, 16, 1)), "xray": jnp.ones((2, 16, 16, 1))}
    stages, _ = jax.eval_shape(
        lambda *state: network.apply(*state, images, train=False, method="features"),
        network.abstract_params,
        network.abstract_statistics,
    )
    assert [x["ct"].shape for x in stages] == [(2, 4, 8, 4, 3), (2, 2, 4, 2, 4), (2, 1, 2, 1, 5)]
    assert [x["xray"].shape for x in stages] == [(2, 4, 4, 4), (2, 4, 4, 4), (2, 2, 2, 8)]
