"""NIfTI volumes: grey levels, pairs, and every defect of a file by name."""

from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest

from drifa_jax.data.problems import FileError
from drifa_jax.data.readers import nifti
from drifa_jax.data.readers.nifti import is_nifti_name, read_shape, read_volume
from drifa_jax.data.record import ModalitySpec
from drifa_jax.errors import UserError

RAMP = np.arange(8 * 9 * 10, dtype=np.float32).reshape(8, 9, 10)


def save(path, values=RAMP, affine=None, kind=nibabel.Nifti1Image, **fields):
    """One file; fields of the header are set as they are, against nibabel's own checks."""
    image = kind(values, np.eye(4) if affine is None else affine)
    for name, value in fields.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def patched(path, offset: int, value: bytes):
    """Overwrites bytes of a header that no library would write so."""
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(content)
    return path


def refused(path, words: str) -> None:
    """Both the header and the volume are refused, by a message that begins with the file."""
    for read in (read_shape, read_volume):
        with pytest.raises(FileError, match=words) as caught:
            read(path)
        assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
def test_both_versions_are_read_packed_or_not(tmp_path, kind, name):
    path = save(tmp_path / name.lower(), kind=kind).rename(tmp_path / name)
    low, high = np.percentile(RAMP, (0.5, 99.5))
    expected = np.rint(np.clip((RAMP - low) / (high - low), 0, 1) * 255)
    assert read_shape(path) == (8, 9, 10)
    # Single precision of this order of operations moves a value across a rounding limit.
    np.testing.assert_allclose(read_volume(path), expected, atol=1)


def test_a_header_and_its_image_are_one_volume(tmp_path):
    save(tmp_path / "a.hdr", kind=nibabel.Nifti1Pair)
    save(tmp_path / "b.nii")
    assert read_shape(tmp_path / "a.hdr") == (8, 9, 10)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.hdr"), read_volume(tmp_path / "b.nii"))
    (tmp_path / "a.img").unlink()
    refused(tmp_path / "a.hdr", r"lacks the a\.img")


def test_stored_integers_are_scaled_as_the_header_says(tmp_path):
    image = nibabel.Nifti1Image(RAMP.astype(np.int16), np.eye(4))
    image.header.set_slope_inter(-2, 7)
    nibabel.save(image, tmp_path / "a.nii")
    plain = read_volume(save(tmp_path / "b.nii"))
    # The order is turned round, to within one level of rounding.
    np.testing.assert_allclose(
        read_volume(tmp_path / "a.nii").astype(int), 255 - plain.astype(int), atol=1
    )


def test_sparse_volumes_keep_their_range(tmp_path):
    values = np.zeros((20, 20, 20), np.float32)
    values[3, 3, 3], values[4, 4, 4] = 50, 100
    volume = read_volume(save(tmp_path / "a.nii", values))
    assert np.unique(volume).tolist() == [0, 128, 255]


def test_a_damaged_or_cut_stream_is_named(tmp_path):
    noise = np.random.Generator(np.random.Philox(0)).normal(size=(16, 16, 16)).astype(np.float32)
    good = save(tmp_path / "a.nii.gz", noise).read_bytes()
    corrupt, checksum = bytearray(good), bytearray(good)
    corrupt[len(good) // 2 : len(good) // 2 + 50] = b"\xff" * 50
    checksum[-8] ^= 0xFF
    for name, content in {"z": corrupt, "crc": checksum, "cut": good[:-2000]}.items():
        path = tmp_path / f"{name}.nii.gz"
        path.write_bytes(content)
        with pytest.raises(FileError, match=rf"{name}\.nii\.gz: is damaged or truncated"):
            read_volume(path)


def test_a_name_that_tells_the_wrong_packing_is_corrected(tmp_path):
    content = save(tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(content)
    refused(tmp_path / "b.nii.gz", "is not compressed; call it .nii")
    (tmp_path / "c.nii").write_bytes(gzip.compress(content))
    refused(tmp_path / "c.nii", r"is compressed; call it \.nii\.gz")


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (np.diag([1.0, 1, 0, 1]), "singular"),
        (np.zeros((4, 4)), "singular"),
        (np.diag([1.0, np.nan, 1, 1]), "holds NaN"),
    ],
)
def test_an_affine_without_directions_is_named(tmp_path, affine, words):
    image = nibabel.Nifti1Image(RAMP, np.eye(4))
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        image.header[name] = affine[row]
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    path = tmp_path / "a.nii"
    path.write_bytes(image.header.binaryblock + b"\0" * 4 + RAMP.tobytes("F"))
    refused(path, words)


