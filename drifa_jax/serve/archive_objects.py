"""The answer to a study as objects for its archive: a structured report, and captures with maps."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drifa_jax.archive.codes import class_codes
from drifa_jax.archive.identity import model_identity
from drifa_jax.archive.secondary_capture import secondary_captures
from drifa_jax.archive.sources import CaseSources, SourceImage, of_one_study
from drifa_jax.archive.structured_report import structured_report
from drifa_jax.data.readers.dicom_files import pydicom
from drifa_jax.serve.cases import Answered
from drifa_jax.serve.engine import AnyPredictor, Explained

REPORT, CAPTURE = "structured report", "secondary capture"


@dataclass(frozen=True)
class ArchiveObject:
    """One DICOM file.

    Attributes:
      kind: `REPORT` or `CAPTURE`.
      task: of a capture.
      content: the file.
    """

    kind: str
    task: str
    content: bytes


def sources_of(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> CaseSources:
    """What `study_case.sources_json` told of each modality.

    Raises:
      UserError: where they are of several patients or studies.
    """
    images = {
        name: [
            SourceImage(
                pydicom().Dataset.from_json(entry["header"]),
                tuple(entry["frames"]),
                tuple(entry["when"]),
                entry["number"],
                entry["burned_in"],
                f"image {number} of {name}",
            )
            for number, entry in enumerate(several, start=1)
        ]
        for name, several in found.items()
    }
    return of_one_study(images, "the study")


def archive_objects(
    predictor: AnyPredictor, answered: Answered, explained: Explained, sources: CaseSources
) -> list[ArchiveObject]:
    """The report and, where there are maps, a capture a task.

    Raises:
      UserError: where highdicom is not installed.
    """
    predictions, tasks = answered.predictions, predictor.description.tasks
    model = model_identity(predictions.provenance, tasks, predictor.post_processing)
    report = structured_report(sources, predictions, 0, model, class_codes(model))
    explanations = list(explained.tasks.values())
    captures = secondary_captures(sources, explanations, predictions, 0, model)
    return [
        ArchiveObject(REPORT, "", _file(report)),
        *(
            ArchiveObject(CAPTURE, explanation.task, _file(capture))
            for explanation, capture in zip(explanations, captures, strict=True)
        ),
    ]


def _file(made: Any) -> bytes:
    packed = io.BytesIO()
    made.save_as(packed, enforce_file_format=True)
    return packed.getvalue()
