"""A study as an archive sends it: its answer, and objects that belong to the same study."""

from __future__ import annotations

import io

import pydicom
import pytest

from tests.archive.studies import CT, MR, SECRETS, header

SR, SC = "1.2.840.10008.5.1.4.1.1.88", "1.2.840.10008.5.1.4.1.1.7"


def file_of(data) -> bytes:
    packed = io.BytesIO()
    data.save_as(packed, enforce_file_format=True)
    return packed.getvalue()


def send(client, *files: bytes, kind: str = "application/dicom"):
    head = f"--x\r\ncontent-type: {kind}\r\n\r\n".encode()
    body = b"".join(head + content + b"\r\n" for content in files) + b"--x--\r\n"
    about = 'multipart/related; type="application/dicom"; boundary=x'
    return client.post("/v1/studies", content=body, headers={"content-type": about})


def reason(response) -> str:
    return response.json()["error"]["reason"]


@pytest.fixture(scope="module")
def images():
    return [file_of(header("Doe^Jane", 1, number, c)) for number, c in ((1, MR), (2, CT))]


def test_a_study_is_answered_and_offers_a_report_and_captures(client, images):
    response = send(client, *images)
    assert response.status_code == 200, response.text
    found = response.json()
    assert "Doe" not in response.text
    assert [one["kind"] for one in found["objects"]] == [
        "structured report", "secondary capture", "secondary capture",
    ]  # fmt: skip
    made = []
    for one in found["objects"]:
        got = client.get(one["href"])
        assert got.headers["content-type"] == "application/dicom"
        assert not any(secret.encode() in got.content for secret in SECRETS)
        made.append(pydicom.dcmread(io.BytesIO(got.content)))
    assert made[0].SOPClassUID.startswith(SR)
    assert all(one.SOPClassUID.startswith(SC) for one in made[1:])
    assert {str(one.StudyInstanceUID) for one in made} == {"1.2.3.1"}
    assert {str(one.PatientName) for one in made} == {"Doe^Jane"}


def test_its_answer_is_that_to_the_same_files_by_name(client, images):
    files = {m: ("a.dcm", c, "") for m, c in zip(("mri", "ct"), images, strict=True)}
    by_name = client.post("/v1/predict", files=files).json()
    assert send(client, *reversed(images)).json()["tasks"] == by_name["tasks"]


@pytest.mark.parametrize(
    ("study", "told"),
    [
        ([("Doe^Jane", 1, 1, MR), ("Roe^Mary", 1, 2, CT)], "several patients"),
        ([("Doe^Jane", 1, 1, MR), ("Doe^Jane", 2, 2, CT)], "several studies"),
        ([("Doe^Jane", 1, 1, MR), ("Doe^Jane", 1, 2, MR)], "2 images of mri"),
        ([("Doe^Jane", 1, 1, MR)], "lacks ct"),
    ],
)
def test_what_is_no_study_of_one_patient_is_told(client, study, told):
    response = send(client, *(file_of(header(*one)) for one in study))
    assert response.status_code == 422 and told in reason(response), response.text
    assert "Doe" not in response.text and "Roe" not in response.text


def test_a_file_that_fits_no_modality_is_told(client, images):
    other = file_of(header("Doe^Jane", 1, 3, Modality="US"))
    assert "File 3 of the study belongs to none" in reason(send(client, *images, other))


def test_parts_that_are_no_dicom_are_refused(client, images):
    assert send(client, images[0], kind="application/json").status_code == 415
    assert send(client, b"words").status_code == 422
    assert client.post("/v1/studies", files={"mri": ("a.dcm", images[0], "")}).status_code == 415
    assert client.get("/v1/studies/unknown/0.dcm").status_code == 404
