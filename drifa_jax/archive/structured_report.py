"""One case's answers as a DICOM structured report, TID 1500 (Measurement Report).

Each task is one measurement group (TID 1501): diagnosis, its text, the probability of each class,
uncertainty as a whole and in its two parts, prediction set, referral and likeness to the training
data, with the network as the algorithm (TID 4019) and the images that were read as sources.
"""

from __future__ import annotations

from typing import Any

from drifa_jax.archive.codes import CLASSES, CONCEPTS, Code, Codes, coded, concept
from drifa_jax.archive.identity import MANUFACTURER, RESEARCH, ModelIdentity, line, uid
from drifa_jax.archive.places import highdicom
from drifa_jax.archive.sources import CaseSources, SourceImage
from drifa_jax.predictions.table import Predictions, TaskPredictions

SERIES_NUMBER = 9501
UTF_8 = "ISO_IR 192"

DIAGNOSIS = Code("439401001", "SCT", "Diagnosis")
PROCEDURE = Code("363679005", "SCT", "Imaging procedure")
COMMENT = Code("121106", "DCM", "Comment")
FINDING = Code("121071", "DCM", "Finding")
YES, NO = Code("373066001", "SCT", "Yes"), Code("373067005", "SCT", "No")
NO_UNIT, NATS = Code("1", "UCUM", "no units"), Code("{nat}", "UCUM", "nats")
UNCERTAINTY = (
    ("predictive_entropy", "entropy", "Uncertainty, predictive entropy"),
    ("expected_entropy", "aleatoric", "Uncertainty of the data, expected entropy"),
    ("mutual_information", "epistemic", "Uncertainty of the model, mutual information"),
)
"""Of each the measure, the code and the meaning; the last two add up to the first."""


def structured_report(
    sources: CaseSources,
    predictions: Predictions,
    row: int,
    model: ModelIdentity,
    codes: Codes,
) -> Any:
    """A `highdicom.sr.ComprehensiveSR` of one record. The same arguments give the same object.

    Patient and study are copied from the sources; no name of a record, file or machine enters.
    Content date and time are the latest that the sources tell, so that the report of the same
    answers is the same object, whenever it is made. UIDs are digests: that of the series of study,
    model and seed, that of the report of all that it says.

    Args:
      sources: the images that the answers rest on.
      predictions: the table; modalities that are present and read from no DICOM are tables.
      row: of the record.
      model: what answered.
      codes: of every class, see `class_codes`.

    Raises:
      UserError: where highdicom is not installed, with the command that installs it.

    Test: tests/archive/test_structured_report.py.
    """
    sr = highdicom().sr
    study = str(sources.header.StudyInstanceUID)
    series = uid("report series", study, model.identity, model.post_processing, model.seed)
    place = [series, [[_uid_of(image), *image.frames] for image in sources.all]]
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(
                observer_type=sr.CodedConcept("121007", "DCM", "Device"),
                observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
                    uid=uid("device", model.identity, model.post_processing),
                    name=MANUFACTURER,
                    manufacturer_name=MANUFACTURER,
                    model_name=line(model.name),
                    serial_number=model.identity or None,
                ),
            )
        ),
        procedure_reported=coded(PROCEDURE),
        imaging_measurements=[
            _group(sources, predictions, task, row, model, codes, place)
            for task in predictions.tasks
        ],
    )
    root = content[0].ContentSequence
    for words in (RESEARCH, *_circumstances(sources, predictions, row, model)):
        root.append(_text(COMMENT, words))
    # What is not in the content but in the object may not differ under one UID either.
    header = sources.header.to_json_dict()
    made_by = highdicom().__version__
    instance = uid("report", place, header, sources.when, content[0].to_json_dict(), made_by)
    date, time = sources.when
    report = sr.ComprehensiveSR(
        evidence=[image.header for image in sources.all],
        content=content,
        series_instance_uid=series,
        series_number=SERIES_NUMBER,
        sop_instance_uid=instance,
        instance_number=sources.all[0].number,
        is_complete=True,
        content_date=date,
        content_time=time,
        series_description=f"{MANUFACTURER}: {RESEARCH}",
        coding_schemes=_schemes(model, codes),
        **equipment(model),
    )
    return without_clock(report)


def equipment(model: ModelIdentity) -> dict[str, Any]:
    """Attributes of every object that a model makes."""
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": line(model.name),
        "device_serial_number": model.identity or "unknown",
        "software_versions": model.version,
        "content_qualification": "RESEARCH",
        "specific_character_set": UTF_8,
    }


def without_clock(made: Any) -> Any:
    """An object of highdicom without the time at which this computer made it."""
    for keyword in (
        "InstanceCreationDate",
        "InstanceCreationTime",
        "DateOfSecondaryCapture",
        "TimeOfSecondaryCapture",
    ):
        if keyword in made:
            del made[keyword]
    for software in made.ContributingEquipmentSequence:
        del software.ContributionDateTime
    return made


def told(found: TaskPredictions, predictions: Predictions, row: int) -> str:
    """One task's answer to a record in a sentence, which holds no identifier."""
    words = f"{found.labels[row]}, probability {found.probabilities[row].max():.3f}"
    words += "" if found.calibration == "none" else f" ({found.calibration} calibration)"
    words += f"; uncertainty {found.uncertainty.normalised_entropy[row]:.2f} of 1"
    if (held := found.set_of(row)) is not None:
        words += f"; prediction set {{{', '.join(held)}}}" if held else "; no class fits"
    if found.refer is not None:
        words += "; refer to a human" if found.refer[row] else "; within the referral threshold"
    if (scores := predictions.out_of_distribution) is not None:
        unlike = "unlike" if scores.flagged[row] else "not unlike"
        words += f"; {unlike} the validation records (p = {scores.p_value[row]:.3f})"
    return f"{words}."


