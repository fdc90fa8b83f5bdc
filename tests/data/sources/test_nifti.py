"""NIfTI volumes: one canonical frame, slices, whole volumes, errors."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from drifa_jax.config import ModalityConfig
from drifa_jax.data.readers.nifti import read_volume
from drifa_jax.data.record import ModalitySpec, VolumeSpec
from drifa_jax.data.sources.nifti import nifti_records
from drifa_jax.data.sources.opening import open_modality
from drifa_jax.data.splits import shares, split_records
from drifa_jax.errors import UserError

MRI = ModalitySpec("mri", 12, 10, 1)


def head() -> np.ndarray:
    """`[10, 12, 8]` in right, anterior, superior order, brightest to the right, front and top."""
    x, y, z = np.mgrid[:10, :12, :8]
    return (x * 10 + y * 3 + z).astype(np.float32)


def save(path, values, axes="RAS"):
    """Store canonical values in another orientation; the affine says which."""
    path.parent.mkdir(parents=True, exist_ok=True)
    canonical = nibabel.Nifti1Image(values, np.eye(4))
    wanted = nibabel.orientations.axcodes2ornt(tuple(axes))
    nibabel.save(
        canonical.as_reoriented(
            nibabel.orientations.ornt_transform(
                nibabel.orientations.axcodes2ornt(("R", "A", "S")), wanted
            )
        ),
        path,
    )
    return path


@pytest.mark.parametrize("axes", ["RAS", "LPS", "ASR", "SPL"])
def test_every_orientation_becomes_the_same_volume(axes, tmp_path):
    reference = read_volume(save(tmp_path / "r.nii", head()))
    np.testing.assert_array_equal(
        read_volume(save(tmp_path / f"{axes}.nii.gz", head(), axes)), reference
    )


def test_axial_slices_have_the_front_up_and_the_right_on_the_left(tmp_path):
    save(tmp_path / "tumour" / "p1.nii.gz", head(), "LPS")
    source = nifti_records(tmp_path, MRI, "tumour", slice_range=(0, 1))
    assert len(source) == 8
    picture = source[3].images["mri"][..., 0].astype(int)
    assert picture.shape == (12, 10)
    assert (np.diff(picture, axis=0) <= 0).all()
    assert (np.diff(picture, axis=1) <= 0).all()
    assert picture[0, 0] > picture[-1, -1]


def test_slices_of_the_middle_are_taken_and_patients_stay_whole(tmp_path):
    for patient in range(4):
        for visit in "ab":
            save(tmp_path / "xy"[patient % 2] / f"p{patient}_{visit}.nii.gz", head())
    source = nifti_records(tmp_path, MRI, "kind", group_pattern=r"^p(\d)", slice_range=(0.25, 0.75))
    assert len(source) == 8 * 4
    assert source.record_id(0) == "x/p0_a/axial-002"
    assert {source.group_id(i) for i in range(len(source))} == {"0", "1", "2", "3"}
    parts = split_records(source, {"train": 0.5, "test": 0.5}, 0)
    groups = [{part.group_id(i) for i in range(len(part))} for part in parts.values()]
    assert not groups[0] & groups[1]


def test_other_planes_count_along_their_axis(tmp_path):
    save(tmp_path / "a" / "p.nii", head())
    for plane, count in (("sagittal", 10), ("coronal", 12), ("axial", 8)):
        assert len(nifti_records(tmp_path, MRI, "kind", plane=plane, slice_range=(0, 1))) == count


def test_whole_volumes_are_resampled(tmp_path):
    save(tmp_path / "a" / "p.nii", head())
    source = nifti_records(tmp_path, VolumeSpec("mri", 4, 6, 5, 1), "kind")
    assert len(source) == 1
    volume = source[0].images["mri"]
    assert volume.shape == (4, 6, 5, 1)
    assert (np.diff(volume[:, 0, 0, 0].astype(int)) > 0).all()


def test_every_broken_file_is_listed(tmp_path):
    bare = nibabel.Nifti1Image(head(), None)
    (tmp_path / "a").mkdir()
    nibabel.save(bare, tmp_path / "a" / "bare.nii")
    (tmp_path / "a" / "words.nii").write_text("words")
    save(tmp_path / "a" / "good.nii", head())
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 3)), np.eye(4)), tmp_path / "a" / "4d.nii")
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "1.png").touch()
    with pytest.raises(UserError, match="5 problems") as caught:
        nifti_records(tmp_path, MRI, "kind")
    for words in (
        "bare.nii: has no affine",
        "words.nii: is not a NIfTI",
        "4d.nii: has the shape",
        "b: holds no .nii",
        "c: holds pictures and no NIfTI files; read them by format=folders and depth=0",
    ):
        assert words in str(caught.value)


def test_broken_files_are_quarantined_when_asked(tmp_path):
    save(tmp_path / "in" / "a" / "good.nii", head())
    (tmp_path / "in" / "a" / "words.nii").write_text("words")
    report = tmp_path / "report.csv"
    source = nifti_records(tmp_path / "in", MRI, "kind", slice_range=(0, 1), quarantine=report)
    assert len(source) == 8
    assert "words.nii,is not a NIfTI file" in report.read_text()


def test_damaged_voxels_are_named_when_they_are_read(tmp_path):
    values = head()
    values[3, 3, 3] = np.nan
    save(tmp_path / "a" / "nan.nii", values)
    with pytest.raises(UserError, match=r"nan\.nii: has voxels that are NaN"):
        nifti_records(tmp_path, MRI, "kind")[0]
    short = save(tmp_path / "b" / "short.nii", head())
    short.write_bytes(short.read_bytes()[:600])
    with pytest.raises(UserError, match=r"short\.nii: is damaged or truncated"):
        read_volume(short)


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="plane is 'oblique'"):
        nifti_records(tmp_path, MRI, "kind", plane="oblique")
    with pytest.raises(ValueError, match="slice_range"):
        nifti_records(tmp_path, MRI, "kind", slice_range=(0.8, 0.2))
    with pytest.raises(UserError, match="does not exist"):
        nifti_records(tmp_path / "nowhere", MRI, "kind")


def test_volumes_open_by_their_format(tmp_path):
    for patient in range(6):
        save(tmp_path / "ab"[patient % 2] / f"p{patient}.nii.gz", head())
    config = ModalityConfig(
        height=MRI.height, width=MRI.width, channels=1, root=str(tmp_path), task="kind",
        format="nifti", group_pattern=r"^p(\d)",
    )  # fmt: skip
    splits = open_modality("mri", config, shares(0.15, 0.2))
    assert set(splits) == {"train", "validation", "test"}
    assert sum(len(source) for source in splits.values()) == 6 * 4


def test_a_volume_is_the_same_however_its_axes_are_stored(tmp_path):
    values = head()
    save(tmp_path / "a" / "plain.nii", values)
    # The same body with its axes in another order, one of them backwards.
    turned = nibabel.Nifti1Image(values.transpose(2, 0, 1)[:, ::-1], np.eye(4))
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 1, -1, 1, 1
    affine[0, 3] = values.shape[0] - 1
    nibabel.save(nibabel.Nifti1Image(turned.get_fdata(), affine), tmp_path / "a" / "turned.nii")
    plain, other = nifti_records(tmp_path, VolumeSpec("mri", 6, 7, 8, 1), "kind")
    np.testing.assert_array_equal(plain.images["mri"], other.images["mri"])


def test_a_spacing_is_that_of_the_affine(tmp_path):
    values = np.arange(4 * 4 * 4).reshape(4, 4, 4).astype(np.float32)
    path = tmp_path / "a" / "thick.nii"
    path.parent.mkdir()
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 3.0, 1.0])), path)
    record = nifti_records(tmp_path, VolumeSpec("mri", 12, 8, 8, 1), "kind", spacing=(1, 1, 1))[0]
    volume = record.images["mri"][..., 0]
    # Twelve millimetres of slices fill the depth; four of each plane lie in its middle.
    assert volume[:, 2:6, 2:6].any((1, 2)).all()
    volume[:, 2:6, 2:6] = 0
    assert not volume.any()


def test_a_volume_of_one_slice_is_named(tmp_path):
    save(tmp_path / "a" / "p.nii", head()[:, :, :1])
    with pytest.raises(UserError, match=r"p\.nii: is one slice thick.*depth=0"):
        nifti_records(tmp_path, VolumeSpec("mri", 4, 4, 4, 1), "kind")
