"""DICOM pixels: each transform against the standard's formula or pydicom, each defect by name."""

from __future__ import annotations

import gzip
import io
import logging
import warnings

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from drifa_jax.data.problems import FileError
from drifa_jax.data.readers import dicom_files
from drifa_jax.data.readers.dicom import read_frame, read_header, read_image, window_used
from drifa_jax.data.readers.dicom_files import NoImageError
from drifa_jax.data.record import ModalitySpec
from drifa_jax.errors import UserError
from tests.data.readers.dicom_writing import CANARY, image, item, save, write

RAMP = np.arange(64, dtype=np.int16).reshape(8, 8)
LARGE = np.kron(RAMP, np.ones((8, 8))).astype(np.uint16)
"""The smallest that the encoder of JPEG 2000 takes."""
HOUNSFIELD = {"RescaleSlope": 1, "RescaleIntercept": -32}
# From here, physical values of RAMP are -32 to 31.


def grey(*ends: float, values=RAMP - 32.0) -> np.ndarray:
    """What a linear map from the ends to 0..255 gives."""
    low, high = ends
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)


def words(values) -> bytes:
    """Entries of a lookup table as a file holds them."""
    return np.array(values, "<u2").tobytes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.dcm"


def test_a_modality_lookup_table_comes_before_the_range(path):
    table = item(LUTDescriptor=[64, 0, 16], ModalityLUTType="US", LUTData=words(range(63, -1, -1)))
    write(path, RAMP.astype(np.uint16), ModalityLUTSequence=table)
    np.testing.assert_array_equal(read_frame(path), grey(0, 63, values=63.0 - RAMP))


def test_a_value_of_interest_table_decides_the_contrast(path):
    table = item(LUTDescriptor=[64, 0, 16], LUTData=words(range(63_000, -1, -1000)))
    write(path, RAMP.astype(np.uint16), VOILUTSequence=table)
    expected = np.rint((63.0 - RAMP) * 1000 / 65535 * 255)
    np.testing.assert_array_equal(read_frame(path), expected)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("", grey(-20.0, 19.0)),
        ("LINEAR", grey(-20.0, 19.0)),
        ("LINEAR_EXACT", grey(-20, 20)),
        ("SIGMOID", np.rint(255 / (1 + np.exp(-4 * (RAMP - 32.0) / 40)))),
    ],
)
def test_windows_of_the_file_follow_their_function(path, function, expected):
    tags = {"VOILUTFunction": function} if function else {}
    write(path, RAMP, WindowCenter=0, WindowWidth=40, **HOUNSFIELD, **tags)
    np.testing.assert_array_equal(read_frame(path), expected)


def test_presets_run_from_centre_minus_to_centre_plus_half_the_width(path):
    write(path, RAMP, **HOUNSFIELD)
    np.testing.assert_array_equal(read_frame(path, windows=[(0, 40)]), grey(-20, 20))


@pytest.mark.parametrize("tags", [{"WindowCenter": 0}, {"WindowCenter": 0, "WindowWidth": 0}])
def test_what_is_no_window_leaves_the_range_of_values(path, tags):
    write(path, RAMP, **HOUNSFIELD, **tags)
    np.testing.assert_array_equal(read_frame(path), grey(-32, 31))


def test_a_falling_slope_does_not_turn_the_window_round(path):
    write(path, RAMP, RescaleSlope=-1, RescaleIntercept=32, WindowCenter=0, WindowWidth=40)
    np.testing.assert_array_equal(read_frame(path), grey(-20, 19, values=32.0 - RAMP))


@pytest.mark.parametrize("inverted", [False, True])
def test_padding_is_black_and_outside_the_range(path, inverted):
    stored = RAMP.copy()
    stored[0], stored[1] = -2000, -1990
    kind = "MONOCHROME1" if inverted else "MONOCHROME2"
    tags = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}
    write(path, stored, PhotometricInterpretation=kind, **tags)
    expected = grey(16, 63, values=RAMP)
    expected = 255 - expected if inverted else expected
    expected[:2] = 0
    np.testing.assert_array_equal(read_frame(path), expected)


