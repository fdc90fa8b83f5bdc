"""Examples worth looking at: certain and uncertain, right and wrong, with their explanations.

Nothing is drawn here; the results are small arrays with names, for reports and notebooks.

    from drifa_jax.explain.gallery import gallery
    examples = gallery(predictor, dataset.test, "tumour")
    examples[0].cell, examples[0].images["mri"], examples[0].maps["mri"].mean
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drifa_jax.data.record import MISSING_LABEL, Record, Source
from drifa_jax.explain.contribution import contributions
from drifa_jax.explain.grad_cam import grad_cam
from drifa_jax.predict.predictor import Predictor
from drifa_jax.uncertainty.measures import Uncertainty

CELLS = (
    ("certain", "right"),
    ("certain", "wrong"),
    ("uncertain", "right"),
    ("uncertain", "wrong"),
)
"""The order of the gallery."""


@dataclass(frozen=True)
class ExampleMap:
    """Grad-CAM of one modality of one record, for the predicted class.

    Attributes:
      mean: `[h, w]` float32 in 0..1, over the members, at the size of the image.
      spread: `[h, w]`, standard deviation over the members; zero of a single network.
    """

    mean: np.ndarray
    spread: np.ndarray


@dataclass(frozen=True)
class Example:
    """One record of the gallery.

    Attributes:
      cell: ("certain" or "uncertain", "right" or "wrong").
      record_id: of the record.
      task: whose answer is shown.
      true, predicted: class names.
      probability: of the predicted class.
      predictive_entropy, mutual_information: of the record, in nats.
      images: modality -> `[h, w, c]` uint8 at the network's size; absent ones are missing.
      maps: modality -> Grad-CAM of the predicted class.
      shapley: modality -> contribution to the probability of the predicted class, mean over
        members, starting from equally probable classes.
      shapley_spread: the same, standard deviation over members.
      trained_without: whether the network ever saw records that lack a modality; if not, the
        contributions are extrapolations and should be shown as such, or not at all.
    """

    cell: tuple[str, str]
    record_id: str
    task: str
    true: str
    predicted: str
    probability: float
    predictive_entropy: float
    mutual_information: float
    images: Mapping[str, np.ndarray]
    maps: Mapping[str, ExampleMap]
    shapley: Mapping[str, float]
    shapley_spread: Mapping[str, float]
    trained_without: bool


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
    probabilities = np.asarray(measured.probabilities)[known]
    entropy = np.asarray(measured.predictive_entropy)[known]
    information = np.asarray(measured.mutual_information)[known]
    called = probabilities.argmax(-1)
    chosen = choose(entropy, called == labels[kept], per_cell)
    if not chosen:
        return []
    places = np.array([place for _, place in chosen])
    shown = [records[int(kept[place])] for place in places]
    pixels, present = _stack(predictor, shown)
    maps = grad_cam(predictor.restored, pixels, task, called[places], present=present)
    shares = contributions(predictor.restored, pixels, task, called[places], present=present)
    examples = []
    for row, (cell, place) in enumerate(chosen):
        held = [m for m in pixels if present[m][row]]
        examples.append(
            Example(
                cell=cell,
                record_id=shown[row].record_id,
                task=task,
                true=names[task][labels[kept[place]]],
                predicted=names[task][called[place]],
                probability=float(probabilities[place, called[place]]),
                predictive_entropy=float(entropy[place]),
                mutual_information=float(information[place]),
                images={m: pixels[m][row] for m in held},
                maps={m: ExampleMap(maps[m].mean[row], maps[m].spread[row]) for m in held},
                shapley={m: float(shares.shapley[m][:, row].mean()) for m in held},
                shapley_spread={m: float(shares.shapley[m][:, row].std()) for m in held},
                trained_without=shares.trained_for_it,
            )
        )
    return examples


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
    pixels, present = _stack(predictor, shown)
    return predictor.uncertainty(pixels, present, [record.record_id for record in shown])


def _labels(records: Source | Sequence[Record], task: str) -> np.ndarray:
    if isinstance(records, Source):
        return np.asarray(records.labels(task))
    return np.array([record.labels.get(task, MISSING_LABEL) for record in records], np.int32)


def _stack(
    predictor: Predictor, records: Sequence[Record]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Pixels and presence of records, by modality."""
    pixels, present = {}, {}
    for spec in predictor.description.modalities:
        held = [spec.name in record.images for record in records]
        present[spec.name] = np.array(held)
        pixels[spec.name] = np.stack(
            [
                record.images[spec.name] if has else np.zeros(spec.shape, spec.dtype)
                for record, has in zip(records, held, strict=True)
            ]
        )
    return pixels, present