def _group(
    sources: CaseSources,
    predictions: Predictions,
    task: str,
    row: int,
    model: ModelIdentity,
    codes: Codes,
    place: list[Any],
) -> Any:
    """The measurement group of one task."""
    sr, found = highdicom().sr, predictions[task]
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=uid("answer", place, task), identifier=line(task) or "task"
        ),
        algorithm_id=sr.AlgorithmIdentification(
            name=f"DRIFA-Net, {line(model.name, 200)}",
            version=f"{MANUFACTURER} {model.version}, {model.identity or 'unknown weights'}",
            parameters=[
                *model.parameters,
                *([f"{task}: {model.how[task]}"] if task in model.how else []),
            ],
        ),
        measurements=_measurements(predictions, found, row, codes[task]),
        qualitative_evaluations=[
            sr.QualitativeEvaluation(coded(name), coded(value))
            for name, value in _evaluations(predictions, found, row, codes[task])
        ],
        source_images=[_reference(image) for image in sources.all],
    )
    group[0].ContentSequence.append(
        _text(COMMENT, f"{task}: {told(found, predictions, row)} {RESEARCH}")
    )
    return group


def _measurements(
    predictions: Predictions, found: TaskPredictions, row: int, codes: Any
) -> list[Any]:
    """Probabilities, uncertainty and likeness as numbers."""
    sr = highdicom().sr

    def number(value: float, code: str, meaning: str, unit: Code) -> Any:
        return sr.Measurement(concept(code, meaning), float(value), coded(unit))

    numbers = []
    for name, probability in zip(found.classes, found.probabilities[row], strict=True):
        made = number(probability, "probability", "Probability", NO_UNIT)
        of_class = sr.CodeContentItem(
            name=coded(FINDING), value=coded(codes[name]), relationship_type="HAS CONCEPT MOD"
        )
        made[0].ContentSequence = sr.ContentSequence([of_class])
        numbers.append(made)
    numbers += [
        number(getattr(found.uncertainty, measure)[row], code, meaning, NATS)
        for measure, code, meaning in UNCERTAINTY
    ]
    if (scores := predictions.out_of_distribution) is not None:
        numbers += [
            number(scores.distance[row], "ood-distance", "Distance from what is known", NO_UNIT),
            number(scores.p_value[row], "ood-p", "Share of known records as far away", NO_UNIT),
        ]
    return numbers


def _evaluations(
    predictions: Predictions, found: TaskPredictions, row: int, codes: Any
) -> list[tuple[Code, Code]]:
    """What is told in codes: (name, value)."""
    pairs = [(DIAGNOSIS, codes[found.labels[row]])]
    if (held := found.set_of(row)) is not None:
        name = Code("set", CONCEPTS, "Prediction set holds")
        nothing = Code("none-fits", CONCEPTS, "No class fits")
        pairs += [(name, codes[class_name]) for class_name in held] or [(name, nothing)]
    if found.refer is not None:
        name = Code("refer", CONCEPTS, "Refer to a human")
        pairs.append((name, YES if found.refer[row] else NO))
    if (scores := predictions.out_of_distribution) is not None:
        name = Code("ood", CONCEPTS, "Unlike the validation records")
        pairs.append((name, YES if scores.flagged[row] else NO))
    return pairs


def _circumstances(
    sources: CaseSources, predictions: Predictions, row: int, model: ModelIdentity
) -> list[str]:
    """What a reader must know besides, a sentence each."""
    present = [m for m, held in predictions.present.items() if held[row]] or list(sources.images)
    absent = [m for m in predictions.present if m not in present]
    rows = [m for m in present if m not in sources.images]
    read = f"Read: {', '.join(present)}"
    read += f" (of them without images: {', '.join(rows)})" * bool(rows)
    read += f"; absent: {', '.join(absent)}" * bool(absent)
    words = [
        f"{read}.",
        "Content date and time are the latest of the images that were read, so that the same "
        "answers are the same object.",
    ]
    if model.synthetic:
        words.append("The network was trained on SYNTHETIC data.")
    for task, found in predictions.tasks.items():
        words += [f"{task}: {note}." for note in found.notes]
    return words


def _schemes(model: ModelIdentity, codes: Codes) -> list[Any]:
    item = highdicom().coding_schemes.CodingSchemeIdentificationItem
    schemes = [item(CONCEPTS, name="drifa_jax concepts", responsible_organization=MANUFACTURER)]
    used = {code.scheme for classes in codes.values() for code in classes.values()}
    if CLASSES in used:
        schemes.append(
            item(
                CLASSES,
                name="drifa_jax classes of one model",
                version=model.identity[:16] or None,
                responsible_organization=MANUFACTURER,
            )
        )
    return schemes


def _reference(image: SourceImage) -> Any:
    return highdicom().sr.SourceImageForMeasurementGroup(
        image.header.SOPClassUID,
        image.header.SOPInstanceUID,
        [frame + 1 for frame in image.frames] or None,
    )


def _text(name: Code, value: str) -> Any:
    return highdicom().sr.TextContentItem(
        name=coded(name), value=value, relationship_type="CONTAINS"
    )


def _uid_of(image: SourceImage) -> str:
    return str(image.header.SOPInstanceUID)
