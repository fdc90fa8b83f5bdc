"""Studies, answers and explanations of made-up patients, without any network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from drifa_jax.archive.identity import ModelIdentity
from drifa_jax.archive.sources import CaseSources, of_one_study, source_image
from drifa_jax.explain.explanation import Explanation, RecordMap
from drifa_jax.post_processing.out_of_distribution import DistanceScores
from drifa_jax.predictions.table import Predictions, Provenance, TaskPredictions
from drifa_jax.uncertainty.measures import from_samples

MR, CT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2"
TASKS = {"tumour": ("glioma", "meningioma", "none"), "grade": ("low", "high")}
SECRETS = ("/home/alice", "scanner-host-7", "Other^Patient", "case of Other")
"""What stands around the answers and must not get into any object."""


def header(patient: str, study: int, instance: int, sop_class: str = MR, **tags) -> FileDataset:
    """A DICOM image of 8 x 8 pixels; `study` and `instance` become its UIDs."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{study}.{instance}"
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = sop_class, f"1.2.3.{study}.{instance}"
    data.StudyInstanceUID = f"1.2.3.{study}"
    data.SeriesInstanceUID = f"1.2.3.{study}.{100 + (sop_class == CT)}"
    data.PatientName, data.PatientID = patient, f"id of {patient}"[:64]
    data.PatientBirthDate, data.PatientSex = "19610203", "F"
    data.StudyDate, data.StudyTime, data.StudyID = "20240102", "101500", "S1"
    data.AccessionNumber, data.ReferringPhysicianName = "A77", "Ref^Doctor"
    data.AcquisitionDate, data.AcquisitionTime = "20240102", "102030.5"
    data.StationName, data.InstitutionName = "scanner-host-7", "scanner-host-7"
    data.InstanceNumber = instance
    data.Modality = "CT" if sop_class == CT else "MR"
    data.Rows = data.Columns = 8
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.PixelData = bytes(range(64))
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def sources(patient: str = "Doe^Jane", study: int = 1) -> CaseSources:
    """A case of one MR and one CT image."""
    return of_one_study(
        {
            "mri": [source_image(header(patient, study, 1))],
            "ct": [source_image(header(patient, study, 2, CT))],
        },
        "case",
    )


def predictions(tasks=TASKS) -> Predictions:
    """Answers to two records, the second of which is referred, unlike, and fits no class."""
    rng = np.random.default_rng(0)
    answers = {}
    for task, classes in tasks.items():
        samples = rng.dirichlet(np.arange(len(classes), 0, -1) * 3.0, (1, 6, 2))
        uncertainty = from_samples(samples)
        held = np.zeros((2, len(classes)), bool)
        held[0, :2] = True
        answers[task] = TaskPredictions(
            tuple(classes),
            uncertainty.probabilities,
            uncertainty,
            held,
            np.array([False, True]),
            calibration="temperature",
        )
    return Predictions(
        ("case of Other", "/home/alice/b.dcm"),
        answers,
        Provenance(runs=("/home/alice/runs/brain",), post_processing="split of /home/alice"),
        DistanceScores(np.array([1.1, 40.0]), np.array([0.4, 0.004])),
        group_ids=("Other^Patient", "Other^Patient"),
        present={
            "mri": np.array([True, True]),
            "ct": np.array([True, False]),
            "clinic_table": np.array([True, False]),
            "pet": np.array([False, False]),
        },
        attributes={"site": ("scanner-host-7", "scanner-host-7")},
    )


def model(**changes) -> ModelIdentity:
    facts = {
        "name": "brain-quick",
        "identity": "0123456789abcdef0123456789abcdef",
        "version": "0.1.0",
        "steps": (400,),
        "num_members": 1,
        "num_samples": 6,
        "seed": 0,
        "post_processing": "fedcba9876543210",
        "how": {"tumour": "calibration temperature"},
        "tasks": TASKS,
        "synthetic": True,
    }
    return ModelIdentity(**(facts | changes))


def explanation(task: str = "tumour", side: int = 48) -> Explanation:
    """A disc in each image, and a map with its peak beside it."""
    y, x = np.mgrid[:side, :side] / side
    disc = (np.hypot(y - 0.5, x - 0.5) < 0.4) * (90 + 100 * y)
    heat = np.exp(-30 * np.hypot(y - 0.35, x - 0.6) ** 2).astype(np.float32)
    image = disc.astype(np.uint8)[..., None]
    return Explanation(
        record_id="case of Other",
        task=task,
        predicted=TASKS[task][0],
        probability=0.6,
        predictive_entropy=0.7,
        mutual_information=0.1,
        images={"mri": image, "ct": image},
        rows={"clinic_table": {"name": "Other^Patient"}},
        maps={m: RecordMap(heat, np.zeros_like(heat)) for m in ("mri", "ct")},
        shapley={"mri": 0.31, "ct": -0.05, "clinic_table": 0.02},
        shapley_spread={"mri": 0.0, "ct": 0.0, "clinic_table": 0.0},
        leave_one_out={"mri": 0.2, "ct": -0.01, "clinic_table": 0.0},
        factors={},
        trained_without=True,
    )


def all_text(data) -> str:
    """Every value in a data set but its pixels, as text."""
    return "\n".join(
        f"{element.value!r}"
        for element in data.iterall()
        if element.VR != "SQ" and element.keyword != "PixelData"
    )


def written(path: Path, made) -> Path:
    made.save_as(path, enforce_file_format=True)
    return path
