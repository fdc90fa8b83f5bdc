"""The validation records of a run as its network answers them: what a deployment is held against.

They are predicted once, from the run's data, and kept beside the run. Their likeness is measured
by fits that did not see them, as the p-values of new records count it: a record is nearer to a
fit that saw it than any new one could be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drifa_jax.data.pairing import groups_of
from drifa_jax.digests import digest
from drifa_jax.errors import UserError
from drifa_jax.evaluate.records import with_source
from drifa_jax.post_processing.out_of_distribution import left_out_distances, left_out_scores
from drifa_jax.post_processing.saved import PostProcessing
from drifa_jax.predict.kept_apart import check_apart, folds_of
from drifa_jax.predict.predictor import Predictor, load
from drifa_jax.predict.streaming import read_blocks
from drifa_jax.predictions.files import read_predictions, write_predictions
from drifa_jax.predictions.table import Predictions, joined

SMALLEST_REFERENCE = 50
"""Validation records below which nothing is judged."""


@dataclass(frozen=True)
class Reference:
    """What new predictions are held against.

    Attributes:
      predictions: of the validation records, with their labels, groups and attributes.
      fitted: the post-processing of the run.
      run: its name.
    """

    predictions: Predictions
    fitted: PostProcessing
    run: str


def reference_of(
    runs: Sequence[str], num_samples: int, seed: int, say: Callable[[str], None]
) -> Reference:
    """The reference of a run, or of an ensemble of runs that share their validation records.

    Args:
      runs: run directories.
      num_samples, seed: of the predictions to be watched.
      say: told before the validation records are predicted, which happens once.

    Raises:
      UserError: where the run cannot be read, has too few validation records, or is of folds.
    """
    paths = [Path(run) for run in runs]
    if len(folds_of(paths)) > 1:
        raise UserError(
            f"{paths[0]} and the others are folds: each network was trained on the validation "
            "records of another, so that nothing stands for their answers. Monitor one run."
        )
    predictor = load(*runs, num_samples=num_samples, seed=seed)
    assert predictor.post_processing is not None
    path = _path(predictor)
    if path.is_file():
        predictions = read_predictions(path)
    else:
        check_apart(paths, "validation")
        validation = predictor.restored.open_dataset().validation
        say(f"answering {len(validation):,} validation records, once: {path}")
        predictions = answered(predictor, validation)
        write_predictions(predictions, path)
    if len(predictions) < SMALLEST_REFERENCE:
        raise UserError(
            f"{runs[0]} has {len(predictions)} validation records; at least {SMALLEST_REFERENCE} "
            "are needed to hold anything against them."
        )
    return Reference(predictions, predictor.post_processing, ", ".join(p.name for p in paths))


def answered(predictor: Predictor, validation) -> Predictions:
    """All records of a validation split, with the likeness that new records' would be."""
    parts, features = [], []
    for pixels, present, labels, names in read_blocks(predictor.description, validation):
        found = predictor.predict(pixels, present, names)
        tasks = {t: dataclasses.replace(f, truth=labels[t]) for t, f in found.tasks.items()}
        parts.append(dataclasses.replace(found, tasks=tasks))
        features.append(predictor.features(pixels, present))
    whole = with_source(joined(parts), validation)
    groups = [groups_of(validation, row) for row in range(len(validation))]
    known = left_out_distances(np.concatenate(features, 1), whole.present, groups)
    return dataclasses.replace(
        whole,
        out_of_distribution=None if known is None else left_out_scores(known),
        provenance=dataclasses.replace(whole.provenance, split="validation"),
    )


def _path(predictor: Predictor) -> Path:
    """Where a run keeps its validation records' answers, of these weights and samples."""
    fitted = predictor.post_processing
    tasks = {task: found.to_json() for task, found in fitted.tasks.items()}
    facts = [predictor.identity, predictor.num_samples, predictor.seed, tasks]
    return predictor.restored.runs[0] / f"validation-{digest(facts)[:8]}.parquet"
