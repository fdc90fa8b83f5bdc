"""Grad-CAM over the images of a case as a DICOM secondary capture, with its warning burned in."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from drifa_jax.archive.identity import MANUFACTURER, RESEARCH, ModelIdentity, line, uid
from drifa_jax.archive.places import highdicom
from drifa_jax.archive.sources import CaseSources, SourceImage
from drifa_jax.archive.structured_report import equipment, told, without_clock
from drifa_jax.explain.explanation import Explanation
from drifa_jax.predictions.table import Predictions
from drifa_jax.report.canvas import SYNTHETIC_STAMP, plain_text
from drifa_jax.report.explanations import map_pictures

SERIES_NUMBER = 9502
PAPER, INK, FAINT, WARNING = "#000000", "#f2f4f7", "#aab2bd", "#ffb454"
"""Light on black, as pictures are read in an archive."""
SIDE, GAP, DPI = 3.2, 0.12, 120
"""Inches of a picture's side and between two; pixels an inch."""


def secondary_captures(
    sources: CaseSources,
    explanations: Sequence[Explanation],
    predictions: Predictions,
    row: int,
    model: ModelIdentity,
) -> list[Any]:
    """A `highdicom.sc.SCImage` of each explanation. The same arguments give the same objects.

    Patient, study, date and UIDs are as in `structured_report`; the record's name is not drawn.

    Args:
      sources: the images that the answers rest on.
      explanations: of the record, one a task.
      predictions, row: its answers.
      model: what answered.

    Raises:
      UserError: where highdicom is not installed, with the command that installs it.

    Test: tests/archive/test_secondary_capture.py.
    """
    found = []
    for place, explanation in enumerate(explanations, start=1):
        words = told(predictions[explanation.task], predictions, row)
        pixels = overlay_picture(explanation, words, model)
        number = (sources.all[0].number - 1) * len(explanations) + place
        found.append(_capture(sources, explanation, words, pixels, model, number))
    return found


