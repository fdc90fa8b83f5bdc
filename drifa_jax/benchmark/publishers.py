"""Paired tables of the suite's sets from what their publishers hand out, one row a record.

    drifa benchmark paired-v1 --join bus_bra=BUSBRA

Tables are written into the publisher's folder, where `configs/paired.py` looks for them.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from drifa_jax.data.table import read_table
from drifa_jax.errors import UserError
from drifa_jax.whole_files import written_whole

Row = dict[str, str]

SEQUENCES = ("pre", "flair", "post")
"""Of the three channels of a slice of LGG MRI Segmentation, in their order."""

FEWEST_MASK_PIXELS, FULL_MASK = 50, 256 * 256
"""A slice with fewer pixels of tumour than this, of so many, is not labelled."""


def milk10k(folder: Path) -> list[Path]:
    """`lesions_wide.csv` of MILK10k: both pictures, diagnosis and what is known of the lesion.

    Source: MILK10k (ISIC Archive), `MILK10k_Training_Metadata.csv` (a row a picture) and
    `MILK10k_Training_GroundTruth.csv` (a column of 0 and 1 for each class).
    """
    truth = {}
    for row in read_table(folder / "MILK10k_Training_GroundTruth.csv"):
        lesion = row.pop("lesion_id")
        (truth[lesion],) = [name for name, cell in row.items() if float(cell or 0) == 1]
    told = ("age_approx", "sex", "skin_tone_class", "site")
    lesions: dict[str, Row] = {}
    for row in read_table(folder / "MILK10k_Training_Metadata.csv"):
        lesion, kind = row["lesion_id"], row["image_type"].split(":")[0]
        merged = lesions.setdefault(
            lesion,
            {"lesion_id": lesion, "clinical": "", "dermoscopic": "", "dx": truth.get(lesion, "")}
            | {name: row[name] for name in told},
        )
        merged[kind] = f"MILK10k_Training_Input/{lesion}/{row['isic_id']}.jpg"
    return [_write(folder / "lesions_wide.csv", lesions.values())]


def bus_bra(folder: Path) -> list[Path]:
    """`cases_view_1.csv` and `cases_view_2.csv` of BUS-BRA, the second of those with two views.

    Source: BUS-BRA (doi:10.5281/zenodo.8231412), `bus_data.csv`: the sides `left` and `right` of
    a split screen are two views, `single` is one.
    """
    views: dict[str, list[Row]] = {"view_1": [], "view_2": []}
    for row in read_table(folder / "bus_data.csv"):
        view = "view_2" if row["Side"] == "right" else "view_1"
        views[view].append(
            {
                "case": f"case_{int(row['Case']):04}",
                view: _only(folder, f"Images/{row['ID']}"),
                "pathology": row["Pathology"],
            }
        )
    return [_write(folder / f"cases_{view}.csv", rows) for view, rows in views.items()]


def lgg(folder: Path) -> list[Path]:
    """`sequences/`: the channels of each slice apart, and a table for each sequence.

    A sequence that a patient lacks, for which the publisher filled in FLAIR, is left out. A slice
    holds tumour from `FEWEST_MASK_PIXELS` pixels of a full-size mask on, none without any, and
    has no label between.

    Source: LGG MRI Segmentation (Buda et al., Computers in Biology and Medicine 109, 2019),
    `<patient>/<slice>.tif` with its `_mask.tif`, and `data.csv`.
    """
    known = {row["Patient"]: row for row in read_table(folder / "data.csv")}
    rows: dict[str, list[Row]] = {name: [] for name in SEQUENCES}
    out = folder / "sequences"
    for place in sorted(path for path in folder.iterdir() if (path.is_dir() and path != out)):
        slices = {
            int(path.stem.rsplit("_", 1)[1]): np.asarray(Image.open(path))
            for path in place.glob("*.tif")
            if not path.stem.endswith("_mask")
        }
        flair = SEQUENCES.index("flair")
        held = [
            name == "flair" or any(np.any(x[..., k] != x[..., flair]) for x in slices.values())
            for k, name in enumerate(SEQUENCES)
        ]
        # Folders of the full set end with the day of the scan, which no table needs.
        patient = re.sub(r"_\d{8}$", "", place.name)
        told = known.get(patient, {})
        for number, pixels in sorted(slices.items()):
            mask = np.asarray(Image.open(place / f"{place.name}_{number}_mask.tif")) > 0
            label = _tumour(mask.sum() * FULL_MASK / mask.size)
            for k, name in enumerate(SEQUENCES):
                if not held[k]:
                    continue
                picture = Path(name) / f"{patient}_{number}.png"
                (out / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[..., k]).save(out / picture)
                rows[name].append(
                    {
                        "slice_id": f"{patient}_{number}",
                        "patient": patient,
                        name: str(picture),
                        "tumour_in_slice": label,
                        "age": told.get("age_at_initial_pathologic", ""),
                        "tumor_location_code": told.get("tumor_location", ""),
                    }
                )
    return [_write(out / f"slices_{name}.csv", rows[name]) for name in SEQUENCES]


PUBLISHERS: Mapping[str, Callable[[Path], list[Path]]] = {
    "milk10k": milk10k,
    "bus_bra": bus_bra,
    "lgg": lgg,
}
"""Set -> what writes its tables; HAM10000 is read as it is handed out."""


def join(name: str, folder: Path) -> list[Path]:
    """Writes the tables of a set; which.

    Raises:
      UserError: for a set without a joining, a folder that is not what its publisher hands out,
        or tables that are there already.
    """
    if name not in PUBLISHERS:
        raise UserError(
            f"--join {name}: there is nothing to join; choose among {', '.join(PUBLISHERS)}."
        )
    try:
        return PUBLISHERS[name](folder)
    except (KeyError, ValueError, OSError) as error:
        raise UserError(
            f"--join {name}={folder}: this is not the set as its publisher hands it out "
            f"({type(error).__name__}: {error}); see docs/benchmark.md."
        ) from error


def _tumour(mask_pixels: float) -> str:
    if mask_pixels >= FEWEST_MASK_PIXELS:
        return "yes"
    return "" if mask_pixels > 0 else "no"


def _only(folder: Path, stem: str) -> str:
    """The picture of this name, whatever its kind."""
    found = sorted(folder.glob(f"{stem}.*"))
    if not found:
        raise FileNotFoundError(f"there is no picture {stem}")
    return str(found[0].relative_to(folder))


def _write(path: Path, rows: Iterable[Row]) -> Path:
    rows = list(rows)
    if path.exists():
        raise UserError(f"{path} exists already; remove it to join the tables again.")
    text = io.StringIO()
    columns: Sequence[str] = list(rows[0])
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    with written_whole(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")
    return path
