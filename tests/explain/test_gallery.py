import dataclasses

import numpy as np
import pytest

from drifa_jax.data.record import Record
from drifa_jax.explain.gallery import CELLS, choose, gallery, predict_records


@pytest.fixture(scope="module")
def examples_of(records):
    """Records; the labels of some are wrong, so that there are mistakes, and two have none."""
    pixels, labels = records
    told = labels.copy()
    told[[3, 6, 9]] = 1 - told[[3, 6, 9]]
    told[[14, 15]] = -1
    return [
        Record(
            f"r{row}", f"r{row}", {m: x[row] for m, x in pixels.items()}, {"lesion": int(told[row])}
        )
        for row in range(16)
    ]


def test_cells_hold_what_they_say_with_extremes_first():
    entropy = np.array([0.1, 0.9, 0.2, 0.8, 0.3, 0.7])
    right = np.array([True, True, False, False, True, False])
    assert choose(entropy, right, 1) == [
        (("certain", "right"), 0), (("certain", "wrong"), 2),
        (("uncertain", "right"), 1), (("uncertain", "wrong"), 3),
    ]  # fmt: skip
    places = [place for _, place in choose(entropy, right, 6)]
    assert sorted(places) == list(range(6))


def test_examples_are_typed_and_whole(predictor, examples_of):
    found = gallery(predictor, examples_of, "lesion", per_cell=2)
    assert [CELLS.index(e.cell) for e in found] == sorted(CELLS.index(e.cell) for e in found)
    assert {e.cell[1] for e in found} == {"right", "wrong"}
    assert not {"r14", "r15"} & {e.record_id for e in found}
    for example in found:
        assert (example.true == example.predicted) == (example.cell[1] == "right")
        assert 0.5 <= example.probability <= 1 and example.predictive_entropy >= 0
        for m in ("mri", "ct"):
            assert example.images[m].shape == (32, 32, 1) and example.images[m].dtype == np.uint8
            assert example.maps[m].mean.shape == example.maps[m].spread.shape == (32, 32)
        assert set(example.shapley) == {"mri", "ct"} and example.trained_without


def test_known_measures_are_used_and_give_the_same_gallery(predictor, examples_of):
    known = predict_records(predictor, examples_of, np.arange(16))["lesion"]
    first = gallery(predictor, examples_of, "lesion", per_cell=1)
    second = gallery(predictor, examples_of, "lesion", per_cell=1, uncertainty=known)
    assert [(e.cell, e.record_id) for e in first] == [(e.cell, e.record_id) for e in second]
    with pytest.raises(ValueError, match="16 records but measures of 3"):
        short = {f.name: getattr(known, f.name)[:3] for f in dataclasses.fields(known)}
        gallery(predictor, examples_of, "lesion", uncertainty=type(known)(**short))


def test_absent_modalities_are_missing_from_the_example(predictor, examples_of):
    record = examples_of[0]
    alone = dataclasses.replace(record, images={"mri": record.images["mri"]})
    example = gallery(predictor, [alone], "lesion")[0]
    assert set(example.images) == set(example.maps) == set(example.shapley) == {"mri"}


def test_records_without_labels_give_no_examples(predictor, examples_of):
    assert gallery(predictor, examples_of[14:], "lesion") == []
    with pytest.raises(ValueError, match="task is 'tumour'"):
        gallery(predictor, examples_of, "tumour")
