"""A ResNet, a ConvNeXt, a transformer and a table in one network: all else holds for it.

Branches of 2, 2, 4 and 2 stages, of different channels at every meeting.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax.config import from_mapping, modality
from drifa_jax.data.record import ModalitySpec
from drifa_jax.data.table import TableColumns, fit_table
from drifa_jax.explain.contribution import contributions
from drifa_jax.explain.gates import gate_rows, gates
from drifa_jax.explain.grad_cam import grad_cam
from drifa_jax.models.backbones.convnext import ConvNeXt, ConvNeXtPlan
from drifa_jax.models.backbones.resnet import ResNet
from drifa_jax.models.backbones.table import TabularBranch
from drifa_jax.models.backbones.vit import ViT, ViTPlan
from drifa_jax.models.drifa_net import DRIFANet
from drifa_jax.models.functional import Functional
from drifa_jax.models.initial import initial_rngs
from drifa_jax.network_options import NetworkOptions
from drifa_jax.predict.export import TOLERANCE, export
from drifa_jax.predict.exported import load_exported
from drifa_jax.predict.predictor import Predictor
from drifa_jax.predict.reading import TABLE, Reading
from drifa_jax.predict.restored import Description, Restored
from drifa_jax.uncertainty.mc_dropout import make_sampler, record_words, sample_key

OPTIONS = NetworkOptions(width=4)
IMAGES = {"mri": (16, 16, 1), "ct": (24, 16, 1), "skin": (16, 16, 3)}
ROWS = [{"age": "40", "sex": "f"}, {"age": "61", "sex": "m"}]
NUM_SAMPLES = 2
IDS = ["a", "b", "c"]


def build(rngs, num_features=5):
    resnet = ResNet(1, plan=(1, 1), options=OPTIONS, rngs=rngs)
    branches = {
        "mri": resnet,
        "ct": ConvNeXt(1, ConvNeXtPlan((1, 1), (3, 6)), options=OPTIONS, rngs=rngs),
        "skin": ViT(3, ViTPlan(8, 1, 2, 8, 3, num_registers=1), options=OPTIONS, rngs=rngs),
        "clinic": TabularBranch(num_features, resnet.plan, rngs=rngs),
    }
    return DRIFANet(branches, {"lesion": 3}, options=OPTIONS, rngs=rngs)


@pytest.fixture(scope="module")
def encoding():
    return fit_table(TableColumns("clinic", ("age",), ("sex",)), ROWS)


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
            "clinic": Reading(TABLE, encoding=encoding, id_column="id"),
        },
        {"lesion": ("none", "benign", "malignant")},
        True,
        True,
        "noise and rows",
    )
    config = from_mapping(
        {"data": {"modalities": {"mri": modality(height=16, width=16, channels=1)}}}
    )
    runs = (Path("one"), Path("other"))
    return Restored(runs, config, description, network, params, statistics, (1, 1), "")


@pytest.fixture(scope="module")
def records(encoding):
    """Pixels of three records, of which the last lacks ct and table."""
    draw = np.random.default_rng(0)
    pixels = {m: draw.integers(0, 256, (3, *shape), np.uint8) for m, shape in IMAGES.items()}
    pixels["clinic"] = draw.normal(size=(3, encoding.spec.num_features)).astype(np.float32)
    present = {m: np.ones(3, bool) for m in pixels}
    present["ct"][2] = present["clinic"][2] = False
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


def test_the_stages_of_its_branches_are_matched_from_the_end():
    built = []
    jax.eval_shape(lambda key: built.append(build(initial_rngs(key))), jax.random.key(0))
    (net,) = built
    assert [dict(row.stages) for row in net.rows] == [
        {"skin": 0},
        {"skin": 1},
        {"mri": 0, "ct": 0, "skin": 2, "clinic": 0},
        {"mri": 1, "ct": 1, "skin": 3, "clinic": 1},
    ]
    assert net.num_features == {"mri": 8, "ct": 6, "skin": 8, "clinic": 8}


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


def test_an_absent_modality_has_no_effect_whatever_fills_it(sampler, records):
    pixels, present = records
    filled = {m: x.copy() for m, x in pixels.items()}
    filled["ct"][2], filled["clinic"][2] = 255, np.nan
    np.testing.assert_array_equal(sampler(filled, IDS, present), sampler(pixels, IDS, present))


def test_every_branch_is_explained(restored, records):
    pixels, present = records
    classes = np.array([0, 1, 2])
    maps = grad_cam(restored, pixels, "lesion", classes, present=present)
    assert {m: of.members.shape for m, of in maps.items()} == {
        m: (2, 3, *shape[:2]) for m, shape in IMAGES.items()
    }
    assert not maps["ct"].members[:, 2].any()
    shares = contributions(restored, pixels, "lesion", classes, present=present)
    assert not shares.shapley["clinic"][:, 2].any() and shares.shapley["ct"][:, 0].any()
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
    last = {(3, "mri"): 8, (3, "ct"): 6, (3, "skin"): 8, (3, "clinic"): 8}
    assert meetings.items() >= last.items()
    rows = gate_rows(found)
    assert {row["modality"] for row in rows} == {*IMAGES, "clinic"}


def test_it_is_exported_and_answers_alike(restored, records, tmp_path):
    predictor = Predictor(restored, num_samples=NUM_SAMPLES)
    _, differences = export(predictor, tmp_path / "net.drifa")
    assert differences.probability <= TOLERANCE
    pixels, _ = records
    answers = load_exported(tmp_path / "net.drifa")(pixels, IDS)
    live = predictor.samples(pixels, {m: np.ones(3, bool) for m in pixels}, IDS)
    np.testing.assert_allclose(answers["lesion"].samples, live["lesion"], atol=TOLERANCE)


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
