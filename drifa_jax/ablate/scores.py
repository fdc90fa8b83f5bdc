"""What one trained network said of the test records of a task: all that an ablation compares."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drifa_jax.errors import UserError
from drifa_jax.whole_files import written_whole


@dataclass(frozen=True)
class Scores:
    """The labelled test records of one task, ordered by id.

    Attributes:
      record_ids: `[n]` str, unique; the same record has the same id in every variant.
      groups: `[n]` str, the patient or lesion.
      labels: `[n]` int32.
      probabilities: `[n, k]` float32, without dropout.
    """

    record_ids: np.ndarray
    groups: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray

    @classmethod
    def of_labelled(cls, record_ids, groups, labels, probabilities) -> Scores:
        """From arrays of all records, in any order; those without a label are left out."""
        kept = np.flatnonzero(np.asarray(labels) >= 0)
        record_ids = np.asarray(record_ids, str)[kept]
        order = kept[np.argsort(record_ids, kind="stable")]
        return cls(
            np.sort(record_ids),
            np.asarray(groups, str)[order],
            np.asarray(labels)[order].astype(np.int32),
            np.asarray(probabilities)[order].astype(np.float32),
        )


def save(path: Path, by_task: Mapping[str, Scores]) -> None:
    """Writes the scores of one network as `.npz`, whole or not at all."""
    arrays = {
        f"{task}/{field}": getattr(scores, field)
        for task, scores in by_task.items()
        for field in Scores.__dataclass_fields__
    }
    with written_whole(path) as partial:
        np.savez_compressed(partial, **arrays)


def load(path: Path) -> dict[str, Scores]:
    """Task -> scores, as `save` wrote them.

    Raises:
      UserError: when the file is damaged.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = dict(file)
        tasks = dict.fromkeys(name.rpartition("/")[0] for name in arrays)
        return {
            task: Scores(*(arrays[f"{task}/{field}"] for field in Scores.__dataclass_fields__))
            for task in tasks
        }
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it, and the run is tested again."
        ) from error
