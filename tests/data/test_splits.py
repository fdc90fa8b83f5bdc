"""Groups stay whole, classes stay balanced, seeds decide."""

from __future__ import annotations

import numpy as np
import pytest

from drifa_jax.data.records import as_records
from drifa_jax.data.sources.phantoms import PhantomSource
from drifa_jax.data.splits import (
    group_ids,
    k_folds,
    leaking_groups,
    split_groups,
    split_source,
)

FRACTIONS = {"train": 0.6, "validation": 0.2, "test": 0.2}


def example(seed=0, num_groups=120):
    """Groups of 1 to 6 records, three classes 6:3:1, one class to a group."""
    generator = np.random.Generator(np.random.Philox(seed))
    sizes = generator.integers(1, 7, num_groups)
    classes = generator.choice(3, num_groups, p=[0.6, 0.3, 0.1])
    groups = np.repeat([f"patient {i}" for i in range(num_groups)], sizes)
    return np.repeat(classes, sizes), groups


def test_split_is_a_partition_that_keeps_groups_whole():
    strata, groups = example()
    parts = split_groups(strata, groups, FRACTIONS, seed=0)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(strata)))
    held = [set(groups[part]) for part in parts.values()]
    assert sum(len(part) for part in held) == len(set(groups))


@pytest.mark.parametrize("seed", range(3))
def test_split_keeps_the_proportions_of_size_and_class(seed):
    strata, groups = example(seed)
    parts = split_groups(strata, groups, FRACTIONS, seed)
    for name, part in parts.items():
        for kind in range(3):
            wanted = FRACTIONS[name] * (strata == kind).sum()
            # A part can be off by half of the largest group at the end of the filling.
            assert abs((strata[part] == kind).sum() - wanted) <= 3, (name, kind)


def test_seed_decides_the_split():
    strata, groups = example()
    first = split_groups(strata, groups, FRACTIONS, 0)["test"]
    np.testing.assert_array_equal(first, split_groups(strata, groups, FRACTIONS, 0)["test"])
    other = split_groups(strata, groups, FRACTIONS, 1)["test"]
    assert len(first) != len(other) or (first != other).any()


def test_no_part_is_empty_when_one_group_holds_nearly_all():
    groups = ["big"] * 97 + ["x", "y", "z"]
    parts = split_groups(np.zeros(100, int), groups, FRACTIONS, 0)
    assert all(len(part) for part in parts.values())


def test_wrong_fractions_and_too_few_groups_are_named():
    strata, groups = example()
    with pytest.raises(ValueError, match="must be positive and add up to 1"):
        split_groups(strata, groups, {"train": 0.9, "test": 0.2}, 0)
    with pytest.raises(ValueError, match="2 groups cannot fill the 3 parts"):
        split_groups(np.zeros(4, int), ["a", "a", "b", "b"], FRACTIONS, 0)


def test_split_source_stratifies_by_all_tasks():
    source = PhantomSource("train", 600, 0, 16)
    parts = split_source(source, {"train": 0.75, "test": 0.25}, seed=0)
    assert not set(group_ids(parts["train"])) & set(group_ids(parts["test"]))
    for task in ("tumour", "stroke"):
        shares = [np.bincount(p.labels(task)) / len(p) for p in parts.values()]
        np.testing.assert_allclose(shares[0], shares[1], atol=0.02)


def test_folds_test_every_record_once_and_never_share_a_group():
    source = PhantomSource("train", 30, 0, 16)
    folds = list(k_folds(source, 5, seed=0))
    tested = [part.record_id(i) for _, part in folds for i in range(len(part))]
    assert sorted(tested) == [source.record_id(i) for i in range(30)]
    assert all(not leaking_groups({"train": a, "test": b}) for a, b in folds)
    assert all(len(a) + len(b) == 30 for a, b in folds)


def test_repeats_draw_other_folds():
    source = PhantomSource("train", 30, 0, 16)
    folds = list(k_folds(source, 3, seed=0, num_repeats=2))
    assert len(folds) == 6
    first, second = (
        [part.record_id(i) for i in range(len(part))] for part in (folds[0][1], folds[3][1])
    )
    assert first != second
    with pytest.raises(ValueError, match="num_folds 1 must be >= 2"):
        next(k_folds(source, 1, seed=0))


def test_groups_that_span_splits_are_reported():
    source = PhantomSource("train", 4, 0, 16)
    records = as_records(source)
    spans = leaking_groups({"train": records.take([0, 1, 2]), "test": records.take([2, 3])})
    assert spans == {source.group_id(2): ("train", "test")}
