"""What can be decoded is decoded to 8 bits; what cannot is named."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from drifa_jax.data import decode
from drifa_jax.data.decode import decode_bytes, decode_file, decode_pixels, fit_image
from drifa_jax.data.problems import FileError
from drifa_jax.data.record import ModalitySpec
from drifa_jax.errors import UserError

GREY, COLOUR = ModalitySpec("scan", 8, 8, 1), ModalitySpec("photo", 8, 8, 3)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(0)).integers(0, 256, shape, dtype=np.uint8)


def test_grey_and_colour_become_the_channels_asked_for():
    grey, colour = Image.fromarray(noise(8, 8)), Image.fromarray(noise(8, 8, 3))
    np.testing.assert_array_equal(decode_bytes(encoded(grey), GREY)[..., 0], np.asarray(grey))
    np.testing.assert_array_equal(decode_bytes(encoded(colour), COLOUR), np.asarray(colour))
    repeated = decode_bytes(encoded(grey), COLOUR)
    np.testing.assert_array_equal(repeated, np.repeat(np.asarray(grey)[..., None], 3, axis=2))
    luminance = np.asarray(colour) @ np.array([0.299, 0.587, 0.114])
    assert abs(decode_bytes(encoded(colour), GREY)[..., 0] - luminance).max() <= 1


def test_16_bits_keep_their_upper_half():
    values = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    pixels = decode_bytes(encoded(Image.fromarray(values)), GREY)
    np.testing.assert_array_equal(pixels[..., 0], values >> 8)


def test_twelve_bits_in_sixteen_are_told_once(caplog, monkeypatch):
    monkeypatch.setattr(decode, "_said", set())
    values = (np.arange(64, dtype=np.uint16) * 60).reshape(8, 8)
    for name in ("a.png", "b.png"):
        decode_pixels(encoded(Image.fromarray(values)), 1, name=name)
    assert caplog.text.count("16 bits but no value above 3780, at most 14 of 255") == 1
    assert "a.png" in caplog.text


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP"])
def test_of_several_pages_the_first_is_read_and_it_is_said(kind, caplog, monkeypatch):
    monkeypatch.setattr(decode, "_said", set())
    pages = [Image.new("L", (8, 8), level) for level in (200, 0, 100)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(pages[0], kind, save_all=True, append_images=pages[1:], **options)
    assert (decode_pixels(data, 1, name="stack") == 200).all()
    assert "stack holds 3 pages: only the first page is read" in caplog.text


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "JPEG2000", "PPM", "JPEG"])
def test_whatever_pillow_reads_is_decoded(kind):
    flat = Image.new("L", (64, 64), 100)
    # Lossy kinds move a flat grey by one level at most.
    assert abs(decode_pixels(encoded(flat, kind), 1).astype(int) - 100).max() <= 1


def test_transparency_is_laid_on_black():
    rgba = np.full((8, 8, 4), 200, np.uint8)
    rgba[:4, :, 3] = 0
    rgba[4:, :, 3] = 255
    pixels = decode_bytes(encoded(Image.fromarray(rgba)), COLOUR)
    assert (pixels[:4] == 0).all()
    assert (pixels[4:] == 200).all()


def test_palettes_and_one_bit_images_are_decoded():
    palette = Image.fromarray(noise(8, 8, 3)).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(decode_bytes(encoded(palette), COLOUR), expected)
    bits = Image.fromarray(noise(8, 8) > 127)
    assert set(np.unique(decode_bytes(encoded(bits), GREY))) == {0, 255}


def test_one_pixel_fills_the_image():
    pixels = decode_bytes(encoded(Image.new("L", (1, 1), 77)), GREY)
    assert pixels.shape == (8, 8, 1)
    assert (pixels == 77).all()


def test_orientation_of_photographs_is_honoured():
    upright = noise(8, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = encoded(Image.fromarray(np.rot90(upright)), exif=exif)
    np.testing.assert_array_equal(decode_pixels(stored, 1)[..., 0], upright)


def test_float_images_in_a_known_range_are_decoded():
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    pixels = decode_bytes(encoded(Image.fromarray(values), "TIFF"), GREY)
    np.testing.assert_array_equal(pixels[..., 0], np.rint(values * 255))


def bomb() -> bytes:
    """The header of a PNG of 60,000 x 60,000 pixels, in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def float_image(value: float) -> bytes:
    return encoded(Image.fromarray(np.full((8, 8), value, np.float32)), "TIFF")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"these are words, not pixels", "is not an image"),
        (b"", "is not an image"),
        (encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")[:1500], "damaged or truncated"),
        (encoded(Image.fromarray(noise(64, 64)))[:2000], "damaged or truncated"),
        (bomb(), "decompression bomb"),
        (float_image(float("nan")), "NaN"),
        (float_image(-3.0), "from -3 to -3"),
    ],
    ids=["words", "empty", "truncated jpeg", "truncated png", "bomb", "nan", "negative"],
)
def test_undecodable_images_are_named(data, words, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(data)
    with pytest.raises(UserError, match=words) as caught:
        decode_file(path, GREY)
    assert str(path) in str(caught.value)


def test_whatever_a_library_raises_names_the_file(monkeypatch):
    def fail(image):
        raise struct.error("unpack requires a buffer of 4 bytes")

    data = encoded(Image.new("L", (8, 8)), "BMP")
    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(FileError, match=r"a\.bmp: is damaged or truncated \(unpack requires"):
        decode_pixels(data, 1, name="a.bmp")


def test_files_too_large_to_be_pictures_are_not_read(tmp_path):
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(FileError, match=r"huge\.png: is larger than the 1024 MiB allowed"):
        decode_file(tmp_path / "huge.png", GREY)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        decode_file(tmp_path, GREY)
    with pytest.raises(UserError, match=r"gone\.png: cannot be read"):
        decode_file(tmp_path / "gone.png", GREY)


def test_wrong_channel_counts_are_named():
    with pytest.raises(UserError, match=r"scan 7: has the shape \(8, 8, 5\)"):
        fit_image(np.zeros((8, 8, 5), np.uint8), GREY, name="scan 7")


def test_fits_differ_in_what_they_do_with_another_aspect_ratio():
    wide = np.zeros((8, 16, 1), np.uint8)
    wide[:, 4:12] = 200
    assert fit_image(wide, GREY, fit="stretch").mean() == pytest.approx(100)
    assert (fit_image(wide, GREY, fit="crop") == 200).all()
    padded = fit_image(wide, GREY, fit="pad")
    assert (padded[:2] == 0).all()
    assert (padded[-2:] == 0).all()
    assert padded[2:6].mean() == pytest.approx(100)


def test_shrinking_averages_areas():
    checkered = np.indices((16, 16)).sum(axis=0) % 2 * 255
    assert set(np.unique(fit_image(checkered.astype(np.uint8), GREY))) <= {127, 128}


def test_unknown_fit_is_named():
    with pytest.raises(ValueError, match="fit is 'squash'"):
        fit_image(np.zeros((4, 4, 1), np.uint8), GREY, fit="squash")


def test_postscript_called_png_is_never_given_to_ghostscript(monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("was run"))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    with pytest.raises(UserError, match="not an image that can be decoded"):
        decode_bytes(script, GREY)