def test_values_that_are_not_one_number_a_voxel_are_named(tmp_path):
    colour = np.zeros((4, 4, 4), [(c, "u1") for c in "RGB"])
    refused(save(tmp_path / "rgb.nii.gz", colour), "is a colour volume")
    refused(save(tmp_path / "c.nii.gz", RAMP.astype(np.complex64)), "complex.*magnitude")
    refused(save(tmp_path / "cifti.nii", RAMP, intent_code=3001), "is a CIFTI file")
    refused(save(tmp_path / "4d.nii", np.zeros((4, 4, 4, 2), np.float32)), "wanted one volume")
    refused(save(tmp_path / "2d.nii", np.zeros((4, 4), np.float32)), "wanted one volume")


def test_a_fourth_axis_of_one_is_a_volume(tmp_path):
    assert read_shape(save(tmp_path / "a.nii", RAMP[..., None])) == (8, 9, 10)


def test_sizes_are_checked_against_the_file_before_anything_is_made(tmp_path):
    huge = patched(save(tmp_path / "a.nii"), 40, np.array([3, 9000, 9000, 9000], "<i2").tobytes())
    refused(huge, "more than the 268,435,456 allowed")
    large = patched(save(tmp_path / "b.nii"), 40, np.array([3, 500, 500, 500], "<i2").tobytes())
    refused(large, "do not fit in")
    packed = tmp_path / "c.nii.gz"
    packed.write_bytes(gzip.compress(large.read_bytes()))
    refused(packed, "do not fit in")
    far = patched(save(tmp_path / "d.nii"), 108, np.array([1e30], "<f4").tobytes())
    refused(far, "vox_offset is out of range")


def test_a_bomb_behind_a_small_volume_is_not_unpacked(tmp_path):
    bomb = tmp_path / "a.nii.gz"
    bomb.write_bytes(gzip.compress(save(tmp_path / "a.nii").read_bytes() + b"\0" * 2**25))
    with pytest.raises(FileError, match="holds far more than its header declares"):
        read_volume(bomb)


def test_unknown_types_and_foreign_files_are_named(tmp_path):
    refused(patched(save(tmp_path / "a.nii"), 70, b"\x07\x00"), "a header that cannot be used")
    (tmp_path / "words.nii").write_text("words")
    refused(tmp_path / "words.nii", "is not a NIfTI file")
    (tmp_path / "empty.nii").write_bytes(b"")
    refused(tmp_path / "empty.nii", "is empty")
    refused(tmp_path / "gone.nii", "there is no such file")
    nibabel.save(nibabel.AnalyzeImage(RAMP, np.eye(4)), tmp_path / "analyze.hdr")
    refused(tmp_path / "analyze.hdr", "is an Analyze file")


def test_nan_is_named_with_a_cure(tmp_path):
    values = RAMP.copy()
    values[3, 3, 3] = np.nan
    with pytest.raises(FileError, match=r"a\.nii: has voxels that are NaN.*fslmaths"):
        read_volume(save(tmp_path / "a.nii", values))


def test_files_of_the_system_are_no_volumes(tmp_path):
    (tmp_path / "._a.nii.gz").write_bytes(b"Mac OS X")
    assert not is_nifti_name(tmp_path / "._a.nii.gz")
    assert is_nifti_name(save(tmp_path / "a.nii"))


def test_a_changed_file_is_read_anew(tmp_path):
    first = read_volume(save(tmp_path / "a.nii"))
    assert not np.array_equal(read_volume(save(tmp_path / "a.nii", RAMP[::-1])), first)


def test_slices_outside_the_volume_are_named(tmp_path):
    with pytest.raises(UserError, match="has the axial slices 0 to 9, but not 10"):
        nifti.read_image(save(tmp_path / "a.nii"), 10, ModalitySpec("mri", 8, 8, 1), fit="stretch")
