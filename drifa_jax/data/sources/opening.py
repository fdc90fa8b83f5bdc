"""Opening the data of one modality by the name of its format."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

from drifa_jax.buckets import here
from drifa_jax.config import ModalityConfig
from drifa_jax.data.records import Records
from drifa_jax.data.sources import arrays, dicom, folders, manifest, nifti, prepared, tfds_sets
from drifa_jax.data.splits import split_records
from drifa_jax.errors import UserError

Scan = Callable[[str, ModalityConfig, str | None], Records]
"""Name of the modality, where and how it lies, quarantine file (or None) -> its records."""

FORMATS: dict[str, Scan] = {
    "folders": folders.scan,
    "manifest": manifest.scan,
    "npz": arrays.scan_npz,
    "npy": arrays.scan_npy,
    "prepared": prepared.scan,
    "dicom": dicom.scan,
    "nifti": nifti.scan,
    "tfds": tfds_sets.scan,
}
"""Format -> how the records of one modality are found."""


def scan_modality(name: str, config: ModalityConfig, quarantine: str | None = None) -> Records:
    """The records of one modality, with the splits that they bring; no image is read.

    Args:
      name: of the modality.
      config: where its data lie, and how they are read.
      quarantine: of folders, manifest, dicom and nifti: a file that lists what is wrong and left
        out; None makes it an error.

    Raises:
      UserError: naming the format, folder, file or column that is wrong.

    Test: tests/data/sources/test_opening.py.
    """
    if config.format not in FORMATS:
        raise UserError(
            f"The format {config.format!r} of {name} is unknown; choose one of {sorted(FORMATS)}."
        )
    for field in ("group_pattern", "include"):
        try:
            re.compile(getattr(config, field))
        except (re.error, RecursionError, OverflowError) as error:
            pattern = getattr(config, field)
            raise UserError(
                f"The {field} {pattern!r} of {name} is no regular expression: {error}."
            ) from error
    config = dataclasses.replace(config, root=here(config.root))
    return FORMATS[config.format](name, config, quarantine)


def open_modality(
    name: str,
    config: ModalityConfig,
    fractions: Mapping[str, float],
    seed: int = 0,
    quarantine: str | None = None,
) -> dict[str, Records]:
    """Split -> records of one modality alone; see `splits.split_records`."""
    return split_records(scan_modality(name, config, quarantine), fractions, seed)
