"""Which runs may be judged or calibrated together: those that kept the same records apart.

A run that trained on another's test records must not answer them, nor may its answers to another's
validation records calibrate it. Runs that are folds of one cross-validation are the exception that
can be put right: each record is answered by the runs of its fold, which never saw it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from drifa_jax.config import DataConfig
from drifa_jax.data.problems import some_of
from drifa_jax.data.split_manifest import SplitManifest, load_split
from drifa_jax.errors import UserError
from drifa_jax.train.run_directory import SPLITS_FOLDER, saved_config


def folds_of(runs: Sequence[Path]) -> dict[int, list[Path]]:
    """Fold -> its runs, of runs that may be evaluated together; one fold 0 of all but folds.

    Raises:
      UserError: naming up to five test records of one run that another trained on, where the two
        are no folds of one cross-validation.

    Test: tests/predict/test_kept_apart.py.
    """
    configs = [saved_config(run).data for run in runs]
    if len(runs) > 1 and _are_folds(configs):
        folds: dict[int, list[Path]] = {}
        for run, config in zip(runs, configs, strict=True):
            folds.setdefault(config.fold, []).append(run)
        for members in folds.values():
            check_apart(members)
        return folds
    check_apart(runs)
    return {0: list(runs)}


def saved_splits(run: Path) -> dict[str, SplitManifest]:
    """Modality -> who was in which split; empty where the run kept none."""
    return {path.stem: load_split(path) for path in sorted((run / SPLITS_FOLDER).glob("*.json"))}


def _are_folds(configs: Sequence[DataConfig]) -> bool:
    """Whether they draw the same folds and differ in the one that they test."""
    same = {repr(replace(config, fold=0)) for config in configs}
    return len(same) == 1 and configs[0].num_folds > 1 and len({c.fold for c in configs}) > 1


def check_apart(runs: Sequence[Path], held_out: str = "test") -> None:
    """An error where a run trained or was tuned on what another kept apart in a split.

    Args:
      runs: of one ensemble.
      held_out: the split: test, or validation, on which all may be tuned but none be trained.

    Raises:
      UserError: naming up to five such records.
    """
    apart = {"test"} if held_out == "test" else {"test", "validation"}
    splits = {run: saved_splits(run) for run in runs}
    for run, own in splits.items():
        for other, theirs in splits.items():
            for modality in own.keys() & theirs.keys():
                tested = own[modality].splits.get(held_out, ())
                seen = [
                    entry
                    for name, entries in theirs[modality].splits.items()
                    if name not in apart
                    for entry in entries
                ]
                ids = {entry.record_id for entry in seen}
                groups = {entry.group_id for entry in seen}
                both = [e.record_id for e in tested if e.record_id in ids or e.group_id in groups]
                if other != run and both:
                    raise UserError(
                        f"{other} was trained or tuned on {held_out} records of {run}, or on "
                        f"others of the same patients: {some_of(both)}, of {modality}. "
                        "Together they would answer what one of them knows. Give runs that share "
                        "their splits (the same data.split_seed, or data.split_folder of the "
                        "first), or the folds of one cross-validation (data.num_folds)."
                    )
