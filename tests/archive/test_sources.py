"""A case belongs to one patient and one study, and messages quote no identifier."""

from __future__ import annotations

import json

import pytest

from drifa_jax.archive.codes import read_codes
from drifa_jax.archive.sources import of_one_study, read_case, source_image
from drifa_jax.errors import UserError
from drifa_jax.predict.reading import DICOM, TABLE, Reading


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("patients", {"PatientID": "secret id"}),
        ("patients", {"PatientName": "Secret^Name"}),
        ("patients", {"PatientBirthDate": "19000101"}),
        ("studies", {"StudyInstanceUID": "1.2.99"}),
    ],
)
def test_images_of_several_are_refused_by_file(what, changes, studies, tmp_path):
    files = {
        "mri": studies.written(tmp_path / "a.dcm", studies.header("Doe^Jane", 1, 1)),
        "ct": studies.written(tmp_path / "b.dcm", studies.header("Doe^Jane", 1, 2, **changes)),
    }
    readings = dict.fromkeys(files, Reading(DICOM))
    with pytest.raises(UserError, match=rf"several {what}.*a\.dcm.*b\.dcm") as error:
        read_case(files, readings, "case 7")
    assert "case 7" in str(error.value)
    for value in ("Doe", "Jane", *changes.values()):
        assert value not in str(error.value)


def test_spellings_of_one_name_are_one_patient(studies):
    files = [studies.header(name, 1, 1, PatientID="1") for name in ("Doe^Jane", "DOE^JANE^^")]
    assert of_one_study({"mri": [source_image(data) for data in files]}, "case")


def test_frames_folders_rows_and_absences_are_found(studies, tmp_path):
    for k in (3, 1, 2):
        data = studies.header(
            "Doe^Jane",
            1,
            k,
            ImagePositionPatient=[0, 0, k],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[1, 1],
        )
        studies.written(tmp_path / f"{k}.dcm", data)
    frames = studies.header("Doe^Jane", 1, 9, NumberOfFrames=4, PixelData=bytes(4 * 64))
    (tmp_path / "more").mkdir()
    studies.written(tmp_path / "more" / "f.dcm", frames)
    items = {
        "volume": tmp_path,
        "frame": f"{tmp_path / 'more' / 'f.dcm'}:2",
        "clinic_table": {"age": "61"},
        "pet": None,
    }
    readings = {
        "volume": Reading(DICOM, volume=True),
        "frame": Reading(DICOM),
        "clinic_table": Reading(TABLE, encoding=object()),
        "pet": Reading(DICOM),
    }
    found = read_case(items, readings, "case").images
    assert set(found) == {"volume", "frame"}
    assert [i.header.SOPInstanceUID for i in found["volume"]] == [f"1.2.3.1.{k}" for k in (1, 2, 3)]
    assert found["frame"][0].frames == (2,) and found["volume"][0].frames == ()


def test_what_nothing_can_refer_to_is_named(studies, tmp_path):
    lacking = studies.header("Doe^Jane", 1, 1)
    del lacking.SOPInstanceUID
    with pytest.raises(UserError, match="SOPInstanceUID"):
        source_image(lacking)
    with pytest.raises(UserError, match="no DICOM image"):
        of_one_study({}, "case")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.png.*no DICOM file"):
        read_case({"mri": tmp_path / "a.png"}, {"mri": Reading("any")}, "case")


def test_values_that_the_standard_forbids_stay_out(studies):
    odd = {"PatientSex": "X", "PatientBirthDate": "1961", "StudyTime": "half past ten"}
    header = source_image(studies.header("Doe^Jane", 1, 1, **odd)).header
    assert not any(header.get(keyword) for keyword in odd)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "is no JSON"),
        ([], "no object of objects"),
        ({"mood": {}}, "'mood': is no task"),
        ({"grade": {"medium": ["1", "SCT", "x"]}}, "'medium': is no class"),
        ({"grade": {"low": ["1", "SCT"]}}, "no list of three texts"),
        ({"grade": {"low": ["1 2", "SCT", "x"]}}, "is no code"),
        ({"grade": {"low": ["1", "S" * 17, "x"]}}, "designator"),
        ({"grade": {"low": ["1", "SCT", "x" * 65]}}, "up to 64 characters"),
    ],
)
def test_codes_that_cannot_be_are_named(document, message, studies, tmp_path):
    path = tmp_path / "codes.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(UserError, match=message):
        read_codes(path, studies.TASKS)
