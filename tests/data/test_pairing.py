"""Pairing strategies: who meets whom, for how long, and what evaluation counts."""

from __future__ import annotations

import numpy as np
import pytest

from drifa_jax.data.pairing import STRATEGIES, combine
from drifa_jax.data.record import MISSING_LABEL, ModalitySpec, Record, Source, TaskSpec
from drifa_jax.errors import UserError


class Single:
    """One modality; record i is a picture of the value i."""

    synthetic = True

    def __init__(self, modality, ids, task=None, labels=None, classes=("no", "yes")):
        self.ids, self.description = list(ids), f"{modality} records"
        self.modalities = (ModalitySpec(modality, 4, 4, 1),)
        self.tasks = (TaskSpec(task or modality, classes),)
        self._labels = np.array(labels or [i % 2 for i in range(len(self.ids))], np.int32)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        modality, task = self.modalities[0], self.tasks[0]
        image = np.full(modality.shape, index, np.uint8)
        return Record(
            self.ids[index],
            self.ids[index],
            {modality.name: image},
            {task.name: int(self._labels[index])},
        )

    def labels(self, task):
        return self._labels

    def record_id(self, index):
        return self.ids[index]

    group_id = record_id

    def attributes(self, index):
        return {}


def sources(num_a=5, num_b=3):
    return {
        "a": Single("a", [f"a{i}" for i in range(num_a)]),
        "b": Single("b", [f"b{i}" for i in range(num_b)]),
    }


def value(record, modality):
    return int(record.images[modality][0, 0, 0])


@pytest.mark.parametrize("strategy", ["index", "random", "by_task"])
@pytest.mark.parametrize("evaluation", [False, True])
def test_combined_sources_are_consistent_sources(strategy, evaluation):
    source = combine(strategy, sources(), evaluation=evaluation)
    assert isinstance(source, Source)
    assert len({source.record_id(i) for i in range(len(source))}) == len(source)
    for task in source.tasks:
        labels = source.labels(task.name)
        assert [source[i].labels[task.name] for i in range(len(source))] == labels.tolist()
    for i in range(len(source)):
        assert source[i].record_id == source.record_id(i)
        assert source[i].group_id == source.group_id(i)


@pytest.mark.parametrize("strategy", ["index", "random", "by_task"])
@pytest.mark.parametrize(("num_a", "num_b"), [(5, 3), (3, 5), (4, 4), (7, 1)])
def test_evaluation_counts_every_record_exactly_once(strategy, num_a, num_b):
    source = combine(strategy, sources(num_a, num_b), evaluation=True)
    for modality, size in (("a", num_a), ("b", num_b)):
        counted = [
            value(source[i], modality)
            for i in range(len(source))
            if source[i].labels[modality] != MISSING_LABEL
        ]
        assert sorted(counted) == list(range(size))


def test_index_pairs_by_place_and_starts_short_sources_again():
    source = combine("index", sources(5, 3), evaluation=False)
    assert len(source) == 5
    assert [value(source[i], "b") for i in range(5)] == [0, 1, 2, 0, 1]
    assert MISSING_LABEL not in source.labels("b")


def test_by_task_leaves_the_other_modality_absent():
    source = combine("by_task", sources(5, 3), evaluation=False)
    assert len(source) == 8
    assert set(source[0].images) == {"a"}
    assert set(source[5].images) == {"b"}
    assert source[5].labels == {"a": MISSING_LABEL, "b": 0}


def test_records_of_strangers_name_their_sources():
    same = {"a": Single("a", ["1", "2"]), "b": Single("b", ["1", "2"])}
    assert combine("index", same, evaluation=False).record_id(1) == "a:2+b:2"
    assert combine("by_task", same, evaluation=False).group_id(2) == "b:1"


def test_paired_joins_by_id_and_keeps_what_lacks_a_modality():
    both = {"a": Single("a", ["x", "y", "z"]), "b": Single("b", ["z", "w", "x"])}
    source = combine("paired", both, evaluation=True)
    by_id = {source.record_id(i): source[i] for i in range(len(source))}
    assert set(by_id) == {"x", "y", "z", "w"}
    assert (value(by_id["z"], "a"), value(by_id["z"], "b")) == (2, 0)
    assert set(by_id["y"].images) == {"a"}
    assert set(by_id["w"].images) == {"b"}
    assert by_id["y"].labels == {"a": 1, "b": MISSING_LABEL}


def test_paired_shares_one_diagnosis():
    both = {
        "a": Single("a", ["x", "y"], "stroke", [0, 1]),
        "b": Single("b", ["y", "x"], "stroke", [1, 0]),
    }
    source = combine("paired", both, evaluation=False)
    assert [task.name for task in source.tasks] == ["stroke"]
    assert source.labels("stroke").tolist() == [0, 1]


def test_paired_refuses_contradicting_labels():
    both = {
        "a": Single("a", ["x", "y"], "stroke", [0, 1]),
        "b": Single("b", ["x", "y"], "stroke", [0, 0]),
    }
    with pytest.raises(UserError, match=r"1 records have different labels .* 'stroke' .* 'y'"):
        combine("paired", both, evaluation=False)


def test_paired_refuses_strangers_and_repeated_ids():
    with pytest.raises(UserError, match="No record id occurs in all"):
        combine("paired", sources(), evaluation=False)
    twice = {"a": Single("a", ["x", "x"]), "b": Single("b", ["x"])}
    with pytest.raises(UserError, match="a source holds the record id 'x' twice"):
        combine("paired", twice, evaluation=False)


def test_a_modality_without_records_is_named():
    with pytest.raises(UserError, match=r"without records: \['b'\]"):
        combine("index", sources(3, 0), evaluation=False)


def test_unknown_strategy_lists_the_known_ones():
    with pytest.raises(ValueError, match="'nearest'; choose one of") as caught:
        combine("nearest", sources(), evaluation=False)
    assert all(name in str(caught.value) for name in STRATEGIES)


def test_one_task_with_two_sets_of_classes_is_refused():
    two = {
        "a": Single("a", ["x"], "stroke"),
        "b": Single("b", ["y"], "stroke", classes=("none", "some")),
    }
    with pytest.raises(UserError, match="'stroke' has the classes"):
        combine("by_task", two, evaluation=False)


def test_one_modality_from_two_sources_is_refused():
    with pytest.raises(ValueError, match=r"modalities \['a'\]"):
        combine("index", {"a": Single("a", ["x"]), "b": Single("a", ["y"])}, evaluation=False)
