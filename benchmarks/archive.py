"""Results into an archive, from end to end: a DICOM study in, reports and captures out, checked.

    python -m benchmarks.archive runs/archive

Draws SYNTHETIC phantoms as DICOM files of made-up patients, trains a small network on them (a
minute or two on two cores), predicts four of its test cases with `drifa predict --dicom-sr
--dicom-sc`, and reads all objects back: with highdicom and pydicom, with dciodvfy where it is
installed (Debian package dicom3tools), and byte by byte for names that have no place there.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
from pathlib import Path

import highdicom
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from drifa_jax.cli import main as drifa
from drifa_jax.data.sources.phantoms import PhantomSource

SIDE, NUM_RECORDS, NUM_CASES = 64, 400, 4
SOP_CLASSES = {"mri": "1.2.840.10008.5.1.4.1.1.4", "ct": "1.2.840.10008.5.1.4.1.1.2"}
CONFIG = """
from drifa_jax.config import default_config, modality

def get_config(variant=""):
    config = default_config()
    config.data.source = "files"
    table = {"format": "manifest", "root": "ROOT", "table": "ROOT/records.csv",
             "id_column": "record_id", "group_column": "patient", "split_column": "split",
             "height": 64, "width": 64, "channels": 1}
    config.data.modalities = {
        "mri": modality(**table, image_column="mri", label_column="tumour", task="tumour"),
        "ct": modality(**table, image_column="ct", label_column="stroke", task="stroke"),
    }
    config.data.pairing, config.data.duplicates = "paired", "keep"
    config.model.width, config.model.dropout_rate = 8, 0.1
    config.model.batch_norm_momentum = 0.9
    config.train.num_epochs, config.train.learning_rate = 4, 3e-3
    config.uncertainty.num_mc_samples = 10
    return config.lock()
"""


def write_image(path: Path, pixels: np.ndarray, modality: str, patient: int) -> None:
    """One picture `[h, w]` uint8 as a DICOM file of a made-up patient."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SOP_CLASSES[modality]
    place = 1 + list(SOP_CLASSES).index(modality)
    meta.MediaStorageSOPInstanceUID = f"2.25.{patient + 1}.{place}.1"
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = SOP_CLASSES[modality], meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID = f"2.25.{patient + 1}"
    data.SeriesInstanceUID = f"2.25.{patient + 1}.{place}"
    data.PatientName, data.PatientID = f"Phantom^Number {patient}", f"P{patient:05d}"
    data.PatientBirthDate, data.PatientSex = f"19{40 + patient % 50}0101", "FM"[patient % 2]
    data.StudyDate, data.StudyTime, data.AccessionNumber = "20240102", "101500", f"A{patient}"
    data.StudyID, data.ReferringPhysicianName = "1", ""
    data.Modality, data.InstanceNumber = {"mri": "MR", "ct": "CT"}[modality], 1
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.WindowCenter, data.WindowWidth = 128, 256
    data.PixelData = np.ascontiguousarray(pixels).tobytes()
    data.save_as(path, enforce_file_format=True)


def write_study(root: Path) -> list[int]:
    """All records as DICOM files with a table; a few test cases also as `study/mri`, `study/ct`."""
    source = PhantomSource("train", NUM_RECORDS, seed=0, image_size=SIDE)
    classes = {task.name: task.classes for task in source.tasks}
    rows, shown = [], []
    for place in range(NUM_RECORDS):
        record = source[place]
        split = "train" if place < 260 else "validation" if place < 360 else "test"
        row = {"record_id": record.record_id, "patient": f"p{place}", "split": split}
        for task, label in record.labels.items():
            row[task] = classes[task][label]
        for modality in SOP_CLASSES:
            row[modality] = f"images/{record.record_id}-{modality}.dcm"
            (root / "images").mkdir(parents=True, exist_ok=True)
            write_image(root / row[modality], record.images[modality][..., 0], modality, place)
        rows.append(row)
        if split == "test" and len(shown) < NUM_CASES:
            shown.append(place)
            for modality in SOP_CLASSES:
                (root / "study" / modality).mkdir(parents=True, exist_ok=True)
                shutil.copy(root / row[modality], root / "study" / modality / f"case-{place}.dcm")
    with (root / "records.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (root / "config.py").write_text(CONFIG.replace("ROOT", str(root)))
    return shown


def check(root: Path, shown: list[int]) -> list[str]:
    """What is wrong with the objects, a line each."""
    wrong = []
    reports, captures = (sorted((root / name).iterdir()) for name in ("sr", "sc"))
    if len(reports) != NUM_CASES or len(captures) != 2 * NUM_CASES:
        wrong.append(f"{len(reports)} reports and {len(captures)} captures")
    for path in (*reports, *captures):
        made = pydicom.dcmread(path)
        own = int(made.PatientID[1:])
        if f"case-{own}" not in path.name:
            wrong.append(f"{path.name} is of patient {own}")
        content = path.read_bytes()
        foreign = [f"Phantom^Number {k}" for k in shown if k != own]
        for word in (*foreign, str(root), "images/", "phantom-train"):
            if word.encode() in content:
                wrong.append(f"{path.name} holds {word!r}")
        if shutil.which("dciodvfy"):
            told = subprocess.run(["dciodvfy", path], capture_output=True, text=True).stderr
            wrong += [f"{path.name}: {line}" for line in told.splitlines() if "Error" in line]
    for path in reports:
        groups = highdicom.sr.srread(path).content.get_image_measurement_groups()
        if {group.tracking_identifier for group in groups} != {"tumour", "stroke"}:
            wrong.append(f"{path.name}: its tasks are {groups}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    root = parser.parse_args().folder.resolve()
    if root.exists():
        print(f"{root} exists; choose a new folder.", file=sys.stderr)
        return 1
    root.mkdir(parents=True)
    shown = write_study(root)
    run, study, reports, captures = (str(root / name) for name in ("run", "study", "sr", "sc"))
    for command in (
        ["train", "--config", str(root / "config.py"), "--workdir", run],
        ["predict", run, study, "--dicom-sr", reports, "--dicom-sc", captures],
    ):
        if code := drifa(command):
            return code
    validator = "with" if shutil.which("dciodvfy") else "without"
    wrong = check(root, shown)
    print("\n".join(wrong) or f"{NUM_CASES} cases: all objects are right ({validator} dciodvfy).")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
