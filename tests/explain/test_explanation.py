"""One record explained: everything is there, and a table has what a table can have."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from drifa_jax.config import from_mapping, modality
from drifa_jax.data.record import ModalitySpec, TabularSpec
from drifa_jax.data.table import TableColumns, fit_table
from drifa_jax.explain.explanation import explain_records
from drifa_jax.explain.gates import gate_rows, gates
from drifa_jax.models.building import drifa_net
from drifa_jax.models.functional import Functional
from drifa_jax.network_options import NetworkOptions
from drifa_jax.predict.described import Description
from drifa_jax.predict.predictor import Predictor
from drifa_jax.predict.reading import TABLE, Reading
from drifa_jax.predict.restored import Restored

ROWS = [{"age": "40", "sex": "f"}, {"age": "60", "sex": "m"}, {"age": "", "sex": "f"}]


def test_an_explanation_is_whole_and_of_the_class_that_was_asked_for(predictor, records):
    pixels = {m: x[:3] for m, x in records[0].items()}
    present = {"mri": np.ones(3, bool), "ct": np.array([True, False, True])}
    names = ["a", "b", "c"]
    called = explain_records(predictor, names, pixels, present, "lesion")
    assert [one.record_id for one in called] == names
    assert [set(one.maps) for one in called] == [{"mri", "ct"}, {"mri"}, {"mri", "ct"}]
    for one in called:
        assert one.probability >= 0.5 and one.rows == {}
        assert set(one.shapley) == set(one.leave_one_out) == set(one.images)
    asked = explain_records(
        predictor, names, pixels, present, "lesion", classes=np.array([1, 1, 0])
    )
    assert [one.predicted for one in asked] == ["square", "square", "none"]
    for one, other in zip(called, asked, strict=True):
        if one.predicted != other.predicted:
            assert one.probability == pytest.approx(1 - other.probability, abs=1e-6)
    with pytest.raises(ValueError, match="task is 'tumour'"):
        explain_records(predictor, names, pixels, present, "tumour")


@pytest.fixture(scope="module")
def with_table():
    """A predictor of an untrained network that reads an image and a row, and three records."""
    encoding = fit_table(TableColumns("clinic", ("age",), ("sex",)), ROWS)
    num_features = encoding.spec.num_features
    options = NetworkOptions(width=2, backbone="resnet10", fuse_at=(0, -1))

    def build(rngs):
        return drifa_net(
            {"mri": 1}, {"lesion": 2}, options=options, tables={"clinic": num_features}, rngs=rngs
        )

    network = Functional(build)
    params, statistics = network.init(jax.random.key(0)[None])
    description = Description(
        (ModalitySpec("mri", 16, 16, 1), TabularSpec("clinic", num_features)),
        {"mri": Reading(), "clinic": Reading(TABLE, encoding=encoding, id_column="id")},
        {"lesion": ("no", "yes")},
        True,
        True,
        "noise and rows",
    )
    small = modality(height=16, width=16, channels=1)
    config = from_mapping({"data": {"modalities": {"mri": small}}})
    restored = Restored((Path("run"),), config, description, network, params, statistics, (1,), "")
    images = np.random.default_rng(0).integers(0, 255, (3, 16, 16), np.uint8)
    return Predictor(restored, num_samples=2), {"mri": list(images), "clinic": [*ROWS[:2], None]}


def test_a_table_has_a_row_and_a_contribution_but_no_map(with_table):
    predictor, images = with_table
    pixels, present = predictor.read(images)
    first, _, last = explain_records(predictor, ["a", "b", "c"], pixels, present, "lesion")
    assert first.rows == {"clinic": {"age": "40", "sex": "f"}}
    assert set(first.maps) == set(first.images) == {"mri"}
    assert set(first.shapley) == {"mri", "clinic"}
    assert last.rows == {} and set(last.shapley) == {"mri"}
    # Both together are worth what the record is worth: its probability without dropout.
    p = probability_of(predictor, pixels, present, first.predicted)
    assert first.shapley["mri"] + first.shapley["clinic"] == pytest.approx(p[0] - 0.5, abs=1e-5)
    # Its branch holds no gate; what refines it stands after the stages.
    rows = gate_rows(gates(predictor.restored, pixels, present=present))
    places = {row["place"].split()[0] for row in rows if row["modality"] == "clinic"}
    assert places == {"after"}
    json.dumps(rows)


def probability_of(predictor, pixels, present, name):
    """Probability `[b]` of a class, without dropout."""
    restored = predictor.restored
    params, statistics = jax.tree.map(lambda leaf: leaf[0], (restored.params, restored.statistics))

    @jax.jit
    def answer(params, statistics):
        x = {"mri": pixels["mri"].astype(np.float32) / 255, "clinic": pixels["clinic"]}
        (logits, _), _ = restored.network.apply(
            params, statistics, x, train=False, present=dict(present)
        )
        return jax.nn.softmax(logits["lesion"])

    return np.asarray(answer(params, statistics))[:, ("no", "yes").index(name)]
