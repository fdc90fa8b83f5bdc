"""Why one record was called what it was: maps of its images, and what each modality gave.

Nothing is drawn here; the results are small arrays with names, for reports, files and notebooks.

    from drifa_jax.explain.explanation import explain_records
    pixels, present = predictor.read({"mri": ["a.png"], "ct": ["b.png"]})
    one, = explain_records(predictor, ["a"], pixels, present, "tumour")
    one.predicted, one.maps["mri"].mean, one.shapley["ct"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drifa_jax.data.record import TabularSpec
from drifa_jax.explain.contribution import contributions
from drifa_jax.explain.grad_cam import grad_cam
from drifa_jax.explain.members import Pixels, Present
from drifa_jax.predict.predictor import Predictor
from drifa_jax.uncertainty.measures import Uncertainty


@dataclass(frozen=True)
class RecordMap:
    """Grad-CAM of one modality of one record.

    Attributes:
      mean: `[h, w]` float32 in 0..1, over the members, at the size of the image; `[d, h, w]` of a
        volume.
      spread: likewise, standard deviation over the members; zero of a single network.
    """

    mean: np.ndarray
    spread: np.ndarray

    @property
    def hottest(self) -> list[int]:
        """Place of the warmest pixel, along each axis of the map."""
        return [int(i) for i in np.unravel_index(self.mean.argmax(), self.mean.shape)]


@dataclass(frozen=True)
class Explanation:
    """One record and one task.

    Attributes:
      record_id: of the record.
      task: whose answer is explained.
      predicted: the class that is explained, by name.
      probability: of it, uncalibrated.
      predictive_entropy, mutual_information: of the record, in nats.
      images: modality -> `[h, w, c]` uint8 at the network's size, of volumes `[d, h, w, c]`; absent
        ones are missing.
      rows: tabular modality -> column -> value in words; absent ones are missing.
      maps: modality -> Grad-CAM of the class, of images alone: a table has no places to map.
      shapley: modality -> contribution to the probability of the class without dropout, mean over
        members, starting from equally probable classes.
      shapley_spread: the same, standard deviation over members.
      leave_one_out: modality -> how much that probability falls without it, mean over members.
      factors: expert -> what it adds to the log probability of the class, in nats, above what it
        adds to the average class, mean over members; of readouts that combine experts.
      trained_without: whether the network ever saw records that lack a modality; if not, the
        contributions are extrapolations and should be shown as such, or not at all.
    """

    record_id: str
    task: str
    predicted: str
    probability: float
    predictive_entropy: float
    mutual_information: float
    images: Mapping[str, np.ndarray]
    rows: Mapping[str, Mapping[str, str]]
    maps: Mapping[str, RecordMap]
    shapley: Mapping[str, float]
    shapley_spread: Mapping[str, float]
    leave_one_out: Mapping[str, float]
    factors: Mapping[str, float]
    trained_without: bool

    def contributions(self) -> dict[str, dict[str, float]]:
        """Modality -> what it gave, by measure: plain values, for files."""
        return {
            m: {
                "shapley": self.shapley[m],
                "shapley_spread": self.shapley_spread[m],
                "leave_one_out": self.leave_one_out[m],
            }
            for m in self.shapley
        }


def explain_records(
    predictor: Predictor,
    record_ids: Sequence[str],
    pixels: Pixels,
    present: Present,
    task: str,
    *,
    uncertainty: Uncertainty | None = None,
    classes: np.ndarray | None = None,
) -> list[Explanation]:
    """One explanation a record, in their order.

    Args:
      predictor: a run or an ensemble.
      record_ids: `b` names.
      pixels: modality -> `[b, h, w, c]` uint8 at the network's size (of a table, its features),
        as `Predictor.read` gives them.
      present: modality -> `[b]` bool.
      task: whose answers are explained.
      uncertainty: of these records, where it is known already; else it is predicted.
      classes: `[b]` int, the class to explain; None takes the most probable one.

    Raises:
      ValueError: for an unknown task or class.

    Test: tests/explain/test_explanation.py.
    """
    description = predictor.description
    if task not in description.tasks:
        raise ValueError(f"task is {task!r}; the network answers {sorted(description.tasks)}.")
    names = description.tasks[task]
    if uncertainty is None:
        uncertainty = predictor.uncertainty(pixels, present, record_ids)[task]
    probabilities = np.asarray(uncertainty.probabilities)
    if classes is None:
        classes = probabilities.argmax(-1)
    maps = grad_cam(predictor.restored, pixels, task, classes, present=present)
    shares = contributions(predictor.restored, pixels, task, classes, present=present)
    tables = {spec.name for spec in description.modalities if isinstance(spec, TabularSpec)}
    found = []
    for row, record_id in enumerate(record_ids):
        held = [m for m in pixels if present[m][row]]
        found.append(
            Explanation(
                record_id=record_id,
                task=task,
                predicted=names[classes[row]],
                probability=float(probabilities[row, classes[row]]),
                predictive_entropy=float(uncertainty.predictive_entropy[row]),
                mutual_information=float(uncertainty.mutual_information[row]),
                images={m: pixels[m][row] for m in held if m not in tables},
                rows={
                    m: description.readings[m].encoding.decode(pixels[m][row])
                    for m in held
                    if m in tables
                },
                maps={
                    m: RecordMap(maps[m].mean[row], maps[m].spread[row]) for m in held if m in maps
                },
                shapley={m: float(shares.shapley[m][:, row].mean()) for m in held},
                shapley_spread={m: float(shares.shapley[m][:, row].std()) for m in held},
                leave_one_out={m: float(shares.leave_one_out[m][:, row].mean()) for m in held},
                factors={
                    expert: float(factor[:, row].mean())
                    for expert, factor in shares.factors.items()
                    if expert in held or expert not in pixels
                },
                trained_without=shares.trained_for_it,
            )
        )
    return found
