"""Every DICOM and NIfTI test file of pydicom and nibabel, read here and by those libraries.

    pip install pydicom-data                     # 68 more files, without which they are left out
    python benchmarks/outside_files.py           # the table of docs/data.md
    python benchmarks/outside_files.py --list    # every file, one a line

Nobody here wrote those files. Each is read by `drifa_jax.data.readers` and, independently, by the
library's own functions in the fewest lines; first and last frames (slices) are compared in grey
levels of 255. Whatever is not read must be refused by a message that begins with the file's name,
and any other exception counts as a failure and ends the script with exit code 1.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import sys
import warnings
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

from drifa_jax.data.readers import dicom, nifti
from drifa_jax.data.readers.dicom_files import NoImageError
from drifa_jax.errors import UserError


def dicom_reference(path: Path, frame: int) -> np.ndarray:
    """8-bit pixels of one frame by pydicom alone, for transforms at the top level of a file."""
    file = gzip.open(path) if path.suffix == ".gz" else path.open("rb")
    data = pydicom.dcmread(file, force=True)
    if not data.file_meta.get("TransferSyntaxUID"):
        implicit, little = data.original_encoding
        syntaxes = {(True, True): "1.2.840.10008.1.2", (False, True): "1.2.840.10008.1.2.1"}
        data.file_meta.TransferSyntaxUID = syntaxes.get((implicit, little), "1.2.840.10008.1.2.2")
    stored = pixel_array(data, index=frame)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(stored, data)
        if data.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRBigEndian:
            colours = colours.byteswap()  # pydicom takes these tables for little-endian
        return colours >> 8 * (colours.dtype.itemsize - 1)
    if stored.ndim == 3:
        return stored >> (data.BitsStored - 8)
    for group in [data.get("SharedFunctionalGroupsSequence") or [], each_frame(data, frame)]:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in group[0].get(name) or [] if group else []:
                data.update(item)
    physical = apply_modality_lut(stored, data)
    shown = apply_voi_lut(physical, data).astype(float)
    low, high = shown.min(), shown.max()
    if "VOILUTSequence" in data:
        low, high = 0, 2 ** data.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif "WindowWidth" in data:
        signed = data.PixelRepresentation
        low, high = -signed * 2 ** (data.BitsStored - 1), 2 ** (data.BitsStored - signed) - 1
        low, high = (float(apply_modality_lut(np.array(end), data)) for end in (low, high))
    grey = (shown - low) / max(high - low, 1e-9) * 255
    return 255 - grey if data.PhotometricInterpretation == "MONOCHROME1" else grey


def each_frame(data, frame: int) -> list:
    """The functional groups of one frame, or none."""
    return (data.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]


def nifti_reference(path: Path) -> np.ndarray:
    """`[x, y, z]` grey levels of a volume by nibabel alone."""
    volume = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()
    volume = volume.reshape(volume.shape[:3])
    low, high = np.percentile(volume, (0.5, 99.5))
    low, high = (low, high) if low < high else (volume.min(), volume.max())
    return np.clip((volume - low) / max(high - low, 1e-9), 0, 1) * 255


def try_dicom(path: Path) -> tuple[str, str]:
    """(outcome, detail) of one file."""
    try:
        frames = dicom.count_frames(path)
        ours = [dicom.read_frame(path, frame) for frame in {0, frames - 1}]
    except NoImageError as error:
        return f"no image: {error.kind}", named(error, path)
    except UserError as error:
        return "refused", named(error, path)
    try:
        theirs = [dicom_reference(path, frame) for frame in {0, frames - 1}]
    except Exception as error:
        return "read, pydicom alone does not", f"{type(error).__name__}"
    return agreement([np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)])


def try_nifti(path: Path) -> tuple[str, str]:
    """(outcome, detail) of one file."""
    try:
        ours = nifti.read_volume(path)
    except UserError as error:
        return "refused", named(error, path)
    return agreement([np.abs(ours - nifti_reference(path)).max()])


def named(error: UserError, path: Path) -> str:
    """The message without the path that it must begin with."""
    text = str(error)
    return text.removeprefix(f"{path}: ") if text.startswith(str(path)) else f"UNNAMED: {text}"


def agreement(differences: list) -> tuple[str, str]:
    worst = max(map(float, differences))
    bound = next((bound for bound in (1, 3) if worst <= bound), None)
    return (f"read, within {bound}" if bound else "READ DIFFERENTLY"), f"{worst:.2f}"


def outside_files() -> dict[str, list[Path]]:
    """Name of a collection -> its files."""
    base = Path(pydicom.__file__).parent / "data"
    found = {"pydicom": [*(base / "test_files").rglob("*"), *(base / "charset_files").rglob("*")]}
    if spec := importlib.util.find_spec("data_store"):
        found["pydicom-data"] = list(Path(spec.origin).parent.rglob("*.dcm"))
    base = Path(nibabel.__file__).parent
    found["nibabel"] = [*(base / "nicom/tests/data").iterdir(), *(base / "tests/data").iterdir()]
    return {name: sorted(p for p in files if p.is_file()) for name, files in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="every file, one a line")
    listed = parser.parse_args().list
    warnings.simplefilter("ignore")
    failed = False
    for collection, files in outside_files().items():
        for form, attempt in (("DICOM", try_dicom), ("NIfTI", try_nifti)):
            outcomes: Counter[str] = Counter()
            for path in files:
                if form != form_of(path):
                    continue
                try:
                    outcome, detail = attempt(path)
                except Exception as error:
                    outcome, detail = "EXCEPTION", repr(error)
                outcomes[outcome] += 1
                failed |= outcome.isupper() or detail.startswith("UNNAMED")
                if listed:
                    print(f"{path.name}: {outcome}: {detail}")
            if outcomes:
                text = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
                print(f"| {collection} | {form} | {sum(outcomes.values())} | {text} |")
    return int(failed)


def form_of(path: Path) -> str:
    """Files of the tests that claim to be neither are not tried."""
    if path.name.lower().endswith((".nii", ".nii.gz", ".hdr", ".img", ".mgz", ".mnc")):
        return "NIfTI"
    return "DICOM" if path.suffix in (".dcm", ".gz", "") and ".BRIK" not in path.name else ""


if __name__ == "__main__":
    sys.exit(main())
