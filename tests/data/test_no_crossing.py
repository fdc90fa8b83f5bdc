"""Nobody is tested on whom the network was trained on, whatever the tables look like.

Random tables of two modalities with gaps, shared patients, splits that they bring or not, folds
and every pairing: either the set opens and no id or group crosses, or it is refused by name.
"""

from __future__ import annotations

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from drifa_jax.config import from_mapping, modality
from drifa_jax.data import dataset as dataset_module
from drifa_jax.data.dataset import open_dataset
from drifa_jax.data.pairing import STRATEGIES, groups_of
from drifa_jax.data.record import ModalitySpec, TaskSpec
from drifa_jax.data.records import make_records
from drifa_jax.errors import UserError

SPLITS = ("train", "validation", "test")


class Blank:
    """Reads a picture that says its place."""

    def __init__(self, name):
        self.modality = ModalitySpec(name, 4, 4, 1)

    def __call__(self, place):
        return np.full((4, 4, 1), place, np.uint8)


@st.composite
def tables(draw):
    """Modality -> its rows (id, group, label, split, sex): parts of one cohort, with gaps."""
    size = draw(st.integers(12, 30))
    num_groups = draw(st.integers(8, size))
    brings_splits = draw(st.booleans())
    people = [
        (
            f"r{i}",
            f"p{draw(st.integers(0, num_groups - 1))}",
            i % 2,
            draw(st.sampled_from(SPLITS)) if brings_splits else "",
            draw(st.sampled_from(["f", "m", ""])),
        )
        for i in range(size)
    ]
    parts = {}
    for name in ("mri", "ct"):
        kept = [row for row in people if draw(st.integers(0, 3))]
        # A modality may know its patients under other names.
        renamed = draw(st.booleans())
        parts[name] = [
            (i, f"{name}-{i}" if renamed else group, label, split, sex)
            for i, group, label, split, sex in kept
        ]
    return parts


def scanner(parts):
    def scan(name, config, quarantine=None):
        rows = parts[name]
        return make_records(
            ModalitySpec(name, 4, 4, 1),
            TaskSpec("dx", ("a", "b")),
            ids=[row[0] for row in rows],
            groups=[row[1] for row in rows],
            labels=[row[2] for row in rows],
            places=np.arange(len(rows)),
            splits=[row[3] for row in rows],
            attributes={"sex": [row[4] for row in rows]},
            reader=Blank(name),
            description=f"{name} rows",
        )

    return scan


def config_of(pairing, num_folds, fold):
    fields = {"height": 4, "width": 4, "channels": 1, "root": "rows", "task": "dx"}
    return from_mapping(
        {
            "data": {
                "source": "files",
                "modalities": {name: modality(**fields) for name in ("mri", "ct")},
                "pairing": pairing,
                "num_folds": num_folds,
                "fold": fold,
                "duplicates": "keep",
            }
        }
    ).data


@pytest.mark.parametrize("pairing", sorted(STRATEGIES))
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(parts=tables(), num_folds=st.sampled_from([0, 3]), fold=st.integers(0, 2))
def test_no_id_and_no_group_crosses_splits(pairing, parts, num_folds, fold):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset_module, "scan_modality", scanner(parts))
        try:
            dataset = open_dataset(config_of(pairing, num_folds, fold))
        except UserError:
            return
    splits = {name: getattr(dataset, name) for name in SPLITS}
    for first, second in itertools.combinations(SPLITS, 2):
        for name in dataset.parts:
            one, other = dataset.parts[name][first], dataset.parts[name][second]
            assert not set(one.ids) & set(other.ids)
            assert not set(one.groups) & set(other.groups)
        people = [
            {g for i in range(len(splits[s])) for g in groups_of(splits[s], i)}
            for s in (first, second)
        ]
        assert not people[0] & people[1]
    if pairing == "paired":
        # A patient whom any modality knows by one name is one patient.
        home = {}
        for name, rows in parts.items():
            for record_id, group, *_ in rows:
                where = [s for s in SPLITS if record_id in dataset.parts["paired"][s].ids]
                assert len(where) == 1, "no record is lost, none is there twice"
                assert home.setdefault((name, group), where[0]) == where[0]


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(parts=tables(), pairing=st.sampled_from(["paired", "by_task"]))
def test_attributes_and_labels_arrive_with_their_record(parts, pairing):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset_module, "scan_modality", scanner(parts))
        try:
            dataset = open_dataset(config_of(pairing, 0, 0))
        except UserError:
            return
    known = {row[0]: row for rows in parts.values() for row in rows}
    seen = 0
    for split in SPLITS:
        source = getattr(dataset, split)
        for index in range(len(source)):
            row = known[source.record_id(index).rpartition(":")[2]]
            assert source.attributes(index)["sex"] == row[4]
            assert source.labels("dx")[index] == row[2]
            seen += 1
    assert seen == (len(known) if pairing == "paired" else sum(map(len, parts.values())))
