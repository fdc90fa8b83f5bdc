"""A study of DICOM files as one case: which file is which modality, and whose they all are.

Runs inside the process with limits. Identifiers go to the objects that belong to the same study,
and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drifa_jax.archive.sources import read_source
from drifa_jax.data.readers import dicom
from drifa_jax.data.readers.dicom_files import NoImageError
from drifa_jax.data.record import Spec, TabularSpec, VolumeSpec
from drifa_jax.errors import UserError
from drifa_jax.serve.reading_case import dicom_names


def by_modality(files: Sequence[Path], specs: Mapping[str, Spec]) -> dict[str, list[Path]]:
    """Modality -> its files. Reports and other objects without an image are left out.

    A file belongs to the modality that is called as its own header calls it (`mri`: MR, `ct`: CT);
    in a network of one modality all do.

    Raises:
      UserError: where a file fits none or several, or a modality has more files than it reads.
    """
    images = {name: spec for name, spec in specs.items() if not isinstance(spec, TabularSpec)}
    found: dict[str, list[Path]] = {}
    for number, file in enumerate(files, start=1):
        try:
            kind = dicom.modality_of(file)
        except NoImageError:
            continue
        fits = [m for m in images if kind in dicom_names(m)] if len(images) > 1 else list(images)
        if len(fits) != 1:
            known = ", ".join(f"{m} ({' or '.join(sorted(dicom_names(m))) or '?'})" for m in images)
            how_many = "none" if not fits else "several"
            raise UserError(
                f"File {number} of the study belongs to {how_many} of what this network "
                f"reads: {known}. Send its files by name to /v1/predict."
            )
        found.setdefault(fits[0], []).append(file)
    for name, several in found.items():
        if len(several) > 1 and not isinstance(images[name], VolumeSpec):
            raise UserError(
                f"The study has {len(several)} images of {name}, and this network reads one: send "
                "that one alone."
            )
    if not found:
        raise UserError("The study holds no image.")
    return found


def sources_json(files: Sequence[Path], frame: int | None) -> list[dict[str, Any]]:
    """What the server needs to write objects that belong to the study of these files."""
    sources = [read_source(file, () if frame is None else (frame,)) for file in files]
    return [
        {
            "header": source.header.to_json_dict(),
            "frames": list(source.frames),
            "when": list(source.when),
            "number": source.number,
            "burned_in": source.burned_in,
        }
        for source in sources
    ]
