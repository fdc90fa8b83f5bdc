import nibabel
import numpy as np
import pytest

from drifa_jax.data.readers.any_volume import read_any_volume
from drifa_jax.data.record import VolumeSpec
from drifa_jax.errors import UserError
from drifa_jax.predict.inputs import find_cases
from drifa_jax.predict.reading import Reading
from tests.data.readers.dicom_writing import write

SPEC = VolumeSpec("ct", 3, 4, 4, 1)


@pytest.fixture
def series(tmp_path):
    """A folder with one series of three slices of 0, 20 and 40 HU."""
    folder = tmp_path / "ct" / "1.2.840"
    for k in range(3):
        write(
            folder / f"{9 - k}",
            np.full((4, 4), 20 * k, np.uint16),
            ImagePositionPatient=[0, 0, k],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            SeriesInstanceUID="1.2",
            PatientID="p",
        )
    return folder


def test_a_folder_of_one_series_is_a_volume(series):
    volume = read_any_volume(str(series), SPEC, fit="stretch", window="brain")
    # Window 0..80 HU.
    assert volume[:, 0, 0, 0].tolist() == [0, 64, 128]


def test_two_series_in_a_folder_are_named(series):
    write(series / "other", np.zeros((4, 4), np.uint16), SeriesInstanceUID="3.4", PatientID="p")
    with pytest.raises(UserError, match=r"holds 2 series .*give each a folder of its own"):
        read_any_volume(str(series), SPEC, fit="stretch")


@pytest.mark.parametrize(
    ("name", "words"),
    [("a.png", "is a picture, and the network reads volumes"), ("a.npy", "has the type float64")],
)
def test_files_that_hold_no_volume_are_named(tmp_path, name, words):
    path = tmp_path / name
    np.save(path, np.zeros((3, 4, 4))) if name.endswith("npy") else path.write_bytes(b"x")
    with pytest.raises(UserError, match=words):
        read_any_volume(str(path), SPEC, fit="stretch")


def test_a_series_folder_a_file_and_folders_of_them_are_cases(series, tmp_path):
    dicom = {"ct": Reading("dicom", volume=True)}
    for given in (series, series.parent):
        cases = find_cases([f"ct={given}"], dicom)
        assert cases.record_ids == ("1.2.840",) and cases.images["ct"] == (series,)
    assert find_cases([str(series)], dicom).record_ids == ("1.2.840",)
    scan = tmp_path / "scan.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 3)), np.eye(4)), scan)
    both = dicom | {"mri": Reading("nifti", volume=True)}
    cases = find_cases([f"ct={series}", f"mri={scan}"], both)
    assert cases.record_ids == ("1.2.840+scan",)