def enhanced(frames: int) -> pydicom.Dataset:
    """An enhanced image: the window is shared, rescale and position are those of each frame."""
    data = image(np.stack([RAMP] * frames))
    orientation = item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    data.SharedFunctionalGroupsSequence = item(
        PlaneOrientationSequence=orientation,
        FrameVOILUTSequence=item(
            WindowCenter=0, WindowWidth=40, WindowCenterWidthExplanation=CANARY
        ),
    )
    data.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=item(ImagePositionPatient=[0, 0, -3.0 * frame]),
            PixelValueTransformationSequence=item(RescaleSlope=1, RescaleIntercept=-32 + frame),
        )[0]
        for frame in range(frames)
    ]
    return data


@pytest.mark.parametrize("frames", [1, 3])
def test_functional_groups_hold_the_transforms_of_each_frame(path, frames):
    save(path, enhanced(frames))
    for frame in range(frames):
        expected = grey(-20, 19, values=RAMP - 32.0 + frame)
        np.testing.assert_array_equal(read_frame(path, frame), expected)
    planes = read_header(path).planes
    assert [plane.position[2] for plane in planes] == [-3.0 * k for k in range(frames)]
    assert {plane.orientation for plane in planes} == {(1, 0, 0, 0, 1, 0)}


def test_one_frame_of_several_must_be_named(path):
    save(path, enhanced(3))
    spec = ModalitySpec("ct", 8, 8, 1)
    with pytest.raises(UserError, match=r"holds 3 frames.*a\.dcm:1"):
        read_image(path, spec, fit="stretch")
    assert read_image(path, spec, frame=2, fit="stretch").shape == (8, 8, 1)
    with pytest.raises(FileError, match="holds the frames 0 to 2, but not 3"):
        read_frame(path, 3)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_colour_keeps_the_upper_8_of_its_stored_bits(path, bits):
    values = np.stack([RAMP, 63 - RAMP, RAMP // 2], axis=-1)
    stored = (values << (bits - 6)).astype(np.uint8 if bits == 8 else np.uint16)
    write(path, stored, BitsStored=bits, HighBit=bits - 1)
    np.testing.assert_array_equal(read_frame(path), values << 2)


def test_luminance_and_chrominance_become_rgb(path):
    rgb = np.random.Generator(np.random.Philox(0)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    ybr = pydicom.pixels.convert_color_space(rgb, "RGB", "YBR_FULL")
    write(path, ybr, PhotometricInterpretation="YBR_FULL")
    # Rounding to 8 bits and back moves a channel by up to 2.
    np.testing.assert_allclose(read_frame(path).astype(int), rgb, atol=2)


def test_halved_chrominance_becomes_rgb(path):
    data = image(np.full((8, 8, 3), 0, np.uint8), PhotometricInterpretation="YBR_FULL_422")
    data.PixelData = bytes([100, 100, 128, 128]) * 32
    save(path, data)
    np.testing.assert_array_equal(read_frame(path), 100)


@pytest.mark.parametrize("depth", [8, 16])
def test_palettes_become_colours(path, depth):
    tables = {"Red": RAMP * 4, "Green": 255 - RAMP * 4, "Blue": RAMP * 0 + 7}
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, values in tables.items():
        entries = (values.ravel() << (depth - 8)).astype(f"<u{depth // 8}")
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [64, 0, depth]
        tags[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
    write(path, RAMP.astype(np.uint8), **tags)
    np.testing.assert_array_equal(read_frame(path), np.stack([*tables.values()], axis=-1))


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_lossless_compression_changes_nothing(path, syntax):
    data = image(LARGE)
    data.compress(syntax)
    save(path, data)
    np.testing.assert_array_equal(read_frame(path), grey(0, 63, values=LARGE))


def test_jpeg_inside_dicom_is_the_picture_that_pillow_reads(path):
    photo = np.kron(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4, np.ones((8, 8), np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "JPEG")
    data = image(photo)
    data.PixelData = encapsulate([buffer.getvalue()])
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    save(path, data)
    decoded = np.asarray(Image.open(buffer)).astype(float)
    # Two decoders round their cosine transforms differently by up to 1.
    ours = read_frame(path).astype(float)
    expected = (decoded - decoded.min()) / np.ptp(decoded) * 255
    np.testing.assert_allclose(ours, expected, atol=2)


def test_a_syntax_that_nothing_decodes_is_named_with_a_cure(path):
    data = image(np.zeros((8, 8, 3), np.uint8))
    data.PixelData = encapsulate([b"\0\0\1\xb3" * 8])
    data.file_meta.TransferSyntaxUID = MPEG2MPML
    save(path, data)
    with pytest.raises(FileError, match=r"a\.dcm: .*MPEG2 Main Profile.*gdcmconv"):
        read_frame(path)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEG2000Lossless])
def test_compressed_frames_that_declare_other_sizes_are_not_decoded(path, syntax):
    """A decoder would allocate what the frame declares."""
    data = image((LARGE * 4).astype(np.uint8))
    if syntax == JPEG2000Lossless:
        data.compress(syntax)
        content = data.PixelData.replace((64).to_bytes(4), (40_000).to_bytes(4))
    else:
        buffer = io.BytesIO()
        Image.fromarray((LARGE * 4).astype(np.uint8)).save(buffer, "JPEG")
        content = encapsulate([buffer.getvalue()])
        content = content.replace(b"\x08\x00\x40\x00\x40", b"\x08\x9c\x40\x9c\x40")
    data.PixelData, data.file_meta.TransferSyntaxUID = content, syntax
    save(path, data)
    with pytest.raises(FileError, match="declares 40000 x 40000 pixels inside a file of 64 x 64"):
        read_frame(path)


def test_damaged_run_lengths_are_named(path):
    """The decoder in Rust would panic, which is no exception."""
    data = image(LARGE)
    data.compress(RLELossless)
    content = bytearray(data.PixelData)
    for place in range(90, len(content) - 8):
        content[place] = 0x80
    data.PixelData = bytes(content)
    save(path, data)
    with pytest.raises(FileError, match="its pixel data cannot be decoded"):
        read_frame(path)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.1", "CANARY", "1.2.840.10008.9.9"])
def test_a_transfer_syntax_that_is_none_is_named(path, syntax):
    write(path, RAMP)
    told = syntax.encode() + b"\0" * (len(syntax) % 2)
    content = path.read_bytes()
    known = b"1.2.840.10008.1.2.1\0"
    path.write_bytes(content.replace(known, told.ljust(len(known), b"\0")))
    with pytest.raises(FileError, match=r"a\.dcm: .*transfer syntax") as caught:
        read_frame(path)
    assert "CANARY" not in str(caught.value)


def test_a_decoder_that_is_not_installed_is_named(path, monkeypatch):
    data = image(LARGE)
    data.compress(JPEG2000Lossless)
    save(path, data)
    decoder = pydicom.pixels.get_decoder(JPEG2000Lossless)
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(decoder, "_unavailable", {"pylibjpeg": ("pylibjpeg-openjpeg",)})
    cure = r"JPEG 2000.*requires pylibjpeg-openjpeg: .* pip install .*openjpeg"
    with pytest.raises(FileError, match=cure):
        read_frame(path)


def test_files_are_known_by_content_under_any_name(tmp_path):
    content = write(tmp_path / "scan.dcm", RAMP).read_bytes()
    expected = read_frame(tmp_path / "scan.dcm")
    forms = {
        "1.2.840.113619.2.5": content,
        "scan.txt": content,
        "scan.dcm.gz": gzip.compress(content),
        "no-preamble": content[132:],
    }
    for name, data in forms.items():
        (tmp_path / name).write_bytes(data)
        assert dicom_files.is_dicom(tmp_path / name), name
        np.testing.assert_array_equal(read_frame(tmp_path / name), expected)
    (tmp_path / "words.dcm").write_text("words, words and words; longer than a preamble " * 9)
    assert not dicom_files.is_dicom(tmp_path / "words.dcm")


def test_a_data_set_without_any_meta_information_is_read(path):
    data = image(RAMP)
    del data.file_meta
    data.preamble = None
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, implicit_vr=True, little_endian=True)
    path.write_bytes(buffer.getvalue())
    assert dicom_files.is_dicom(path)
    np.testing.assert_array_equal(read_frame(path), grey(0, 63, values=RAMP))


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"Modality": "SEG"}, "segmentations"),
        ({"Modality": "RTDOSE"}, "dose maps"),
        ({"Modality": "SR"}, "reports"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"}, "encapsulated documents"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.59"}, "reports"),
    ],
)
def test_what_is_no_image_of_a_patient_is_told_from_images(path, tags, words):
    write(path, RAMP, **tags)
    for read in (read_header, read_frame):
        with pytest.raises(NoImageError, match=f"is no image of a patient.*{words}"):
            read(path)


