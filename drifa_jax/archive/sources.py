"""The images that an answer rests on: of one patient and one study, as their headers say.

What is written into an archive belongs to the patient and study of its sources, so that their
identifiers are read here, copied into those objects, and go nowhere else: no message quotes one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drifa_jax.data.problems import FileError
from drifa_jax.data.readers.any_file import DICOM, kind_of, split_slice
from drifa_jax.data.readers.dicom_files import load, pydicom, text
from drifa_jax.data.readers.series import find_volume
from drifa_jax.errors import UserError
from drifa_jax.predict.reading import Item, Reading

PATIENT_TAGS = (
    "PatientID",
    "IssuerOfPatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
)
STUDY_TAGS = (
    "StudyInstanceUID",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)
IMAGE_TAGS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID")
DATES = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
"""Of each there is a time of the same name."""

COPIED_TAGS = (*PATIENT_TAGS, *STUDY_TAGS)
"""All that objects of the archive take over from the headers of their sources."""

NO_DATE = ("19000101", "000000")
"""Date and time of what is made of sources without any."""


@dataclass(frozen=True)
class SourceImage:
    """One file that an answer rests on.

    Attributes:
      header: a `pydicom.Dataset` of `COPIED_TAGS`, `IMAGE_TAGS` and nothing else.
      frames: those that were read, from 0; empty where the file holds one picture.
      when: (date, time) of the latest date that the file tells, "" where it tells none.
      number: of the image in its series, at least 1.
      burned_in: whether its pixels hold annotation that names the patient; None where it does
        not say.
      name: of the file, for messages.
    """

    header: Any
    frames: tuple[int, ...]
    when: tuple[str, str]
    number: int
    burned_in: bool | None
    name: str


@dataclass(frozen=True)
class CaseSources:
    """All images of one case, which are of one patient and one study.

    Attributes:
      images: modality -> its files, in the order in which they were read.
    """

    images: Mapping[str, tuple[SourceImage, ...]]

    @property
    def all(self) -> tuple[SourceImage, ...]:
        """Each file once, with all of its frames that were read."""
        found: dict[str, SourceImage] = {}
        for image in (image for images in self.images.values() for image in images):
            uid = str(image.header.SOPInstanceUID)
            if (before := found.get(uid)) is not None:
                frames = tuple(sorted({*before.frames, *image.frames}))
                image = SourceImage(
                    image.header, frames, image.when, image.number, image.burned_in, image.name
                )
            found[uid] = image
        return tuple(found.values())

    @property
    def header(self) -> Any:
        """Of the first file; patient and study are those of all."""
        return self.all[0].header

    @property
    def when(self) -> tuple[str, str]:
        """The latest date and time among the sources."""
        return max((image.when for image in self.all if image.when[0]), default=NO_DATE)

    @property
    def burned_in(self) -> bool | None:
        """Whether any source holds annotation that names the patient; None where none says."""
        said = [image.burned_in for image in self.all]
        return True if True in said else (None if None in said else False)


def source_image(data: Any, frames: Sequence[int] = (), name: str = "an image") -> SourceImage:
    """One source from a data set, of which only what `SourceImage` lists is kept.

    Args:
      data: a `pydicom.Dataset` with or without pixels.
      frames: those that were read, from 0; empty for all.
      name: for messages.

    Raises:
      FileError: where it lacks an identifier without which nothing can refer to it.
    """
    header = pydicom().Dataset()
    for keyword in IMAGE_TAGS:
        setattr(header, keyword, text(data, keyword) or _lacks(keyword, name))
    for keyword in COPIED_TAGS:
        setattr(header, keyword, _cleaned(keyword, text(data, keyword)))
    if not header.StudyInstanceUID:
        _lacks("StudyInstanceUID", name)
    if not header.IssuerOfPatientID:
        del header.IssuerOfPatientID
    dates = [(text(data, tag), text(data, tag.replace("Date", "Time"))) for tag in DATES]
    dates = [(_date(date), _time(time) or "000000") for date, time in dates]
    number = text(data, "InstanceNumber")
    said = {"YES": True, "NO": False}.get(text(data, "BurnedInAnnotation").upper())
    return SourceImage(
        header,
        tuple(frames),
        max((found for found in dates if found[0]), default=("", "")),
        int(number) if re.fullmatch(r"[1-9]\d{0,6}", number) else 1,
        said,
        name,
    )


def of_one_study(images: Mapping[str, Sequence[SourceImage]], case: str) -> CaseSources:
    """The sources of one case.

    Args:
      images: modality -> its files; those without any are left out.
      case: its name, for messages.

    Raises:
      UserError: naming the files where they are of several patients or studies, or there are none.
    """
    found = CaseSources({m: tuple(files) for m, files in images.items() if files})
    if not found.images:
        raise UserError(
            f"{case!r} has no DICOM image, so that nobody can tell to which study of whom an "
            "answer would belong; leave out --dicom-sr and --dicom-sc."
        )
    first, *others = [image for files in found.images.values() for image in files]
    for other in others:
        for keyword in ("PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientName"):
            if _differ(keyword, first.header, other.header):
                _refuse(case, "patients", keyword, first, other)
        if first.header.StudyInstanceUID != other.header.StudyInstanceUID:
            _refuse(case, "studies", "StudyInstanceUID", first, other)
    return found


def read_case(items: Mapping[str, Item], readings: Mapping[str, Reading], case: str) -> CaseSources:
    """The sources of one record as `drifa predict` finds it.

    Args:
      items: modality -> a file, a frame of one as `FILE:NUMBER`, a folder with a series, a row of
        a table, or None.
      readings: how each modality is read.
      case: its name, for messages.

    Raises:
      UserError: as `of_one_study`; for an image that is no DICOM; for a header that cannot be read.
    """
    images = {}
    for modality, item in items.items():
        if item is None or isinstance(item, Mapping):
            continue
        if not isinstance(item, str | Path):
            raise UserError(
                f"{case!r}: {modality} is no file but pixels, which do not say whose they are; "
                "give the DICOM files for --dicom-sr and --dicom-sc."
            )
        images[modality] = [
            read_source(path, frames)
            for path, frames in _files(str(item), readings[modality], case, modality)
        ]
    return of_one_study(images, case)


def read_source(path: Path, frames: Sequence[int] = ()) -> SourceImage:
    """One source from its file; raises as `source_image`, and for a header that cannot be read."""
    return source_image(load(path, pixels=False, more=_MORE_TAGS), frames, str(path))


_MORE_TAGS = tuple(
    dict.fromkeys(
        (*IMAGE_TAGS, *COPIED_TAGS, *DATES, *(date.replace("Date", "Time") for date in DATES))
    )
)


def _files(
    item: str, reading: Reading, case: str, modality: str
) -> list[tuple[Path, tuple[int, ...]]]:
    """Each file of an item with its frames, from 0, where it holds several."""
    path, frame = split_slice(item)
    if path.is_file() and kind_of(path) != DICOM:
        raise UserError(
            f"{case!r}: {modality} is {path}, which is no DICOM file and does not say whose it is; "
            "give DICOM files for --dicom-sr and --dicom-sc."
        )
    if not reading.volume:
        return [(path, () if frame is None else (frame,))]
    series = find_volume(path)
    files: dict[Path, list[int]] = {}
    for file, number in series.frames:
        files.setdefault(file, []).append(number)
    several = any(len(frames) > 1 for frames in files.values())
    return [(file, tuple(sorted(frames)) if several else ()) for file, frames in files.items()]


def _refuse(case: str, what: str, keyword: str, first: SourceImage, other: SourceImage) -> None:
    raise UserError(
        f"{case!r} is made of images of several {what}: {first.name} and {other.name} differ in "
        f"their {keyword}. An object of the archive belongs to one patient and one study; correct "
        "the case."
    )


def _differ(keyword: str, first: Any, other: Any) -> bool:
    """Whether both say something, and not the same; names regardless of case and carets."""
    ours, theirs = (str(header.get(keyword) or "") for header in (first, other))
    if keyword == "PatientName":
        ours, theirs = (re.sub(r"[\s^=]+", " ", name).strip().casefold() for name in (ours, theirs))
        return bool(ours and theirs) and ours != theirs
    if keyword == "PatientID":
        return ours != theirs
    return bool(ours and theirs) and ours != theirs


def _lacks(keyword: str, name: str) -> str:
    raise FileError(name, f"lacks the tag {keyword}, without which nothing can refer to it")


def _cleaned(keyword: str, value: str) -> str:
    """A value as it may be written; "" in the place of one that the standard does not allow."""
    if keyword.endswith("Date"):
        return _date(value)
    if keyword.endswith("Time"):
        return _time(value)
    if keyword == "PatientSex":
        return value.upper() if value.upper() in ("M", "F", "O") else ""
    return value


def _date(value: str) -> str:
    return value if re.fullmatch(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", value) else ""


def _time(value: str) -> str:
    return value if re.fullmatch(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?", value) else ""
