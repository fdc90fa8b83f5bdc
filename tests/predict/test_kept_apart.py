"""Runs evaluated together: one split, or the folds of one cross-validation, and nothing else."""

from __future__ import annotations

import pytest

from drifa_jax.config import from_mapping, modality
from drifa_jax.data.split_manifest import Entry, SplitManifest
from drifa_jax.errors import UserError
from drifa_jax.predict.kept_apart import check_apart, folds_of

IDS = [f"r{i}" for i in range(20)]


@pytest.fixture
def make(tmp_path):
    """`make(name, tested, fold=..., group=...)`: a run that trained on all but the tested ids."""

    def make(name, tested, num_folds=0, fold=0, group=lambda name: name):
        config = from_mapping(
            {
                "data": {
                    "modalities": {"mri": modality(root="images")},
                    "num_folds": num_folds,
                    "fold": fold,
                }
            }
        )
        folder = tmp_path / name
        (folder / "splits").mkdir(parents=True)
        (folder / "config.json").write_text(config.to_json())
        entries = {i: Entry(i, group(i), "") for i in IDS}
        splits = {
            "train": tuple(e for i, e in entries.items() if i not in tested),
            "test": tuple(entries[i] for i in tested),
        }
        SplitManifest(0, splits).save(folder / "splits" / "mri.json")
        return folder

    return make


def test_runs_of_one_split_are_one_ensemble(make):
    runs = [make("a", IDS[:4]), make("b", IDS[:4])]
    assert folds_of(runs) == {0: runs}


def test_a_run_that_trained_on_anothers_test_records_is_refused_with_five_of_them(make):
    runs = [make("a", IDS[:8]), make("b", IDS[7:15])]
    with pytest.raises(UserError, match=r"r0, r1, r2, r3, r4 and 2 more, of mri.*split_folder"):
        folds_of(runs)


def test_other_records_of_the_same_patients_are_refused_alike(make):
    """Slices of one patient: tested in one run, trained on in the other."""
    patient = {name: f"p{i // 2}" for i, name in enumerate(IDS)}.get
    runs = [make("a", ["r0"], group=patient), make("b", ["r0"], group=patient)]
    with pytest.raises(UserError, match="same patients: r0, of mri"):
        folds_of(runs)


def test_folds_of_one_cross_validation_are_told_apart(make):
    runs = [make(f"f{k}", IDS[4 * k : 4 * k + 4], num_folds=5, fold=k) for k in (0, 2)]
    twin = make("twin", IDS[8:12], num_folds=5, fold=2)
    assert folds_of([*runs, twin]) == {0: runs[:1], 2: [runs[1], twin]}
    other = make("other", IDS[4:8], num_folds=4, fold=1)
    with pytest.raises(UserError, match="r0, r1, r2, r3, of mri"):
        folds_of([runs[0], other])


def test_validation_records_of_one_that_another_trained_on_calibrate_nothing(make):
    runs = [make("a", IDS[:4]), make("b", IDS[:4])]
    check_apart(runs, "validation")
    manifest = SplitManifest(0, {"validation": (Entry("r9", "r9", ""),)})
    manifest.save(runs[0] / "splits" / "mri.json")
    with pytest.raises(UserError, match=r"trained or tuned on validation records .*: r9, of mri"):
        check_apart(runs, "validation")
