"""How the files and rows of one modality become what the network reads, exactly as in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drifa_jax.config import DataConfig
from drifa_jax.data.decode import IMAGE_SUFFIXES, decode_file, fit_image
from drifa_jax.data.problems import FileError
from drifa_jax.data.readers import nifti
from drifa_jax.data.readers.any_file import (
    DICOM,
    NIFTI,
    PICTURE,
    kind_by_name,
    read_any,
    split_slice,
)
from drifa_jax.data.readers.any_volume import ARRAY_SUFFIX, read_any_volume
from drifa_jax.data.readers.dicom_files import claims_dicom, is_dicom
from drifa_jax.data.readers.series import holds_series
from drifa_jax.data.record import PixelSpec, Spec, TabularSpec, VolumeSpec
from drifa_jax.data.sources.walking import HIDDEN
from drifa_jax.data.table import TableColumns, TableEncoding
from drifa_jax.data.volumes import Voxels, fit_voxels
from drifa_jax.errors import UserError

IMAGE, TABLE, ANY = PICTURE, "table", "any"
FORMATS = (IMAGE, DICOM, NIFTI, TABLE, ANY)


@dataclass(frozen=True)
class Stored:
    """Pixels of a prepared set: exactly what the network reads, or of no use to it.

    Attributes:
      pixels: `[h, w, c]` or `[d, h, w, c]` uint8.
      name: of the record, for messages.
    """

    pixels: np.ndarray
    name: str


Row = Mapping[str, str | float | None]
Item = str | Path | np.ndarray | Stored | Row | None
"""One record's part of a modality: a file (a slice of a volume as `FILE.nii.gz:NUMBER`), pixels,
a row of a table, or None where the record lacks it."""


@dataclass(frozen=True)
class Reading:
    """How one modality is read.

    Attributes:
      format: a name in `FORMATS`; `ANY` where a table named the files in training, which may be
        pictures, DICOM or NIfTI.
      fit: of images, how another aspect ratio is fitted.
      window: of DICOM, a preset; "" takes the window of the file.
      encoding: of tables, how a row becomes numbers.
      id_column: of tables, the column that named records in training.
      mean, std: of each channel of pixels in 0..1, by which the network normalises; or empty.
      volume: whether whole volumes are read; NIfTI and DICOM give slices otherwise.
      spacing: of volumes, of the voxels that the network reads, in mm; or empty.
    """

    format: str = IMAGE
    fit: str = "stretch"
    window: str = ""
    encoding: TableEncoding | None = None
    id_column: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    volume: bool = False
    spacing: tuple[float, ...] = ()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Reading:
        """Raises TypeError, KeyError or ValueError where the values are not those of a reading."""
        values = dict(values)
        encoding = values.pop("encoding")
        moments = {name: tuple(values.pop(name, ())) for name in ("mean", "std", "spacing")}
        reading = cls(
            **values, **moments, encoding=None if encoding is None else _encoding(encoding)
        )
        if reading.format not in FORMATS or (reading.format == TABLE) != (encoding is not None):
            raise ValueError(f"the format is {reading.format!r}")
        return reading

    @property
    def columns(self) -> tuple[str, ...]:
        """Of tables, the columns that are read."""
        part = self.encoding.columns
        return (*part.numeric, *part.categorical)

    def accepts(self, path: Path) -> bool:
        """Whether a file (or, of a DICOM series, a folder) may hold this modality, by its name."""
        if self.volume and path.is_dir():
            return self.format in (DICOM, ANY) and holds_series(path)
        if path.name.startswith(HIDDEN) or not path.is_file():
            return False
        if self.format == DICOM and not self.volume:
            return is_dicom(path) or claims_dicom(path)
        kind = kind_by_name(path.name)
        if self.volume:
            return path.suffix.lower() == ARRAY_SUFFIX if self.format == IMAGE else kind == NIFTI
        if self.format == ANY:
            return kind in (PICTURE, NIFTI) or is_dicom(path)
        return kind == self.format

    @property
    def kind(self) -> str | None:
        """The one kind of its files; None where they may be of any."""
        return None if self.format == ANY else self.format

    def is_volume(self, path: str) -> bool:
        """Whether a file stands for the slices of a volume."""
        if self.volume:
            return False
        kind = kind_by_name(path) if self.format == ANY else self.format
        return kind == NIFTI and split_slice(path)[1] is None

    @property
    def suffixes(self) -> str:
        """What files of this modality are called, for messages."""
        pictures, volumes = ", ".join(IMAGE_SUFFIXES), ", ".join(nifti.SUFFIXES)
        if self.volume:
            series = "a folder with a DICOM series"
            return {DICOM: series, NIFTI: volumes, ANY: f"{volumes}, {series}"}.get(
                self.format, ARRAY_SUFFIX
            )
        return {DICOM: "DICOM", NIFTI: volumes, ANY: f"{pictures}, DICOM, {volumes}"}.get(
            self.format, pictures
        )


def readings_of(config: DataConfig, specs, tables: Mapping[str, TableEncoding]):
    """Modality -> its reading, from the configuration that a run was trained by."""
    readings = {}
    for spec in specs:
        if isinstance(spec, TabularSpec):
            owner = config.modalities[spec.name.removesuffix("_table")]
            readings[spec.name] = Reading(
                TABLE, encoding=tables[spec.name], id_column=owner.id_column
            )
            continue
        part = config.modalities[spec.name]
        # Other formats hold images; "prepared" holds pixels that were windowed when it was made.
        kinds = {DICOM: DICOM, NIFTI: NIFTI, "manifest": ANY} if config.source == "files" else {}
        kind = kinds.get(part.format, IMAGE)
        window = part.window if kind in (DICOM, ANY) else ""
        readings[spec.name] = Reading(
            kind,
            part.fit,
            window,
            mean=part.mean,
            std=part.std,
            volume=isinstance(spec, VolumeSpec),
            spacing=part.spacing,
        )
    return readings


def read_item(item: Item, spec: Spec, reading: Reading, name: str) -> np.ndarray:
    """One record's array of one modality, shaped and typed as `spec`; zeros where it is None.

    Raises:
      UserError: naming the file, or `name`, and what does not fit.
    """
    if item is None:
        return np.zeros(spec.shape, spec.dtype)
    if reading.format == TABLE:
        return _read_row(item, spec, reading, name)
    if isinstance(item, str | Path):
        return _read_file(str(item), spec, reading)
    if isinstance(item, Stored):
        # Another size would be resampled a second time, which training never does.
        if item.pixels.shape != spec.shape:
            raise UserError(
                f"{item.name}: was prepared as {item.pixels.shape}, this network reads "
                f"{spec.shape}; prepare the set again at that size."
            )
        return item.pixels
    if isinstance(item, Mapping):
        raise UserError(f"{name}: is a row of a table, but this modality is of images.")
    array = np.asarray(item)
    if array.dtype != np.uint8:
        raise UserError(
            f"{name}: has pixels of type {array.dtype}; give uint8 from 0 to 255, or a file."
        )
    if isinstance(spec, VolumeSpec):
        # An array does not say how far its voxels are apart.
        return fit_voxels(Voxels(array, None), spec, fit=reading.fit, spacing=(), name=name)
    return fit_image(array, spec, fit=reading.fit, name=name)


def _read_file(text: str, spec: PixelSpec, reading: Reading) -> np.ndarray:
    if isinstance(spec, VolumeSpec):
        options = {"fit": reading.fit, "spacing": reading.spacing, "window": reading.window}
        kind = None if reading.format == IMAGE else reading.kind
        return read_any_volume(text, spec, kind=kind, **options)
    if reading.format == IMAGE:
        try:
            return decode_file(Path(text), spec, fit=reading.fit)
        except FileError as error:
            if kind_by_name(text) == PICTURE:
                raise
            what = f"is none of what this network was trained on: {reading.suffixes}"
            raise FileError(text, what) from error
    return read_any(text, spec, fit=reading.fit, window=reading.window, kind=reading.kind)


def _read_row(item: Item, spec: TabularSpec, reading: Reading, name: str) -> np.ndarray:
    if not isinstance(item, Mapping):
        raise UserError(
            f"{name}: give a row of the table, a mapping of the columns "
            f"{', '.join(reading.columns)} to values."
        )
    if lacking := [column for column in reading.columns if column not in item]:
        raise UserError(
            f"{name}: the row lacks the column {', '.join(lacking)}. A value that is not known "
            "stays empty, but its column must be there."
        )
    cells = {column: _cell(item[column]) for column in reading.columns}
    features = reading.encoding.encode(cells)
    if features is None:
        raise UserError(f"{name}: every value of the row is missing; give None instead of a row.")
    return features


def _cell(value: str | float | None) -> str:
    return "" if value is None else str(value)


def _encoding(values: Mapping[str, Any]) -> TableEncoding:
    columns = values["columns"]
    return TableEncoding(
        TableColumns(columns["name"], tuple(columns["numeric"]), tuple(columns["categorical"])),
        tuple(values["means"]),
        tuple(values["deviations"]),
        tuple(tuple(known) for known in values["categories"]),
    )
