"""DICOM series: order, units, windows, errors, and no identifying tag anywhere."""

from __future__ import annotations

import contextlib
import gzip
import io

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from drifa_jax.config import ModalityConfig
from drifa_jax.data.pairing import combine
from drifa_jax.data.pipeline import training_batches
from drifa_jax.data.prepare import prepare
from drifa_jax.data.readers.dicom import WINDOWS
from drifa_jax.data.record import ModalitySpec, VolumeSpec
from drifa_jax.data.sources.dicom import dicom_records
from drifa_jax.data.sources.opening import open_modality
from drifa_jax.data.sources.prepared import open_prepared
from drifa_jax.data.splits import shares, split_records
from drifa_jax.errors import UserError
from tests.data.readers.dicom_writing import CANARY, item, write

CT = ModalitySpec("ct", 8, 8, 1)


def write_dicom(path, values, *, z=0.0, patient="p1", series="1.2.3", pixels=True, **tags):
    """One CT slice; stored values are Hounsfield units plus 1024."""
    stored = (np.asarray(values) + 1024).astype(np.uint16) if pixels else None
    place = {"ImagePositionPatient": [0, 0, z], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    known = {"PatientID": f"{CANARY} {patient}", "SeriesInstanceUID": series}
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    return write(path, stored, **{**known, **place, **rescale, **tags})


def flat(hounsfield: float) -> np.ndarray:
    return np.full((8, 8), hounsfield)


@pytest.fixture
def scans(tmp_path):
    """Two patients; file names are in the opposite order of positions."""
    root = tmp_path / "ct"
    for k in range(4):
        write_dicom(root / "normal" / "a" / f"{9 - k}.dcm", flat(10 * k), z=5.0 * k)
        write_dicom(root / "stroke" / "b" / f"{k}.dcm", flat(40), z=k, patient="p2", series="9")
    return root


def value(source, index):
    return int(source[index].images["ct"][0, 0, 0])


def test_slices_are_ordered_by_position_and_windowed(scans):
    source = dicom_records(scans, CT, "stroke", window="brain")
    assert len(source) == 8
    # Window 0..80 HU: 0, 10, 20, 30 HU become 0, 31.9, 63.75, 95.6.
    assert [value(source, k) for k in range(4)] == [0, 32, 64, 96]
    assert source.labels("stroke").tolist() == [0] * 4 + [1] * 4


def test_patients_keep_their_slices_together(scans):
    source = dicom_records(scans, CT, "stroke")
    assert len({source.group_id(i) for i in range(4)}) == 1
    assert len({source.group_id(i) for i in range(8)}) == 2
    splits = split_records(source, {"train": 0.5, "test": 0.5}, 0)
    assert {len(part) for part in splits.values()} == {4}


def test_three_windows_become_colours(scans):
    colour = ModalitySpec("ct", 8, 8, 3)
    pixel = dicom_records(scans, colour, "stroke", window="brain,subdural,bone")[7].images["ct"][
        0, 0
    ]
    expected = [
        255 * (40 - (centre - width / 2)) / width
        for centre, width in (WINDOWS[name] for name in ("brain", "subdural", "bone"))
    ]
    np.testing.assert_allclose(pixel, expected, atol=0.51)


def test_windows_of_the_file_and_ranges_are_fallbacks(tmp_path):
    values = np.linspace(-100, 300, 64).reshape(8, 8)
    write_dicom(tmp_path / "a" / "own.dcm", values, WindowCenter=[100, 7], WindowWidth=[200, 9])
    write_dicom(tmp_path / "b" / "range.dcm", values, patient="p2")
    source = dicom_records(tmp_path, CT, "kind")
    own, whole = source[0].images["ct"], source[1].images["ct"]
    assert own[0, 0, 0] == own[1, 4, 0] == 0
    assert own[-1, -1, 0] == 255
    assert (np.diff(whole[..., 0].ravel().astype(int)) > 0).all()
    assert (whole.min(), whole.max()) == (0, 255)


def test_monochrome1_is_inverted(tmp_path):
    write_dicom(tmp_path / "a" / "1.dcm", flat(0), PhotometricInterpretation="MONOCHROME1")
    assert value(dicom_records(tmp_path, CT, "kind", window="brain"), 0) == 255


def test_volumes_hold_a_whole_series_in_order(scans):
    volume = VolumeSpec("ct", 4, 8, 8, 1)
    source = dicom_records(scans, volume, "stroke", window="brain")
    assert len(source) == 2
    assert source[0].images["ct"][:, 0, 0, 0].tolist() == [0, 32, 64, 96]


def test_no_identifying_tag_reaches_a_prepared_set_a_log_or_an_error(scans, tmp_path, caplog):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        source = dicom_records(scans, CT, "stroke")
        prepare({"train": source, "test": source}, tmp_path / "out")
        reread = open_prepared(tmp_path / "out")["train"]
    written = b"".join(p.read_bytes() for p in (tmp_path / "out").iterdir())
    told = said.getvalue() + caplog.text + source.description + reread.description
    told += "".join(f"{r.record_id(i)}{r.group_id(i)}" for r in (source, reread) for i in range(8))
    broken = write_dicom(scans / "normal" / "broken.dcm", flat(0), series="5")
    header = pydicom.dcmread(broken)
    header.PixelData = header.PixelData[:10]
    header.save_as(broken)
    with pytest.raises(UserError, match="cannot be decoded") as caught:
        [record for record in dicom_records(scans, CT, "stroke")]
    told += str(caught.value)
    for secret in ("CANARY", "LEAK", "19991231"):
        assert secret not in told
        assert secret.encode() not in written


def test_burned_in_annotation_warns(tmp_path):
    write_dicom(tmp_path / "a" / "1.dcm", flat(0), BurnedInAnnotation="YES")
    (note,) = dicom_records(tmp_path, CT, "kind").notes
    assert "1 images are flagged as holding burned-in annotation" in note
    assert "CANARY" not in note


def test_every_broken_file_is_listed(tmp_path):
    write_dicom(tmp_path / "a" / "report.dcm", None, pixels=False)
    (tmp_path / "a" / "words.dcm").write_text("words")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "1.nii.gz").touch()
    write_dicom(tmp_path / "b" / "1.dcm", flat(0), NumberOfFrames=3)
    write_dicom(tmp_path / "c" / "1.dcm", flat(0), series="7")
    write_dicom(
        tmp_path / "c" / "2.dcm", flat(0), series="7", ImageOrientationPatient=[1, 0, 0, 0, 0, -1]
    )
    with pytest.raises(UserError, match="6 problems") as caught:
        dicom_records(tmp_path, CT, "kind")
    for words in (
        "report.dcm: has no pixel data",
        "words.dcm: is not a DICOM file",
        "empty: holds no DICOM files",
        "other: holds NIfTI files and no DICOM files; read them by format=nifti",
        "b/1.dcm: is truncated",
        "c: holds a series with mixed orientations",
    ):
        assert words in str(caught.value)


