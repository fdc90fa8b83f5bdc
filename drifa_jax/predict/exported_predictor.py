"""An exported file in the place of a run: the same reading of images, the same table of answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from drifa_jax.compilation import Program
from drifa_jax.data.record import TabularSpec, described_spec
from drifa_jax.errors import UserError
from drifa_jax.post_processing.out_of_distribution import DistanceScores
from drifa_jax.post_processing.saved import PostProcessing
from drifa_jax.post_processing.task import TaskPostProcessing
from drifa_jax.predict.described import Description
from drifa_jax.predict.exported import FUNCTION, ExportError, load_exported
from drifa_jax.predict.reading import Reading
from drifa_jax.predict.streaming import Arrays, Images, batches, stream
from drifa_jax.predictions.table import Predictions, Provenance, joined, task_predictions
from drifa_jax.uncertainty.measures import from_samples


class ExportedPredictor:
    """Answers of a file that `drifa export` wrote.

    Args:
      path: of the file.
      post_processing: whether to calibrate, refer and make sets, where the file can.

    Raises:
      UserError: where the file is damaged or holds impossible values.

    Test: tests/predict/test_export.py.
    """

    def __init__(self, path: Path, *, post_processing: bool = True):
        try:
            self._network = load_exported(path)
            card, self.rebuilt = self._network.card, self._network.rebuilt
            named = None if self.rebuilt else card["sha256"][FUNCTION]
            self._network.call = Program(self._network.call, named)
            self.description = _description(card)
            self.post_processing = _post_processing(card) if post_processing else None
        except ExportError as error:
            raise UserError(str(error)) from error
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: its card cannot be read ({error}); export again.") from error
        self.provenance = Provenance(
            runs=(str(path),),
            identity=str(card.get("identity", "")),
            steps=tuple(card["steps"]),
            num_members=card["num_members"],
            num_samples=card["num_samples"],
            seed=card["seed"],
            post_processing="" if self.post_processing is None else self.post_processing.fitted_on,
            synthetic=self.description.synthetic,
        )

    def stream(
        self, images: Images, record_ids: Sequence[str] | None = None
    ) -> Iterator[Predictions]:
        """Answers for records, as those of `Predictor.stream`."""
        return stream(self.predict, self.description, images, record_ids)

    def predict(self, pixels: Arrays, present: Arrays, record_ids: Sequence[str]) -> Predictions:
        """Answers for records at the network's size."""
        parts = []
        for rows, filled in batches(len(record_ids)):
            found = self._answered(pixels, present, [record_ids[i] for i in filled], filled)
            parts.append(found.take(range(len(rows))))
        return joined(parts)

    def _answered(self, pixels, present, names, rows) -> Predictions:
        answers = self._network(
            {name: x[rows] for name, x in pixels.items()},
            names,
            {name: held[rows] for name, held in present.items()},
        )
        fitted = {} if self.post_processing is None else self.post_processing.tasks
        scores = answers.out_of_distribution if self.post_processing is not None else None
        return Predictions(
            tuple(names),
            {
                task: task_predictions(
                    answer.classes, from_samples(answer.samples), fitted.get(task)
                )
                for task, answer in answers.items()
            },
            self.provenance,
            None if scores is None else DistanceScores(scores.distance, scores.p_value),
            present={name: held[rows] for name, held in present.items()},
        )


def _description(card: dict[str, Any]) -> Description:
    specs, readings = [], {}
    for name, facts in card["modalities"].items():
        if "num_features" in facts:
            specs.append(TabularSpec(name, facts["num_features"]))
            readings[name] = Reading.from_json({"format": "table", "encoding": facts["encoding"]})
            continue
        sides = {s: facts[s] for s in ("depth", "height", "width", "channels") if s in facts}
        specs.append(described_spec({"name": name, **sides}))
        kept = {key: facts[key] for key in ("fit", "format", "window")}
        if "depth" in facts:
            kept |= {"volume": True, "spacing": facts["spacing"]}
        readings[name] = Reading.from_json(kept | {"encoding": None})
    return Description(
        tuple(specs),
        readings,
        {task: tuple(facts["classes"]) for task, facts in card["tasks"].items()},
        bool(card["may_lack_modalities"]),
        bool(card["synthetic"]),
        str(card["trained_on"]),
    )


def _post_processing(card: dict[str, Any]) -> PostProcessing | None:
    tasks = {
        task: TaskPostProcessing.from_json(
            {"notes": []} | facts["post_processing"], len(facts["classes"])
        )
        for task, facts in card["tasks"].items()
        if facts["post_processing"] is not None
    }
    if not tasks:
        return None
    return PostProcessing(tasks, None, "the validation split of the run", "")