def raw(path, name: str, value: bytes):
    """Writes a value that no library would write into a tag of a sound file."""
    data = image(RAMP, **HOUNSFIELD, ImagePositionPatient=[0, 0, 0], InstanceNumber=1)
    tag = pydicom.tag.Tag(pydicom.datadict.tag_for_keyword(name))
    vr = pydicom.datadict.dictionary_VR(tag)
    element = pydicom.dataelem.RawDataElement(tag, vr, len(value), value, 0, False, True)
    data._dict[tag] = element
    return save(path, data)


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("RescaleSlope", b"1,0 "),
        ("RescaleIntercept", b"nan "),
        ("NumberOfFrames", b"1A"),
        ("InstanceNumber", b"one "),
        ("ImagePositionPatient", b"0\\0 "),
        ("ImageOrientationPatient", b"1\\0\\0 "),
    ],
)
def test_a_value_that_cannot_be_names_file_and_tag_but_not_itself(path, tag, value):
    raw(path, tag, value)
    with pytest.raises(FileError, match=rf"a\.dcm: .*{tag}") as caught:
        read_header(path)
        read_frame(path)
    assert value.decode().strip() not in str(caught.value).replace(str(path), "")


def test_no_header_value_reaches_a_warning_or_a_log(path, caplog):
    """Identifiers that are no UIDs are what pydicom warns of, with their values."""
    raw(path, "SeriesInstanceUID", b"CANARY-NAME-1 ")
    logging.getLogger("pydicom").propagate = True
    with warnings.catch_warnings(record=True) as said, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        dicom_files._pydicom.cache_clear()
        read_header(path)
        read_frame(path)
    assert not said
    assert "CANARY" not in caplog.text


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"Rows": 60_000, "Columns": 60_000}, "more than the 100,000,000 allowed"),
        ({"Rows": 800}, "is truncated"),
        ({"NumberOfFrames": 2**31 - 1}, "is truncated"),
        ({"Rows": 0}, "has no pixel data"),
        ({"SamplesPerPixel": 5}, "declares 5 samples"),
        ({"PhotometricInterpretation": "HSV"}, "PhotometricInterpretation other than MONOCHROME1"),
    ],
)
def test_sizes_and_kinds_of_pixels_are_checked_before_they_are_made(path, tags, words):
    write(path, RAMP, **tags)
    with pytest.raises(FileError, match=words):
        read_header(path)
        read_frame(path)


