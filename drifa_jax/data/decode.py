"""From the bytes of an image file to `[height, width, channels]` uint8, strictly.

What `PILLOW_FORMATS` names is decoded: 1, 8 and 16 bits, palettes, transparency. What cannot be is
an error that names the file: truncated data, no image, a decompression bomb, NaN.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from drifa_jax.data.problems import FileError, reading
from drifa_jax.data.record import ModalitySpec
from drifa_jax.errors import UserError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff"),
    *(".webp", ".gif", ".jp2", ".j2k", ".pgm", ".ppm"),
)
PILLOW_FORMATS = (
    *("JPEG", "PNG", "BMP", "DIB"),
    *("TIFF", "WEBP", "GIF", "JPEG2000", "PPM"),
)
"""What Pillow may take a file for, whatever its name. Others of its plugins start programs:
PostScript in a file called .png would be run by Ghostscript."""
MAX_PIXELS = 100_000_000
"""Larger images are refused before their pixels are decoded."""
MAX_FILE_BYTES = 2**30
"""Larger files are refused before they are read; so many bytes hold the most pixels of 8 bytes."""

_said: set[str] = set()


def decode_file(path: Path, spec: ModalitySpec, *, fit: str = "stretch") -> np.ndarray:
    """The image in a file, as the modality wants it; a `UserError` names what is wrong."""
    return decode_bytes(read_file(path), spec, fit=fit, name=str(path))


def read_file(path: Path) -> bytes:
    """The bytes of a file that is not too large to be an image; a `UserError` otherwise."""
    with reading(path, "cannot be read"):
        if path.stat().st_size > MAX_FILE_BYTES:
            raise FileError(path, f"is larger than the {MAX_FILE_BYTES // 2**20} MiB allowed")
        return path.read_bytes()


def decode_bytes(
    data: bytes, spec: ModalitySpec, *, fit: str = "stretch", name: str = "image"
) -> np.ndarray:
    """`[height, width, channels]` uint8 of the modality from an encoded image.

    Args:
      data: a file of one of `PILLOW_FORMATS`.
      spec: the size and channels wanted.
      fit: how another aspect ratio is fitted, a key of `FITS`.
      name: what error messages call the image.
    """
    return fit_image(decode_pixels(data, spec.channels, name=name), spec, fit=fit, name=name)


def decode_pixels(data: bytes, channels: int, *, name: str = "image") -> np.ndarray:
    """`[h, w, channels]` uint8 at the image's own size.

    16-bit images keep their upper 8 bits, whatever values they use, so that pictures of one set
    stay comparable; a log says once where only the lowest 12 bits are used. Transparent pixels are
    laid on black. Colour becomes grey by luminance (ITU-R 601) and grey becomes colour by
    repetition. Of several pages the first is read, which a log says once too.
    """
    if not data:
        raise FileError(name, "is empty, and is not an image that can be decoded")
    with warnings.catch_warnings(), reading(name, "is damaged or truncated"):
        # Pillow warns of bombs; the limit here is stricter and explicit.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)
        except UnidentifiedImageError as error:
            raise FileError(name, "is not an image that can be decoded") from error
        except Image.DecompressionBombError as error:
            what = "is absurdly large; it may be a decompression bomb"
            raise FileError(name, what) from error
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise FileError(
                    name,
                    f"holds {image.width} x {image.height} pixels, more than the "
                    f"{MAX_PIXELS:,} allowed; it may be a decompression bomb",
                )
            if getattr(image, "is_animated", False) and image.format != "MPO":
                # The further pictures of MPO are thumbnails, or the other eye's.
                _say_once(f"{name} holds {image.n_frames} pages", "only the first page is read")
            image.load()
            if "exif" in image.info:
                ImageOps.exif_transpose(image, in_place=True)
            return _to_uint8(image, channels, name)


def _say_once(what: str, consequence: str) -> None:
    """Logs the first file that something holds for; a set of thousands is not to fill a log."""
    if consequence not in _said:
        _said.add(consequence)
        logging.getLogger(__name__).warning("%s: %s (said of the first file)", what, consequence)


def _to_uint8(image: Image.Image, channels: int, name: str) -> np.ndarray:
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I", "F"):
        return convert_channels(_high_depth(np.asarray(image), name), channels, name)
    if image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa"):
        # A palette may carry transparency in `info`; RGBA is the one form that holds all of it.
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, rgba).convert("RGB")
    if image.mode not in ("1", "L", "RGB", "CMYK", "YCbCr", "HSV", "LAB"):
        raise FileError(name, f"has the unknown pixel format {image.mode!r}")
    mode = "L" if channels == 1 else "RGB"
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _high_depth(values: np.ndarray, name: str) -> np.ndarray:
    """16-bit and float images as 8 bits; floats must lie in 0..1 or 0..255."""
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise FileError(name, "has pixels that are NaN or infinite")
        low, high = float(values.min()), float(values.max())
        if low < 0 or high > 255:
            raise FileError(
                name,
                f"has float pixels from {low:g} to {high:g}; store 0..1, 0..255 or 16 bits",
            )
        return np.rint(values * (255.0 if high <= 1.0 else 1.0)).astype(np.uint8)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise FileError(name, f"has pixels from {low} to {high}; only 16 bits are understood")
    if high < 4096:
        _say_once(
            f"{name} has 16 bits but no value above {high}, at most {high >> 8} of 255",
            "the upper 8 bits are kept; multiply values of 12 bits by 16 first",
        )
    return (values >> 8).astype(np.uint8)


def convert_channels(pixels: np.ndarray, channels: int, name: str = "image") -> np.ndarray:
    """`[h, w]`, `[h, w, 1]` or `[h, w, 3]` uint8 as `[h, w, channels]`."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise UserError(
            f"{name}: has the shape {pixels.shape}; an image is [h, w], [h, w, 1] or [h, w, 3]."
        )
    if pixels.shape[2] == channels:
        return pixels
    if channels == 1:
        return cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)[:, :, None]
    return np.repeat(pixels, 3, axis=2)


