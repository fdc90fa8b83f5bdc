"""A capture shows the map over each image, says what it is for, and names nobody."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pydicom
import pytest

from drifa_jax.archive.identity import RESEARCH
from drifa_jax.archive.secondary_capture import secondary_captures
from drifa_jax.archive.sources import of_one_study, source_image


@pytest.fixture(scope="module")
def captures(studies):
    def made(sources=None, tasks=studies.TASKS, **of_model):
        return secondary_captures(
            sources or studies.sources(),
            [studies.explanation(task) for task in tasks],
            studies.predictions(),
            0,
            studies.model(**of_model),
        )

    return made


@pytest.fixture(scope="module")
def first(captures):
    return captures(tasks=["tumour"])[0]


def test_it_is_read_back_with_its_pixels(first, studies, tmp_path):
    read = pydicom.dcmread(studies.written(tmp_path / "capture.dcm", first))
    assert read.SOPClassUID.name == "Secondary Capture Image Storage"
    pixels = read.pixel_array
    assert pixels.shape == (read.Rows, read.Columns, 3)
    # Grey where an image stands alone, coloured where the map lies over it.
    colourful = np.ptp(pixels.astype(int), axis=2) > 60
    left, right = np.array_split(colourful[80:800], 2, axis=1)
    assert not left.any() and right.mean() > 0.01


def test_the_warning_is_burned_in(first):
    """Letters in the colour of the warning, in the lower part, as wide as the sentence."""
    amber = (np.abs(first.pixel_array.astype(int) - (255, 180, 84)) < 8).all(2)
    lower = amber[first.Rows * 2 // 3 :]
    assert lower.sum() > 1000
    assert np.ptp(np.nonzero(lower)[1]) > first.Columns // 2
    assert first.ImageComments == RESEARCH and RESEARCH in first.SeriesDescription


def test_patient_study_and_sources_are_those_of_the_images(first, studies):
    source = studies.header("Doe^Jane", 1, 1)
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "AccessionNumber"):
        assert first.get(keyword) == source.get(keyword)
    referred = [item.ReferencedSOPInstanceUID for item in first.SourceImageSequence]
    assert referred == ["1.2.3.1.1", "1.2.3.1.2"]


@pytest.mark.parametrize(("said", "expected"), [("YES", "YES"), ("NO", "NO"), ("", None)])
def test_only_pixels_of_the_sources_can_name_the_patient(said, expected, captures, studies):
    data = studies.header("Doe^Jane", 1, 1, BurnedInAnnotation=said)
    made = captures(of_one_study({"mri": [source_image(data)]}, "case"), tasks=["tumour"])
    assert made[0].get("BurnedInAnnotation") == expected


def test_every_task_has_its_own_and_the_same_is_made_again(captures, studies, tmp_path):
    made, again = captures(), captures()
    assert len({capture.SOPInstanceUID for capture in made}) == len(studies.TASKS)
    for k, pair in enumerate(zip(made, again, strict=True)):
        a, b = (studies.written(tmp_path / f"{k}{n}.dcm", x) for n, x in enumerate(pair))
        assert a.read_bytes() == b.read_bytes()


def test_no_name_of_record_file_machine_or_stranger_enters(first, studies):
    for secret in studies.SECRETS:
        assert secret not in studies.all_text(first)


def test_a_validator_of_the_standard_finds_no_error(first, studies, tmp_path):
    if shutil.which("dciodvfy") is None:
        pytest.skip("needs dciodvfy on PATH (Debian package dicom3tools)")
    path = studies.written(tmp_path / "capture.dcm", first)
    told = subprocess.run(["dciodvfy", path], capture_output=True, text=True).stderr
    assert "SCImage" in told
    assert "Error" not in told
