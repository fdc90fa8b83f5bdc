"""A report says what was answered, of whom and by what, and nothing else."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from drifa_jax.archive.codes import Code, class_codes
from drifa_jax.archive.identity import RESEARCH, line, uid
from drifa_jax.archive.sources import COPIED_TAGS, of_one_study, read_case, source_image
from drifa_jax.archive.structured_report import structured_report
from drifa_jax.predict.reading import DICOM, Reading

FINDING = highdicom.sr.CodedConcept("121071", "DCM", "Finding")


@pytest.fixture(scope="module")
def report(studies):
    def made(sources=None, predictions=None, row=0, codes=None, **of_model):
        model = studies.model(**of_model)
        return structured_report(
            sources or studies.sources(),
            predictions or studies.predictions(),
            row,
            model,
            class_codes(model, codes),
        )

    return made


def groups(made):
    read = highdicom.sr.ComprehensiveSR.from_dataset(made)
    return read.content.get_image_measurement_groups()


def evaluated(group):
    """Meaning of a question -> meanings of the answers."""
    found = {}
    for evaluation in group.get_qualitative_evaluations():
        found.setdefault(evaluation.name.meaning, []).append(evaluation.value.meaning)
    return found


def measured(group):
    """Meaning of a number, with its class in brackets -> value."""
    found = {}
    for measurement in group.get_measurements():
        (item,) = measurement
        name = item.name.meaning
        for modifier in item.get("ContentSequence", []):
            if modifier.ConceptNameCodeSequence[0].CodeValue == FINDING.value:
                name += f" [{modifier.ConceptCodeSequence[0].CodeMeaning}]"
        found[name] = item.value
    return found


def test_it_is_read_back_with_every_answer(report, studies, tmp_path):
    path = studies.written(tmp_path / "report.dcm", report())
    made = highdicom.sr.srread(path)
    assert isinstance(made, highdicom.sr.ComprehensiveSR)
    assert isinstance(made.content, highdicom.sr.MeasurementReport)
    expected = studies.predictions()
    for task, group in zip(studies.TASKS, groups(made), strict=True):
        found = expected[task]
        assert group.tracking_identifier == task
        numbers, answers = measured(group), evaluated(group)
        for name, probability in zip(found.classes, found.probabilities[0], strict=True):
            assert numbers[f"Probability [{name}]"] == probability
        assert answers["Diagnosis"] == [found.labels[0]]
        assert answers["Prediction set holds"] == list(found.set_of(0))
        assert answers["Refer to a human"] == answers["Unlike the validation records"] == ["No"]
        entropy = numbers["Uncertainty, predictive entropy"]
        parts = [
            numbers["Uncertainty of the data, expected entropy"],
            numbers["Uncertainty of the model, mutual information"],
        ]
        assert entropy == found.uncertainty.predictive_entropy[0]
        np.testing.assert_allclose(sum(parts), entropy, rtol=1e-12)
        assert numbers["Share of known records as far away"] == 0.4


def test_a_record_that_no_class_fits_is_told_so_and_referred(report):
    for group in groups(report(row=1)):
        answers = evaluated(group)
        assert answers["Prediction set holds"] == ["No class fits"]
        assert answers["Refer to a human"] == answers["Unlike the validation records"] == ["Yes"]


def test_what_was_not_fitted_is_not_told(report, studies):
    whole = studies.predictions()
    bare = dataclasses.replace(
        whole,
        out_of_distribution=None,
        tasks={t: dataclasses.replace(f, sets=None, refer=None) for t, f in whole.tasks.items()},
    )
    made = report(predictions=bare, post_processing="", how={})
    assert all(set(evaluated(group)) == {"Diagnosis"} for group in groups(made))
    assert "post-processing: none" in studies.all_text(made)


def test_patient_and_study_are_those_of_the_sources(report, studies):
    made, source = report(), studies.header("Doe^Jane", 1, 1)
    for keyword in COPIED_TAGS:
        assert made.get(keyword) == source.get(keyword), keyword
    assert f"{made.ContentDate} {made.ContentTime}" == "20240102 102030.5"


def test_every_image_is_referred_to_and_evidence(report, studies):
    made = report()
    uids = ["1.2.3.1.1", "1.2.3.1.2"]
    assert [uid for _, _, uid, _ in made.get_evidence()] == uids
    for group in groups(made):
        assert [image.referenced_sop_instance_uid for image in group.source_images] == uids


def test_frames_are_counted_from_one(report, studies):
    data = studies.header("Doe^Jane", 1, 1, NumberOfFrames=9)
    made = report(of_one_study({"mri": [source_image(data, (0, 4))]}, "case"))
    (image,) = groups(made)[0].source_images
    assert list(image.referenced_frame_numbers) == [1, 5]


def test_model_and_post_processing_are_the_algorithm(report, studies):
    words = studies.all_text(report())
    model = studies.model()
    for fact in (model.name, model.identity, model.version, model.post_processing, "seed: 0"):
        assert fact in words
    assert report().DeviceSerialNumber == model.identity


def test_it_says_that_it_is_for_research(report):
    made = report()
    comments = [
        item.TextValue
        for item in made.ContentSequence
        if item.ValueType == "TEXT" and item.ConceptNameCodeSequence[0].CodeMeaning == "Comment"
    ]
    assert RESEARCH in comments
    assert made.ContentQualification == "RESEARCH"
    assert (made.VerificationFlag, made.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    for group in made.ContentSequence[-1 - len(comments)].ContentSequence:
        assert RESEARCH in group.ContentSequence[-1].TextValue


def test_absent_modalities_and_tables_are_named(report, studies):
    first, second = (studies.all_text(report(row=row)) for row in (0, 1))
    assert (
        "Read: mri, ct, clinic_table (of them without images: clinic_table); absent: pet" in first
    )
    assert "Read: mri; absent: ct, clinic_table, pet" in second


def test_the_same_answers_are_the_same_object(report, studies, tmp_path):
    first, again = (studies.written(tmp_path / name, report()) for name in ("a.dcm", "b.dcm"))
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"identity": "f" * 32}, {"post_processing": "0" * 16}]
)
def test_another_model_or_seed_is_another_series(change, report):
    assert report(**change).SeriesInstanceUID != report().SeriesInstanceUID


def test_other_answers_or_names_are_other_objects_of_the_series(report, studies):
    first, row, codes = (
        report(),
        report(row=1),
        report(codes={"grade": {"low": Code("1", "X", "low")}}),
    )
    renamed = report(studies.sources("Doe^Janet"))
    assert len({made.SOPInstanceUID for made in (first, row, codes, renamed)}) == 4
    assert {made.SeriesInstanceUID for made in (first, row, codes, renamed)} == {
        first.SeriesInstanceUID
    }


def test_uids_are_of_uuids_and_valid():
    made = {uid("a", k) for k in range(200)}
    assert len(made) == 200
    assert all(pydicom.uid.UID(value).is_valid and value.startswith("2.25.") for value in made)


def test_no_name_of_record_file_machine_or_stranger_enters(report, studies, tmp_path):
    """What surrounds the answers holds secrets in every place where one could stand."""
    content = studies.written(tmp_path / "report.dcm", report()).read_bytes()
    for secret in studies.SECRETS:
        assert secret.encode() not in content
    assert b"scanner-host" in studies.header("Doe^Jane", 1, 1).StationName.encode()


def test_nothing_of_one_patient_enters_the_report_of_another(report, studies, tmp_path):
    """Both are made in one process, the second after the first; only their own values differ."""
    first, second = "Doe^Jane", "Roe^Richard"
    made = {
        name: studies.written(tmp_path / f"{name}.dcm", report(studies.sources(name, study)))
        for study, name in ((11, first), (22, second))
    }
    for name, other, study in ((first, second, "1.2.3.22"), (second, first, "1.2.3.11")):
        content = made[name].read_bytes()
        assert name.encode() in content
        for foreign in (other, f"id of {other}", study):
            assert foreign.encode() not in content


def test_names_of_any_script_survive(report, studies, tmp_path):
    patient = "Yamada^Tarou=山田^太郎"
    data = studies.header(patient, 1, 1, SpecificCharacterSet="ISO_IR 192")
    sources = of_one_study({"mri": [source_image(data)]}, "case")
    tasks = {"größe": ("Lösung\\A", "x" * 90, "健康")}
    made = report(sources, studies.predictions(tasks), tasks=tasks, how={})
    read = highdicom.sr.srread(studies.written(tmp_path / "report.dcm", made))
    assert str(read.PatientName) == patient
    numbers = measured(groups(read)[0])
    assert {f"Probability [{line(name)}]" for name in tasks["größe"]} <= set(numbers)


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm"])
def test_headers_of_real_scanners_make_reports(name, report, studies, tmp_path):
    path = get_testdata_file(name, download=False)
    sources = read_case({"mri": path}, {"mri": Reading(DICOM)}, "case")
    made = highdicom.sr.srread(studies.written(tmp_path / "report.dcm", report(sources)))
    source = pydicom.dcmread(path, stop_before_pixels=True)
    assert str(made.PatientName) == str(source.PatientName).strip()
    assert made.StudyInstanceUID == source.StudyInstanceUID
    (image,) = groups(made)[0].source_images
    assert image.referenced_sop_instance_uid == source.SOPInstanceUID


def test_standard_codes_take_the_place_of_private_ones(report):
    glioma = Code("393564001", "SCT", "Glioma")
    first, second = groups(report(codes={"tumour": {"glioma": glioma}}))
    (diagnosis,) = (e for e in first.get_qualitative_evaluations() if e.name.meaning == "Diagnosis")
    assert (diagnosis.value.value, diagnosis.value.scheme_designator) == ("393564001", "SCT")
    (private,) = (e for e in second.get_qualitative_evaluations() if e.name.meaning == "Diagnosis")
    assert (private.value.value, private.value.scheme_designator) == ("2.1", "99DRIFACLASS")
    assert private.value.scheme_version == "0123456789abcdef"


def test_a_validator_of_the_standard_finds_no_error(report, studies, tmp_path):
    if shutil.which("dciodvfy") is None:
        pytest.skip("needs dciodvfy on PATH (Debian package dicom3tools)")
    path = studies.written(tmp_path / "report.dcm", report())
    told = subprocess.run(["dciodvfy", path], capture_output=True, text=True).stderr
    assert "ComprehensiveSR" in told
    assert "Error" not in told
