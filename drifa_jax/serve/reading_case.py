"""One case from files to what the network reads, and to what a person sees of it.

Runs inside the process with limits. Files are found under names that this program chose, in a
folder of links into memory; what a client calls them is not known here.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drifa_jax.data.decode import convert_channels, fit_image, resize
from drifa_jax.data.readers import dicom, nifti
from drifa_jax.data.readers.any_file import DICOM, NIFTI, PICTURE, kind_of, read_picture
from drifa_jax.data.record import ModalitySpec, Spec, TabularSpec, VolumeSpec
from drifa_jax.errors import UserError
from drifa_jax.predict.reading import IMAGE, Reading, read_item

KINDS = {PICTURE: "a picture", DICOM: "DICOM", NIFTI: "a NIfTI volume"}
MODALITY_NAMES = {
    "mri": "MR", "mr": "MR", "t1": "MR", "t2": "MR", "flair": "MR", "ct": "CT", "us": "US",
    "ultrasound": "US", "pet": "PT", "mammography": "MG",
}  # fmt: skip
"""What a modality may be called here -> what DICOM calls it."""
SHOWN_SLICES = 4


@dataclass(frozen=True)
class Read:
    """One modality of one case.

    Attributes:
      pixels: shaped and typed as its spec.
      picture: PNG, to be shown.
      facts: about it, plain values: `window` in words, `size` as found, `slice` and `slices` of
        volumes that the network reads a slice of, `notes`.
    """

    pixels: np.ndarray
    picture: bytes
    facts: dict[str, Any]


def read_files(
    files: Sequence[Path], spec: Spec, reading: Reading, number: int | None, side: int
) -> Read:
    """A modality from its file, or the files of a series.

    Args:
      files: of this modality, all of one case.
      spec, reading: of the modality.
      number: of the slice or frame to read; None takes the middle one.
      side: longest side of the picture.

    Raises:
      UserError: naming what does not fit.
    """
    if isinstance(spec, TabularSpec):
        raise UserError(f"{spec.name} is a row of a table: fill in its fields, and send no file.")
    if isinstance(spec, VolumeSpec):
        return _volume(files, spec, reading, side)
    if len(files) > 1:
        raise UserError(f"{spec.name} was given {len(files)} files; a case has one. Send one.")
    return _picture(files[0], spec, reading, number, side)


def _picture(
    path: Path, spec: ModalitySpec, reading: Reading, number: int | None, side: int
) -> Read:
    kind = kind_of(path)
    if reading.kind not in (None, IMAGE, kind):
        raise UserError(
            f"{spec.name} is {KINDS[kind]}, and this network reads {KINDS[reading.kind]} there."
        )
    count = 1
    if kind == NIFTI:
        middle = nifti.slice_numbers(path)
        count = nifti.read_shape(path)[nifti.PLANES["axial"]]
        number = middle[len(middle) // 2] if number is None else number
    elif kind == DICOM:
        count = dicom.count_frames(path)
        number = count // 2 if number is None else number
    else:
        number = None
    place = str(path) if number is None else f"{path}:{number}"
    found = read_picture(place, spec.channels, window=reading.window, kind=kind)
    pixels = fit_image(found, spec, fit=reading.fit, name=spec.name)
    facts = {"kind": kind, "size": list(found.shape[:2]), "window": "8 bits as stored", "notes": []}
    if kind == NIFTI:
        low, high = nifti.PERCENTILES
        facts["window"] = f"percentiles {low:g} to {high:g} of the volume"
    if kind == DICOM:
        facts["window"] = dicom.window_used(path, number, reading.window)
        facts["notes"] += _other_modality(path, spec.name)
    if count > 1:
        facts |= {"slice": number, "slices": count}
    if reading.kind == IMAGE and kind != PICTURE:
        facts["notes"].append(
            f"The network was trained on pictures of {spec.name}; here it reads {KINDS[kind]} as "
            "shown, which it was never tested on."
        )
    return Read(pixels, png(_smaller(_shown(found), side)), facts)


def _volume(files: Sequence[Path], spec: VolumeSpec, reading: Reading, side: int) -> Read:
    place = files[0] if len(files) == 1 and kind_of(files[0]) != DICOM else files[0].parent
    pixels = read_item(place, spec, reading, spec.name)
    facts = {
        "kind": "volume",
        "size": list(pixels.shape[:3]),
        "window": "as in training, brought to the grid of the network",
        "notes": [],
    }
    return Read(pixels, png(_smaller(montage(pixels), side)), facts)


def read_array(value: Any, spec: Spec, reading: Reading, side: int) -> Read:
    """A modality from nested lists of whole numbers from 0 to 255."""
    if isinstance(spec, TabularSpec):
        raise UserError(f"{spec.name} is a table: give its columns, as a mapping.")
    try:
        array = np.array(value)
    except ValueError as error:
        raise UserError(f"{spec.name}: its rows have different lengths.") from error
    if array.dtype.kind not in "iu" or array.size == 0 or array.min() < 0 or array.max() > 255:
        raise UserError(f"{spec.name}: give nested lists of whole numbers from 0 to 255.")
    array = array.astype(np.uint8)
    pixels = read_item(array, spec, reading, spec.name)
    shown = montage(pixels) if isinstance(spec, VolumeSpec) else _shown(array)
    facts = {"kind": "array", "size": list(array.shape), "window": "8 bits as given", "notes": []}
    return Read(pixels, png(_smaller(shown, side)), facts)


def parse_json(data: bytes, specs: Mapping[str, Spec]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays by modality, and the rest of a request in JSON: `record_id`, `explain`, `rows`.

    Raises:
      UserError: naming what is no such request.
    """
    try:
        said = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError("The request is no JSON.") from error
    if not isinstance(said, dict) or not isinstance(said.get("modalities"), dict):
        raise UserError('Send {"modalities": {...}}; see /openapi.json.')
    if unknown := sorted(set(said) - {"modalities", "record_id", "explain"}):
        raise UserError(f"The request holds {_named(unknown)}, which means nothing here.")
    if unknown := sorted(set(said["modalities"]) - set(specs)):
        raise UserError(
            f"The modalities {_named(unknown)} are unknown; this network reads {', '.join(specs)}."
        )
    rest = {key: said[key] for key in ("record_id", "explain") if key in said}
    given = {m: value for m, value in said["modalities"].items() if value is not None}
    rest["rows"] = {m: row for m, row in given.items() if isinstance(specs[m], TabularSpec)}
    for name, row in rest["rows"].items():
        if not isinstance(row, dict) or not all(
            value is None or (isinstance(value, str | int | float) and not isinstance(value, bool))
            for value in row.values()
        ):
            raise UserError(f"{name}: give a mapping of columns to numbers, words or null.")
    return {m: value for m, value in given.items() if m not in rest["rows"]}, rest