def test_broken_files_and_series_are_quarantined_when_asked(scans, tmp_path):
    (scans / "normal" / "words.dcm").write_text("words")
    (scans / "normal" / "empty.dcm").write_bytes(b"")
    (scans / "normal" / "cut.dcm.gz").write_bytes(gzip.compress(b"words")[:-4])
    write_dicom(scans / "normal" / "short.dcm", flat(0), Rows=800)
    write_dicom(scans / "normal" / "two.dcm", flat(0), ImagePositionPatient=[0, 0])
    write_dicom(scans / "stroke" / "1.dcm", flat(0), series="7", patient="p3")
    turned = [1, 0, 0, 0, 0, -1]
    write_dicom(
        scans / "stroke" / "2.dcm",
        flat(0),
        series="7",
        patient="p3",
        ImageOrientationPatient=turned,
    )
    report = tmp_path / "report.csv"
    source = dicom_records(scans, CT, "stroke", quarantine=report)
    assert len(source) == 8
    assert report.read_text().count("\n") == 7
    assert "mixed orientations" in report.read_text()


def test_a_file_of_several_frames_is_a_series(tmp_path):
    """Frames lie from high to low in the file, and are ordered by their positions."""
    frames = np.stack([flat(10 * k) for k in range(4)])
    write_dicom(
        tmp_path / "a" / "1.dcm",
        frames,
        SharedFunctionalGroupsSequence=item(
            PlaneOrientationSequence=item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
        ),
        PerFrameFunctionalGroupsSequence=[
            item(PlanePositionSequence=item(ImagePositionPatient=[0, 0, -5.0 * k]))[0]
            for k in range(4)
        ],
    )
    source = dicom_records(tmp_path, CT, "kind", window="brain")
    assert [value(source, k) for k in range(4)] == [96, 64, 32, 0]
    assert source.record_id(3) == "patient-0001/series-01/slice-003"
    volume = dicom_records(tmp_path, VolumeSpec("ct", 4, 8, 8, 1), "kind", window="brain")
    assert volume[0].images["ct"][:, 0, 0, 0].tolist() == [96, 64, 32, 0]