def test_bombs_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_files, "MAX_UNPACKED_BYTES", 2**20)
    (tmp_path / "a.dcm.gz").write_bytes(gzip.compress(b"\0" * 128 + b"DICM" + b"\0" * 2**21))
    data = image(np.zeros((1024, 1024), np.uint16))
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    save(tmp_path / "b.dcm", data)
    for name in ("a.dcm.gz", "b.dcm"):
        with pytest.raises(FileError, match="unpacks to more than 1 MiB"):
            read_header(tmp_path / name)


def test_deflated_files_are_read(path):
    data = image(RAMP)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    save(path, data)
    read_header(path)
    np.testing.assert_array_equal(read_frame(path), grey(0, 63, values=RAMP))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"words", "is not a DICOM file"),
        (b"\x1f\x8bwords", "is damaged or truncated"),
        (gzip.compress(np.random.Generator(np.random.Philox(0)).bytes(999))[:-99], "damaged"),
    ],
    ids=["empty", "words", "no gzip", "cut gzip"],
)
def test_what_is_not_dicom_is_named(path, content, words):
    path.write_bytes(content)
    with pytest.raises(FileError, match=rf"a\.dcm: .*{words}"):
        read_frame(path)


def test_a_file_that_is_not_there_is_named(path):
    with pytest.raises(FileError, match=r"a\.dcm: cannot be read \(No such file"):
        read_frame(path)


@pytest.mark.parametrize(
    ("tags", "presets", "told"),
    [
        ({"WindowCenter": 0, "WindowWidth": 40}, "", "window of the file: centre 0, width 40"),
        ({"WindowCenter": 0}, "", "from its lowest to its highest value"),
        ({}, "brain, bone", "brain: centre 40, width 80 HU; bone: centre 480, width 2500 HU"),
    ],
)
def test_the_window_that_was_used_is_told(path, tags, presets, told):
    write(path, RAMP, **HOUNSFIELD, **tags)
    assert window_used(path, window=presets) == told