def _stretch(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    return resize(pixels, height, width)


def _pad(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    scale = min(height / pixels.shape[0], width / pixels.shape[1])
    inner_height = min(height, max(1, round(pixels.shape[0] * scale)))
    inner_width = min(width, max(1, round(pixels.shape[1] * scale)))
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    canvas = np.zeros((height, width, pixels.shape[2]), pixels.dtype)
    canvas[top : top + inner_height, left : left + inner_width] = resize(
        pixels, inner_height, inner_width
    )
    return canvas


def _crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    scale = min(pixels.shape[0] / height, pixels.shape[1] / width)
    inner_height = min(pixels.shape[0], max(1, round(height * scale)))
    inner_width = min(pixels.shape[1], max(1, round(width * scale)))
    top, left = (pixels.shape[0] - inner_height) // 2, (pixels.shape[1] - inner_width) // 2
    middle = pixels[top : top + inner_height, left : left + inner_width]
    return resize(middle, height, width)


FITS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "stretch": _stretch,
    "pad": _pad,
    "crop": _crop,
}
"""How an image of another aspect ratio is fitted: distorted, padded with black, or cut."""


def fit_image(
    pixels: np.ndarray, spec: ModalitySpec, *, fit: str = "stretch", name: str = "image"
) -> np.ndarray:
    """`[h, w, c]` at any size to the modality's `[height, width, channels]`."""
    if fit not in FITS:
        raise ValueError(f"fit is {fit!r}; choose one of {tuple(FITS)}.")
    pixels = convert_channels(pixels, spec.channels, name)
    if pixels.shape == spec.shape:
        return pixels
    return FITS[fit](pixels, spec.height, spec.width)


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Area averaging where the image shrinks, which avoids aliasing; else linear."""
    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = height <= pixels.shape[0] and width <= pixels.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(np.ascontiguousarray(pixels), (width, height), interpolation=method)
    return resized[:, :, None] if resized.ndim == 2 else resized
