"""The rules of a run: fitted on its validation split, saved beside its checkpoints, read again.

A file `decisions-*.json` holds the calibration, sets and thresholds of every task, and the
`.npz` beside it the distance that tells foreign records. Its name changes with everything that
the rules depend on, so that others are never mistaken for them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from drifa_jax.data.pairing import groups_of
from drifa_jax.data.record import MISSING_LABEL, Source
from drifa_jax.errors import UserError
from drifa_jax.predict.decisions import DecisionOptions, TaskDecisions, fit_decisions
from drifa_jax.predict.foreign import ForeignDetector, fit_detector
from drifa_jax.train.run_directory import write_whole
from drifa_jax.whole_files import written_whole

if TYPE_CHECKING:
    from drifa_jax.predict.predictor import Predictor

FORMAT = 3


@dataclass(frozen=True)
class Rules:
    """What was learnt from a validation split besides the network.

    Attributes:
      decisions: task -> calibration, sets and threshold.
      detector: tells foreign records; None where there were too few records to fit it.
      fitted_on: the split, in words.
    """

    decisions: Mapping[str, TaskDecisions]
    detector: ForeignDetector | None
    fitted_on: str


def fit_rules(predictor: Predictor, validation: Source, options: DecisionOptions) -> Rules:
    """The rules of a network from records that it was not trained on.

    Raises:
      UserError: where they say too little.
    """
    pixels, present, labels, names = read_source(predictor, validation)
    groups = [groups_of(validation, row) for row in range(len(names))]
    uncertainty = predictor.uncertainty(pixels, present, names)
    decisions = {}
    for task in predictor.description.tasks:
        try:
            decisions[task] = fit_decisions(uncertainty[task], labels[task], options)
        except ValueError as error:
            raise UserError(
                f"The decisions of {task!r} cannot be fitted on the validation split: {error} "
                "Predict without them by --no-decisions."
            ) from error
    detector = fit_detector(predictor.features(pixels, present), present, groups)
    return Rules(decisions, detector, f"validation split of {validation.description}")


def read_source(predictor: Predictor, source: Source):
    """Pixels and presence by modality, labels by task, and record ids."""
    if not len(source):
        raise UserError(f"{source.description} holds no records.")
    specs = predictor.description.modalities
    tasks = predictor.description.tasks
    count = len(source)
    pixels = {spec.name: np.zeros((count, *spec.shape), spec.dtype) for spec in specs}
    present = {spec.name: np.zeros(count, bool) for spec in specs}
    labels = {task: np.full(count, MISSING_LABEL, np.int32) for task in tasks}
    names = []
    for row in range(count):
        record = source[row]
        names.append(record.record_id)
        for name, image in record.images.items():
            pixels[name][row], present[name][row] = image, True
        for task, label in record.labels.items():
            labels[task][row] = label
    return pixels, present, labels, names


def rules_path(predictor: Predictor, options: DecisionOptions) -> Path:
    """Where the first run keeps the rules of these members, samples, seed and options."""
    restored = predictor.restored
    facts: Any = [
        [str(run.resolve()) for run in restored.runs[1:]],
        restored.steps,
        predictor.num_samples,
        predictor.seed,
        dataclasses.astuple(options),
        FORMAT,
    ]
    digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=4).hexdigest()
    return restored.runs[0] / f"decisions-{digest}.json"


def save_rules(rules: Rules, path: Path) -> None:
    """Writes the `.npz` first: whoever finds the rules finds the arrays too."""
    if rules.detector is not None:
        with written_whole(path.with_suffix(".npz")) as partial:
            np.savez(partial, **rules.detector.to_arrays())
    document = {
        "format": FORMAT,
        "fitted_on": rules.fitted_on,
        "tells_foreign_records": rules.detector is not None,
        "decisions": {task: of.to_json() for task, of in rules.decisions.items()},
    }
    write_whole(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def read_rules(path: Path, tasks: Mapping[str, Any]) -> Rules | None:
    """The rules in a file, None where there is no such file.

    Raises:
      UserError: when it is damaged or holds the rules of other tasks.
    """
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text())
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']}, not {FORMAT}")
        if set(document["decisions"]) != set(tasks):
            raise ValueError("its tasks are not the run's")
        decisions = {
            task: TaskDecisions.from_json(of) for task, of in document["decisions"].items()
        }
        detector = None
        if document["tells_foreign_records"]:
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
                detector = ForeignDetector.from_arrays(arrays)
        return Rules(decisions, detector, document["fitted_on"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, BadZipFile) as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it, and the rules are fitted anew."
        ) from error