def test_directions_that_differ_by_rounding_are_one_series(tmp_path):
    for k, cosine in enumerate([0.0004996, 0.0005004, 0.0005]):
        turned = [1, cosine, 0, -cosine, 1, 0]
        path = tmp_path / "a" / f"{k}.dcm"
        write_dicom(path, flat(10 * k), z=k, ImageOrientationPatient=turned)
    volume = VolumeSpec("ct", 3, 8, 8, 1)
    assert len(dicom_records(tmp_path, volume, "kind")) == 1


def test_single_pictures_need_no_order_but_volumes_do(tmp_path):
    for k in range(3):
        path = tmp_path / "a" / f"{k}.dcm"
        place = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
        write_dicom(path, flat(10 * k), **place, Modality="DX", patient=str(k // 2))
    source = dicom_records(tmp_path, CT, "kind", window="brain")
    assert sorted(value(source, k) for k in range(3)) == [0, 32, 64]
    with pytest.raises(UserError, match=r"without slice positions or numbers \(0\.dcm, 1\.dcm"):
        dicom_records(tmp_path, VolumeSpec("ct", 3, 8, 8, 1), "kind")


def test_whatever_is_left_out_is_counted(scans):
    for k in range(2):
        write_dicom(scans / "normal" / f"seg{k}.dcm", flat(0), Modality="SEG")
    write_dicom(scans / "stroke" / "report.dcm", None, pixels=False, Modality="SR")
    (scans / "stroke" / "notes.txt").write_text("words")
    (scans / "stroke" / "._1.dcm").write_text("of the system")
    source = dicom_records(scans, CT, "stroke")
    assert len(source) == 8
    expected = (
        "left out: 2 segmentations (SEG), 1 files that are not DICOM (.txt), 1 hidden files, "
        "1 reports (SR)"
    )
    assert source.notes == (f"{scans}: {expected}",)


def test_names_links_and_compression_do_not_matter(scans, tmp_path):
    (scans / "normal" / "a" / "9.dcm").rename(scans / "normal" / "a" / "1.2.840.113619.2.55")
    path = scans / "normal" / "a" / "8.dcm"
    path.with_suffix(".dcm.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    (scans / "stroke" / "b").rename(tmp_path / "elsewhere")
    (scans / "stroke" / "b").symlink_to(tmp_path / "elsewhere")
    assert len(dicom_records(scans, CT, "stroke")) == 8


def test_wrong_folders_and_windows_are_named(tmp_path, scans):
    with pytest.raises(UserError, match="does not exist"):
        dicom_records(tmp_path / "nowhere", CT, "kind")
    with pytest.raises(UserError, match="window 'liver' is unknown"):
        dicom_records(scans, CT, "kind", window="liver")
    with pytest.raises(ValueError, match="2 windows cannot fill 1 channels"):
        dicom_records(scans, CT, "kind", window="brain,bone")


def at(root, task, format, size=8, channels=1, **fields):
    return ModalityConfig(
        height=size, width=size, channels=channels, root=str(root), task=task, format=format,
        **fields,
    )  # fmt: skip


def test_series_open_by_their_format(scans):
    config = at(scans, "stroke", "dicom", window="brain")
    splits = open_modality("ct", config, shares(0, 0.2))
    assert set(splits) == {"train", "test"}
    assert sum(len(source) for source in splits.values()) == 8


def test_ct_from_dicom_mri_from_nifti_and_photos_from_jpeg_meet_in_one_record(scans, tmp_path):
    volume = np.random.Generator(np.random.Philox(0)).random((6, 6, 6), dtype=np.float32)
    generator = np.random.Generator(np.random.Philox(1))
    for kind in "ab":
        (tmp_path / "mri" / kind).mkdir(parents=True)
        (tmp_path / "photo" / kind).mkdir(parents=True)
        for k in range(4):
            image = nibabel.Nifti1Image(volume, np.eye(4))
            nibabel.save(image, tmp_path / "mri" / kind / f"{k}.nii.gz")
            pixels = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photo" / kind / f"{k}.jpg")
    configs = {
        "ct": at(scans, "stroke", "dicom"),
        "mri": at(tmp_path / "mri", "tumour", "nifti", size=6),
        "photo": at(tmp_path / "photo", "skin", "folders", size=10, channels=3),
    }
    sources = {
        name: open_modality(name, config, shares(0, 0.2))["train"]
        for name, config in configs.items()
    }
    pairs = combine("random", sources, evaluation=False)
    batch = next(training_batches(pairs, batch_size=2, seed=0))
    assert batch["images"]["ct"].shape == (2, 8, 8, 1)
    assert batch["images"]["mri"].shape == (2, 6, 6, 1)
    assert batch["images"]["photo"].shape == (2, 10, 10, 3)
    assert all((batch["labels"][task] >= 0).all() for task in ("stroke", "tumour", "skin"))


def write_series(folder, volume, origin, orientation, step, *, spacing=(1.0, 1.0)):
    """A series of the planes `volume[k]`, `step` mm apart along its normal."""
    normal = np.cross(orientation[:3], orientation[3:])
    for k, plane in enumerate(volume):
        place = (np.array(origin) + k * step * normal).tolist()
        write_dicom(
            folder / f"{k}.dcm",
            plane,
            ImagePositionPatient=place,
            ImageOrientationPatient=list(orientation),
            PixelSpacing=list(spacing),
        )


def test_a_sagittal_series_is_turned_as_an_axial_one(tmp_path):
    # Body [upwards, backwards, leftwards] with a value of its own in every place.
    body = np.arange(4 * 5 * 6).reshape(4, 5, 6) % 80
    write_series(tmp_path / "axial" / "a", body, (0, 0, 0), (1, 0, 0, 0, 1, 0), 1.0)
    # Sagittal planes: columns run backwards, rows downwards; the normal points to the right.
    sagittal = body.transpose(2, 0, 1)[::-1, ::-1]
    write_series(tmp_path / "sagittal" / "s", sagittal, (5, 0, 3), (0, 1, 0, 0, 0, -1), 1.0)
    spec = VolumeSpec("ct", 4, 5, 6, 1)
    axial, turned = dicom_records(tmp_path, spec, "kind", window="brain")
    assert np.ptp(axial.images["ct"]) > 200
    np.testing.assert_array_equal(axial.images["ct"], turned.images["ct"])


def test_a_spacing_is_that_of_positions_and_pixels(tmp_path):
    body = np.full((4, 8, 8), 40)
    write_series(tmp_path / "a", body, (0, 0, 0), (1, 0, 0, 0, 1, 0), 3.0, spacing=(0.5, 1.0))
    spec = VolumeSpec("ct", 12, 8, 8, 1)
    record = dicom_records(tmp_path, spec, "kind", window="brain", spacing=(1.0, 1.0, 1.0))[0]
    volume = record.images["ct"][..., 0]
    assert (volume[:, 2:6] == 128).all() and not volume[:, :2].any() and not volume[:, 6:].any()


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([0, 1, 1, 2], "several slices at one place"),
        ([0, 1, 2, 6], r"lacks slices: they are 1\.0 to 4\.0 mm apart"),
        ([0], r"one slice \(0\.dcm\).*depth=0"),
    ],
)
def test_series_that_are_no_volume_are_named(tmp_path, places, words):
    for k, z in enumerate(places):
        write_dicom(tmp_path / "a" / f"{k}.dcm", flat(0), z=float(z))
    with pytest.raises(UserError, match=words):
        dicom_records(tmp_path, VolumeSpec("ct", 4, 8, 8, 1), "kind")