def overlay_picture(explanation: Explanation, words: str, model: ModelIdentity) -> np.ndarray:
    """The images of one case and task, each beside the same under its map: `[h, w, 3]` uint8.

    Args:
      explanation: of the case.
      words: its answer, drawn below the title.
      model: what answered.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from PIL import Image

    pictures = {
        m: map_pictures(image, explanation.maps[m], model.num_members)
        for m, image in explanation.images.items()
        if m in explanation.maps
    }
    columns = 3 if model.num_members > 1 else 2
    width = columns * (SIDE + GAP) + 0.5
    below = _wrapped(words, width) + _wrapped(_warnings(explanation, model), width)
    head, foot = 0.62, 0.42 + 0.19 * len(below) + 0.3
    height = head + len(pictures) * (SIDE + 0.34) + foot
    style = {"font.family": "DejaVu Sans", "text.color": INK}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height))

        def write(y: float, text: str, x: float = 0.25, **options: Any) -> None:
            options = {"va": "top", "fontsize": 9.5} | options
            figure.text(x / width, 1 - y / height, text, **options)

        answer = f"{explanation.task}: {explanation.predicted}"
        write(0.16, _shortened(answer, int(width * 6.2)), fontsize=15, weight="bold")
        if model.synthetic:
            write(0.2, SYNTHETIC_STAMP, x=width - 0.25, ha="right", color=WARNING)
        top = head
        for modality, several in pictures.items():
            for column, (pixels, title) in enumerate(several):
                left = 0.25 + column * (SIDE + GAP)
                place = (left / width, 1 - (top + 0.24 + SIDE) / height)
                axes = figure.add_axes((*place, SIDE / width, SIDE / height))
                axes.imshow(pixels, interpolation="bilinear")
                axes.set_axis_off()
                heading = _heading(explanation, modality, title, column)
                write(top, heading, x=left, color=INK if column == 0 else FAINT)
            top += SIDE + 0.34
        write(top + 0.04, RESEARCH.upper(), fontsize=13, weight="bold", color=WARNING)
        for number, text in enumerate(below):
            write(top + 0.38 + 0.19 * number, text, fontsize=9, color=FAINT)
        plain_text(figure)
        packed = io.BytesIO()
        figure.savefig(packed, dpi=DPI, format="png", facecolor=PAPER)
    packed.seek(0)
    return np.array(Image.open(packed).convert("RGB"))


def _capture(
    sources: CaseSources,
    explanation: Explanation,
    words: str,
    pixels: np.ndarray,
    model: ModelIdentity,
    number: int,
) -> Any:
    header = sources.header
    series = uid("capture series", str(header.StudyInstanceUID), model.identity, model.seed)
    facts = [[str(i.header.SOPInstanceUID), *i.frames] for i in sources.all]
    told_of = [model.parameters, explanation.task, words, header.to_json_dict(), sources.when]
    told_of += [model.version, highdicom().__version__]
    date, time = sources.when
    made = highdicom().sc.SCImage(
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        # A sheet of several pictures and letters has no orientation; it is emptied below.
        patient_orientation=("L", "P"),
        study_instance_uid=header.StudyInstanceUID,
        series_instance_uid=series,
        series_number=SERIES_NUMBER,
        sop_instance_uid=uid("capture", series, facts, told_of, uid(pixels.tobytes().hex())),
        instance_number=number,
        patient_id=header.PatientID,
        patient_name=header.PatientName,
        patient_birth_date=header.PatientBirthDate or None,
        patient_sex=header.PatientSex,
        accession_number=header.AccessionNumber,
        study_id=header.StudyID,
        study_date=header.StudyDate or None,
        study_time=header.StudyTime or None,
        referring_physician_name=header.ReferringPhysicianName,
        content_date=date,
        content_time=time,
        series_description=f"{MANUFACTURER}: Grad-CAM. {RESEARCH}",
        **equipment(model),
    )
    # Nor does it say whether the body part is one of a pair.
    made.PatientOrientation = made.Laterality = None
    made.ConversionType = "WSD"
    if "IssuerOfPatientID" in header:
        made.IssuerOfPatientID = header.IssuerOfPatientID
    made.DerivationDescription = line(
        f"Grad-CAM of {explanation.task}: {explanation.predicted}. {words}", 1024
    )
    made.ImageComments = RESEARCH
    made.SourceImageSequence = [_source(image) for image in sources.all]
    # It says whether pixels name the patient; only the sources' own could.
    if sources.burned_in is not None:
        made.BurnedInAnnotation = "YES" if sources.burned_in else "NO"
    return without_clock(made)


def _source(image: SourceImage) -> Any:
    from pydicom import Dataset
    from pydicom.sr.coding import Code

    item = Dataset()
    item.ReferencedSOPClassUID = image.header.SOPClassUID
    item.ReferencedSOPInstanceUID = image.header.SOPInstanceUID
    if image.frames:
        item.ReferencedFrameNumber = [frame + 1 for frame in image.frames]
    code = Code("121322", "DCM", "Source image for image processing operation")
    item.PurposeOfReferenceCodeSequence = [highdicom().sr.CodedConcept.from_code(code)]
    return item


def _heading(explanation: Explanation, modality: str, title: str, column: int) -> str:
    if column:
        return title
    named = modality if title == "image" else f"{modality}, {title}"
    return f"{named}; adds {explanation.shapley[modality]:+.2f}"


def _warnings(explanation: Explanation, model: ModelIdentity) -> str:
    words = (
        "Warm places raised this class; a map shows where the network looked, not whether it was "
        f"right to. Model {model.name}, {model.identity or 'unknown weights'}, {MANUFACTURER} "
        f"{model.version}."
    )
    if not explanation.trained_without:
        words += " Never trained without a modality: what one adds is an extrapolation."
    return words


def _wrapped(words: str, width: float) -> list[str]:
    import textwrap

    return textwrap.wrap(words, int(width * 13.2), break_on_hyphens=False)


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
