"""Post-processing beside a run's checkpoints: written once, checked when it is read.

A file `post_processing-*.json` holds the calibration, sets and thresholds of every task, and the
`.npz` beside it the distance that tells records out of distribution. It carries the identity of
the weights and preprocessing that it was fitted for and a digest of itself and of the arrays:
that of other weights, or one that was changed, is never applied.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from drifa_jax.digests import sha256
from drifa_jax.errors import UserError
from drifa_jax.post_processing.out_of_distribution import DistanceDetector, fit_detector
from drifa_jax.post_processing.task import PostProcessingOptions, TaskPostProcessing, fit_task
from drifa_jax.uncertainty.measures import Uncertainty
from drifa_jax.whole_files import written_whole

FORMAT = 4


@dataclass(frozen=True)
class PostProcessing:
    """What was learnt from a validation split besides the network.

    Attributes:
      tasks: task -> calibration, sets and threshold.
      detector: tells records out of distribution; None where there were too few to fit it.
      fitted_on: the split, in words.
      identity: of the weights and preprocessing that it was fitted for.
    """

    tasks: Mapping[str, TaskPostProcessing]
    detector: DistanceDetector | None
    fitted_on: str
    identity: str


def fit(
    uncertainty: Mapping[str, Uncertainty],
    labels: Mapping[str, np.ndarray],
    classes: Mapping[str, Sequence[str]],
    features: np.ndarray | None,
    present: Mapping[str, np.ndarray],
    groups: Sequence[Sequence[str]],
    options: PostProcessingOptions,
    *,
    fitted_on: str,
    identity: str,
) -> PostProcessing:
    """Post-processing from `n` records that the network was not trained on.

    Args:
      uncertainty, labels, classes: by task.
      features: fused features `[e, n, d]`; None tells nothing out of distribution.
      present: modality -> `[n]` bool.
      groups: of each record, those that it belongs to.
      options: how.
      fitted_on, identity: see `PostProcessing`.

    Raises:
      UserError: where they say too little.
    """
    tasks = {}
    for task, names in classes.items():
        try:
            tasks[task] = fit_task(uncertainty[task], labels[task], options, names)
        except ValueError as error:
            raise UserError(
                f"The post-processing of {task!r} cannot be fitted on the validation split: "
                f"{error} Predict without it by --no-post-processing."
            ) from error
    detector = None if features is None else fit_detector(features, present, groups)
    return PostProcessing(tasks, detector, fitted_on, identity)


def path_in(
    run: Path, identity: str, num_samples: int, seed: int, options: PostProcessingOptions
) -> Path:
    """Where a run keeps what was fitted for these weights, samples, seed and options."""
    facts = [identity, num_samples, seed, dataclasses.astuple(options), FORMAT]
    digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=4).hexdigest()
    return run / f"post_processing-{digest}.json"


def save(fitted: PostProcessing, path: Path) -> None:
    """Writes the `.npz` first: whoever finds the post-processing finds the arrays too."""
    digest = None
    if fitted.detector is not None:
        packed = io.BytesIO()
        np.savez(packed, **fitted.detector.to_arrays())
        digest = hashlib.sha256(packed.getvalue()).hexdigest()
        with written_whole(path.with_suffix(".npz")) as partial:
            partial.write_bytes(packed.getvalue())
    document = {
        "format": FORMAT,
        "identity": fitted.identity,
        "fitted_on": fitted.fitted_on,
        "out_of_distribution_sha256": digest,
        "tasks": {task: found.to_json() for task, found in fitted.tasks.items()},
    }
    document["sha256"] = sha256(document)
    with written_whole(path) as partial:
        partial.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")


def read(path: Path, classes: Mapping[str, Sequence[str]], identity: str) -> PostProcessing | None:
    """What a file holds; None where there is none, or one that was fitted for other weights.

    Args:
      path: of the `.json`.
      classes: task -> class names, of the run.
      identity: of its weights and preprocessing.

    Raises:
      UserError: when it is damaged, was changed, or holds impossible values.
    """
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text())
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']}, not {FORMAT}")
        if document.pop("sha256") != sha256(document):
            raise ValueError("it is not what was written")
        if document["identity"] != identity:
            return None
        if set(document["tasks"]) != set(classes):
            raise ValueError("its tasks are not the run's")
        tasks = {
            task: TaskPostProcessing.from_json(values, len(classes[task]))
            for task, values in document["tasks"].items()
        }
        detector = None
        if document["out_of_distribution_sha256"] is not None:
            packed = path.with_suffix(".npz").read_bytes()
            if hashlib.sha256(packed).hexdigest() != document["out_of_distribution_sha256"]:
                raise ValueError("its .npz is not what was written")
            with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
                detector = DistanceDetector.from_arrays(dict(arrays))
        return PostProcessing(tasks, detector, str(document["fitted_on"]), identity)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, BadZipFile) as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it, and the post-processing is fitted anew."
        ) from error
