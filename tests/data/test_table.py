"""Tables become numbers by training rows alone; missing and unseen are values of their own."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from drifa_jax.data.record import Source
from drifa_jax.data.records import as_records
from drifa_jax.data.sources.phantoms import PhantomSource
from drifa_jax.data.table import (
    TableColumns,
    add_table,
    common_encoding,
    fit_table,
    read_table,
    translation,
)
from drifa_jax.errors import UserError

COLUMNS = TableColumns("patient", numeric=("age",), categorical=("sex", "site"))
TRAIN = [
    {"age": "40", "sex": "male", "site": "back"},
    {"age": "60", "sex": "female", "site": "face"},
    {"age": "", "sex": "unknown", "site": "back"},
]


def features(row):
    encoding = fit_table(COLUMNS, TRAIN)
    return dict(zip(encoding.feature_names, encoding.encode(row), strict=True))


def test_numbers_are_normalised_by_training_rows():
    assert features(TRAIN[0])["age"] == pytest.approx(-1)
    assert features({"age": "90"})["age"] == pytest.approx(4)


def test_missing_values_are_told_from_average_ones():
    average, missing = (
        features({"age": "50", "sex": "male"}),
        features({"age": "NA", "sex": "male"}),
    )
    assert average["age"] == missing["age"] == 0
    assert (average["age missing"], missing["age missing"]) == (0, 1)


def test_categories_are_one_hot_with_places_for_missing_and_unseen():
    assert features(TRAIN[0])["site = back"] == 1
    unseen, missing = features({"age": "1", "site": "ear"}), features({"age": "1", "site": ""})
    assert unseen["site not seen in training"] == missing["site missing"] == 1
    assert unseen["site = back"] == unseen["site = face"] == unseen["site missing"] == 0
    assert "sex = unknown" not in unseen


def test_constant_columns_stay_finite():
    encoding = fit_table(TableColumns("t", numeric=("age",)), [{"age": "5"}, {"age": "5"}])
    np.testing.assert_array_equal(encoding.encode({"age": "7"}), [2, 0])


def test_features_are_told_in_words_again():
    encoding = fit_table(COLUMNS, TRAIN)
    for row, words in (
        (TRAIN[0], {"age": "40", "sex": "male", "site": "back"}),
        ({"age": "", "sex": "?", "site": "ear"},
         {"age": "missing", "sex": "missing", "site": "not seen in training"}),
    ):  # fmt: skip
        assert encoding.decode(encoding.encode(row)) == words


def test_a_row_without_any_value_is_an_absent_modality():
    assert fit_table(COLUMNS, TRAIN).encode({"age": "", "sex": "?"}) is None


def test_table_joins_a_source_and_is_fitted_on_its_training_split_alone():
    source = PhantomSource("train", 6, 0, 16)
    rows = {source.record_id(i): {"age": str(10 * i)} for i in range(5)}
    splits = {
        "train": as_records(source).take([0, 1, 2]),
        "test": as_records(source).take([3, 4, 5]),
    }
    joined, encoding = add_table(splits, rows, TableColumns("patient", numeric=("age",)))
    assert isinstance(joined["test"], Source)
    assert encoding.means == (10.0,)
    assert joined["train"].modalities[-1].shape == (2,)
    values = [joined["train"][i].images["patient"][0] for i in range(3)]
    np.testing.assert_allclose(values, [-1.2247, 0, 1.2247], atol=1e-4)
    assert joined["test"][0].images["patient"].dtype == np.float32
    assert "patient" not in joined["test"][2].images
    assert "mri" in joined["test"][2].images


def test_wrong_columns_and_cells_are_listed():
    with pytest.raises(UserError, match="2 problems") as caught:
        fit_table(TableColumns("t", numeric=("weight",), categorical=("ward",)), TRAIN)
    assert "weight: is no column of the table; it has age, sex, site" in str(caught.value)
    rows = [{"age": "old"}, {"age": "4"}, {"age": "inf"}]
    with pytest.raises(UserError, match=r"'old' in the column 'age'[\s\S]*'inf'"):
        fit_table(TableColumns("t", numeric=("age",)), rows)
    with pytest.raises(UserError, match="no value in training"):
        fit_table(TableColumns("t", numeric=("age",)), [{"age": ""}])
    with pytest.raises(ValueError, match="each numeric or categorical"):
        TableColumns("t", numeric=("a",), categorical=("a",))


def test_csv_and_parquet_read_alike(tmp_path):
    (tmp_path / "t.csv").write_text("\ufeffid,age\na,40\nb,\n\n")
    table = pa.table({"id": ["a", "b"], "age": [40, None]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    expected = [{"id": "a", "age": "40"}, {"id": "b", "age": ""}]
    assert read_table(tmp_path / "t.csv") == expected
    assert read_table(tmp_path / "t.parquet") == expected


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", "", "is empty"),
        ("t.csv", "a,a\n1,2\n", "names the column 'a' more than once"),
        ("t.csv", "a,b\n1,2\n1\n", "line 3: has 1 cells, the header 2"),
        ("t.parquet", "words", "is not a Parquet file"),
    ],
)
def test_broken_tables_are_named(name, text, words, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        read_table(tmp_path / name)
    with pytest.raises(UserError, match="does not exist"):
        read_table(tmp_path / "none.csv")


def test_a_common_encoding_translates_into_what_each_training_set_says_of_a_row():
    other = fit_table(COLUMNS, [*TRAIN[:1], {"age": "81", "sex": "other", "site": "toe"}])
    ours = fit_table(COLUMNS, TRAIN)
    common = common_encoding([ours, other])
    rows = [
        *({"age": a, "sex": s} for a in ("", "52.5") for s in ("male", "other")),
        {"age": "52.5", "sex": "?"},
        {"sex": "a third", "site": "toe"},
        {"age": "7", "site": "face"},
    ]
    for own in (ours, other):
        matrix, shift = translation(common, own)
        for row in rows:
            features = common.encode(row) @ matrix + shift
            # float32 features of either side.
            np.testing.assert_allclose(features, own.encode(row), atol=1e-6)
