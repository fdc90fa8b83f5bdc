"""Stored values of a grey DICOM frame as 8 bits: modality transform, window, padding.

The order is the standard's (PS3.3 C.7.6.16 and C.11); the transforms are pydicom's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drifa_jax.data.problems import FileError, reading
from drifa_jax.data.readers.dicom_files import numbers, pydicom, text
from drifa_jax.data.readers.levels import to_uint8

BLOCK_PIXELS = 2**22
"""Pixels that transforms work on at once, which bounds the memory of large images."""

Windows = Sequence[tuple[float, float]] | None


def grey(
    stored: np.ndarray, view: Any, windows: Windows, *, inverted: bool, path: Path
) -> np.ndarray:
    """Stored grey values as people see them: padding is black.

    Args:
      stored: `[h, w]`.
      view: the tags that hold for the frame.
      windows: (centre, width) in physical units, one a channel; None takes what the file says.
      inverted: whether the largest value is black.
      path: of the file, for messages.

    Returns:
      `[h, w]` or, with several windows, `[h, w, c]` uint8.
    """
    _fill_rescale(view, path)
    padding = numbers(view, "PixelPaddingValue", path, 1)
    limit = numbers(view, "PixelPaddingRangeLimit", path, 1) or padding
    blocks = np.array_split(stored, max(1, min(len(stored), stored.size // BLOCK_PIXELS)))

    def padded(block: np.ndarray) -> np.ndarray:
        if padding is None:
            return np.zeros(block.shape, bool)
        return (block >= min(padding + limit)) & (block <= max(padding + limit))

    def physical(block: np.ndarray) -> np.ndarray:
        with reading(path, "has a modality transform that cannot be applied", quote=False):
            values = pydicom().pixels.apply_modality_lut(block, view)
        if not np.isfinite(values).all():
            raise FileError(path, "has pixels that are NaN or infinite")
        return values

    if windows:
        shown = [functools.partial(_preset, window) for window in windows]
    else:
        own = _own_display(view, path)
        shown = [own[1] if own else functools.partial(_between, _range(blocks, physical, padded))]
    result = []
    for block in blocks:
        values = physical(block)
        channels = [show(values) for show in shown]
        picture = channels[0] if len(channels) == 1 else np.stack(channels, axis=-1)
        picture = 255 - picture if inverted else picture
        picture[padded(block)] = 0
        result.append(picture)
    return np.concatenate(result)


def _fill_rescale(view: Any, path: Path) -> None:
    """Sets slope and intercept as numbers: pydicom wants both, files may hold one."""
    slope = numbers(view, "RescaleSlope", path, 1)
    intercept = numbers(view, "RescaleIntercept", path, 1)
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        if keyword in view:
            del view[keyword]
    if slope or intercept:
        view.RescaleSlope = (slope or (1.0,))[0] or 1.0
        view.RescaleIntercept = (intercept or (0.0,))[0]


def _preset(window: tuple[float, float], values: np.ndarray) -> np.ndarray:
    centre, width = window
    return to_uint8(values, centre - width / 2, centre + width / 2)


def _between(ends: tuple[float, float], values: np.ndarray) -> np.ndarray:
    return to_uint8(values, *ends)


def _range(blocks, physical: Callable, padded: Callable) -> tuple[float, float]:
    """The lowest and highest physical value of what is no padding."""
    inside = [physical(block)[~padded(block)] for block in blocks]
    inside = [values for values in inside if values.size]
    if not inside:
        return 0.0, 1.0
    low = min(float(values.min()) for values in inside)
    high = max(float(values.max()) for values in inside)
    return low, high if high > low else low + 1.0


def own_window(view: Any, path: Path) -> str:
    """What a file without presets is shown by, in words."""
    own = _own_display(view, path)
    return own[0] if own else "from its lowest to its highest value"


def _own_display(view: Any, path: Path) -> tuple[str, Callable[[np.ndarray], np.ndarray]] | None:
    """The file's lookup table or first window, in words and as physical values -> uint8.

    None where it has neither.
    """
    processing = pydicom().pixels.processing
    with reading(path, "has a VOILUTSequence that cannot be applied", quote=False):
        tables = [t for t in view.get("VOILUTSequence") or [] if "LUTDescriptor" in t]
        if tables and "LUTData" in tables[0]:
            count, first, depth = tables[0].LUTDescriptor

            def by_table(values: np.ndarray) -> np.ndarray:
                whole = np.clip(np.rint(values), first, first + (count or 2**16)).astype(np.int64)
                with reading(path, "has a VOILUTSequence that cannot be applied", quote=False):
                    return to_uint8(processing.apply_voi(whole, view), 0, 2**depth - 1)

            return "by the lookup table of the file", by_table
    if "WindowWidth" not in view or "WindowCenter" not in view:
        return None
    width = numbers(view, "WindowWidth", path)
    # A centre without width is no window, whatever it holds.
    centre = numbers(view, "WindowCenter", path) if width else None
    function = text(view, "VOILUTFunction").upper() or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise FileError(path, "has a VOILUTFunction other than LINEAR, LINEAR_EXACT and SIGMOID")
    if centre is None or width[0] <= 0 or (function == "LINEAR" and width[0] < 1):
        return None
    window = pydicom().Dataset()
    window.update(view)
    window.WindowCenter, window.WindowWidth, window.VOILUTFunction = centre[0], width[0], function
    # The range that a window fills depends on the stored bits; its ends tell it.
    black, white = _apply_window(np.array([-1e30, 1e30]), window, path)

    def by_window(values: np.ndarray) -> np.ndarray:
        filled = (_apply_window(values, window, path) - black) / (white - black)
        return to_uint8(filled, 0, 1)

    return f"window of the file: centre {centre[0]:g}, width {width[0]:g}", by_window


def _apply_window(values: np.ndarray, window: Any, path: Path) -> np.ndarray:
    with (
        reading(path, "has a window that cannot be applied", quote=False),
        np.errstate(over="ignore"),
    ):
        return pydicom().pixels.processing.apply_windowing(values, window)
