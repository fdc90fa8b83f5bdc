"""Errors of any library become errors that name the file; what is left out is counted."""

from __future__ import annotations

import pickle
import zlib

import pytest

from drifa_jax.data.problems import FileError, LeftOut, Problems, reading
from drifa_jax.errors import UserError


class Panic(BaseException):
    """As libraries in Rust raise it."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (zlib.error("invalid block type"), r"scan\.nii: is damaged \(invalid block type\)\."),
        (KeyError("WindowWidth"), r"scan\.nii: is damaged \('WindowWidth'\)\."),
        (Panic("index out of bounds"), r"scan\.nii: is damaged \(index out of bounds\)\."),
        (RecursionError(), r"scan\.nii: is damaged\."),
        (MemoryError(), r"scan\.nii: needs more memory to read than there is"),
        (PermissionError(13, "Permission denied"), r"cannot be read \(Permission denied\)"),
    ],
)
def test_every_error_of_a_library_names_the_file(error, words):
    with pytest.raises(FileError, match=words), reading("scan.nii", "is damaged"):
        raise error


def test_words_that_may_quote_a_patient_are_not_passed_on():
    with pytest.raises(FileError) as caught, reading("a.dcm", "is damaged", quote=False):
        raise ValueError("CANARY^NAME")
    assert str(caught.value) == "a.dcm: is damaged."
    # A chained error would be printed with a stack trace.
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_errors_of_the_user_and_interruptions_pass():
    for error in (UserError("told already"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, reading("a.dcm", "is damaged"):
            raise error
        assert caught.value is error


def test_an_error_of_a_file_survives_the_way_from_a_worker():
    error = pickle.loads(pickle.dumps(FileError("a.png", "is empty")))
    assert (error.where, error.what, str(error)) == ("a.png", "is empty", "a.png: is empty.")


def test_what_is_left_out_is_counted_by_reason():
    left_out, more = LeftOut(), LeftOut()
    assert not left_out
    left_out.add("reports (SR)")
    more.add("hidden files", 2)
    left_out += more
    assert str(left_out) == "left out: 2 hidden files, 1 reports (SR)"


def test_a_quarantine_report_of_an_earlier_try_does_not_stay(tmp_path):
    problems = Problems("the folder")
    problems.add("a.png", "is empty")
    left_out = LeftOut()
    problems.settle("Repair it.", tmp_path / "report.csv", left_out)
    assert left_out.notes("here") == (
        f"here: left out: 1 with problems, listed in {tmp_path / 'report.csv'}",
    )
    assert "a.png,is empty" in (tmp_path / "report.csv").read_text()
    Problems("the folder").settle("Repair it.", tmp_path / "report.csv", LeftOut())
    assert not (tmp_path / "report.csv").exists()