def _named(names: Sequence[str]) -> str:
    return ", ".join(repr(name[:40]) for name in names[:5])


def montage(volume: np.ndarray) -> np.ndarray:
    """Four slices of `[d, h, w, ...]`, evenly spaced, in two rows."""
    chosen = volume[shown_slices(len(volume))]
    rows = [np.concatenate(list(pair), axis=1) for pair in (chosen[:2], chosen[2:]) if len(pair)]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(r, [(0, 0), (0, width - r.shape[1]), *[(0, 0)] * (r.ndim - 2)]) for r in rows]
    return _shown(np.concatenate(padded, axis=0)) if volume.ndim == 4 else np.concatenate(padded)


def shown_slices(depth: int) -> np.ndarray:
    """Numbers of the slices that stand for a volume, in order."""
    count = min(SHOWN_SLICES, depth)
    return ((np.arange(count) + 0.5) * depth / count).astype(int)


def png(pixels: np.ndarray) -> bytes:
    """`[h, w]`, `[h, w, 3]` or `[h, w, 4]` uint8 as a file."""
    from PIL import Image

    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, "PNG", compress_level=3)
    return packed.getvalue()


def _shown(pixels: np.ndarray) -> np.ndarray:
    """`[h, w]` or `[h, w, 3]`; two windows become the grey of the first."""
    if pixels.ndim == 2:
        return pixels
    return pixels[..., 0] if pixels.shape[2] != 3 else convert_channels(pixels, 3)


def _smaller(pixels: np.ndarray, side: int) -> np.ndarray:
    scale = side / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    height, width = (max(1, round(n * scale)) for n in pixels.shape[:2])
    small = resize(pixels[..., None] if pixels.ndim == 2 else pixels, height, width)
    return small[..., 0] if pixels.ndim == 2 else small


def dicom_names(name: str) -> set[str]:
    """What DICOM may call a modality of this name; empty where that is not known."""
    return {MODALITY_NAMES[word] for word in name.lower().split("_") if word in MODALITY_NAMES}


def _other_modality(path: Path, name: str) -> list[str]:
    """A word of warning where a file says that it is of another modality than its field."""
    wanted = dicom_names(name)
    found = dicom.modality_of(path)
    if not wanted or found not in set(MODALITY_NAMES.values()) - wanted:
        return []
    return [f"This file says that it is {found}; it was given as {name}. Is it in the right place?"]
