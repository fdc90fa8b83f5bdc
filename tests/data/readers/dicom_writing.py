"""Writing small DICOM files for tests; every identifying tag holds a canary."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CANARY = "CANARY^DO NOT LEAK"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"


def image(stored: np.ndarray | None, **tags) -> FileDataset:
    """A data set with the stored values as they are: `[h, w]`, `[n, h, w]` or `[h, w, 3]`."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CT_IMAGE
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = CT_IMAGE
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.PatientName = CANARY
    data.PatientID = f"{CANARY} p1"
    data.PatientBirthDate = "19991231"
    data.InstitutionName = CANARY
    data.StudyInstanceUID, data.SeriesInstanceUID, data.Modality = "1.2", "1.2.3", "CT"
    if stored is not None:
        colour = stored.ndim == 3 and stored.shape[-1] == 3
        data.Rows, data.Columns = stored.shape[:2] if colour else stored.shape[-2:]
        data.SamplesPerPixel = 3 if colour else 1
        data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        if colour:
            data.PlanarConfiguration = 0
        elif stored.ndim == 3:
            data.NumberOfFrames = len(stored)
        data.BitsAllocated = data.BitsStored = stored.dtype.itemsize * 8
        data.HighBit = data.BitsStored - 1
        data.PixelRepresentation = int(stored.dtype.kind == "i")
        data.PixelData = stored.tobytes()
        data["PixelData"].VR = "OW" if data.BitsAllocated > 8 else "OB"
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def save(path, data: FileDataset):
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def write(path, stored: np.ndarray | None, **tags):
    return save(path, image(stored, **tags))


def item(**tags) -> list[Dataset]:
    """A sequence of one item."""
    content = Dataset()
    for name, value in tags.items():
        setattr(content, name, value)
    return [content]
