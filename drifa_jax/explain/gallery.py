"""Examples worth looking at: certain and uncertain, right and wrong, with their explanations.

Nothing is drawn here; the results are small arrays with names, for reports and notebooks.

    from drifa_jax.explain.gallery import gallery
    examples = gallery(predictor, dataset.test, "tumour")
    examples[0].cell, examples[0].images["mri"], examples[0].maps["mri"].mean
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from drifa_jax.data.record import MISSING_LABEL, Record, Source, stack_records
from drifa_jax.explain.explanation import Explanation, explain_records
from drifa_jax.predict.predictor import Predictor
from drifa_jax.uncertainty.measures import Uncertainty

CELLS = (
    ("certain", "right"),
    ("certain", "wrong"),
    ("uncertain", "right"),
    ("uncertain", "wrong"),
)
"""The order of the gallery."""

FIELDS = fields(Uncertainty)


@dataclass(frozen=True)
class Example(Explanation):
    """One record of the gallery: the explanation of what it was called, and what it is.

    Attributes:
      cell: ("certain" or "uncertain", "right" or "wrong").
      true: class name.
    """

    cell: tuple[str, str]
    true: str


def gallery(
    predictor: Predictor,
    records: Source | Sequence[Record],
    task: str,
    *,
    per_cell: int = 2,
    uncertainty: Uncertainty | None = None,
) -> list[Example]:
    """The most telling records of each cell, in the order of `CELLS`.

    A record counts as uncertain when its predictive entropy is above the median of the labelled
    records. Certain cells take the lowest entropies, uncertain cells the highest, so a confident
    mistake comes first in its cell. A cell without records is left out.

    Args:
      predictor: a run or an ensemble.
      records: with images as training saw them; those without a label of the task are passed
        over.
      task: whose answers are shown.
      per_cell: examples of each cell at most.
      uncertainty: of all records in order, where it is known already; else it is predicted.

    Raises:
      ValueError: for an unknown task, or measures that do not fit the records.

    Test: tests/explain/test_gallery.py.
    """
    names = predictor.description.tasks
    if task not in names:
        raise ValueError(f"task is {task!r}; the network answers {sorted(names)}.")
    labels = _labels(records, task)
    kept = np.flatnonzero(labels != MISSING_LABEL)
    if not len(kept):
        return []
    if uncertainty is None:
        known, measured = np.arange(len(kept)), predict_records(predictor, records, kept)[task]
    elif len(uncertainty.predictive_entropy) != len(labels):
        raise ValueError(
            f"There are {len(labels)} records but measures of "
            f"{len(uncertainty.predictive_entropy)}."
        )
    else:
        known, measured = kept, uncertainty
    called = np.asarray(measured.probabilities)[known].argmax(-1)
    entropy = np.asarray(measured.predictive_entropy)[known]
    chosen = choose(entropy, called == labels[kept], per_cell)
    if not chosen:
        return []
    places = np.array([place for _, place in chosen])
    shown = [records[int(kept[place])] for place in places]
    explanations = explain_records(
        predictor,
        [record.record_id for record in shown],
        *stack_records(shown, predictor.description.modalities),
        task,
        uncertainty=Uncertainty(
            **{f.name: np.asarray(getattr(measured, f.name))[known[places]] for f in FIELDS}
        ),
    )
    return [
        Example(**vars(explanation), cell=cell, true=names[task][labels[kept[place]]])
        for explanation, (cell, place) in zip(explanations, chosen, strict=True)
    ]


def choose(
    entropy: np.ndarray, right: np.ndarray, per_cell: int
) -> list[tuple[tuple[str, str], int]]:
    """(cell, place) of the chosen records: no record twice, extremes first in each cell."""
    uncertain = entropy > np.median(entropy)
    chosen = []
    for cell in CELLS:
        doubt = cell[0] == "uncertain"
        places = np.flatnonzero((uncertain == doubt) & (right == (cell[1] == "right")))
        order = np.argsort(-entropy[places] if doubt else entropy[places], kind="stable")
        chosen += [(cell, int(place)) for place in places[order[:per_cell]]]
    return chosen


def predict_records(
    predictor: Predictor, records: Source | Sequence[Record], rows: np.ndarray
) -> dict[str, Uncertainty]:
    """Measures by task of some of the records, in the order of `rows`."""
    shown = [records[int(row)] for row in rows]
    pixels, present = stack_records(shown, predictor.description.modalities)
    return predictor.uncertainty(pixels, present, [record.record_id for record in shown])


def _labels(records: Source | Sequence[Record], task: str) -> np.ndarray:
    if isinstance(records, Source):
        return np.asarray(records.labels(task))
    return np.array([record.labels.get(task, MISSING_LABEL) for record in records], np.int32)
