"""How the network does for women and men, old and young, one hospital and another.

A subgroup that is too small says nothing reliable and may name a patient: below
`SMALLEST_GROUP` groups (patients) only its size band is shown. Differences between subgroups are
not tested: with many of them some always look significant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drifa_jax.errors import UserError
from drifa_jax.evaluate.intervals import Interval, task_metrics
from drifa_jax.evaluate.metrics import Metric, scalars

SMALLEST_GROUP = 20
"""Patients, lesions or other groups below which a subgroup's figures are not shown."""


def shown_metrics() -> tuple[Metric, ...]:
    """What is computed and shown for each subgroup."""
    return tuple(metric for metric in scalars() if metric.in_subgroups)


MISSING = "unknown"
WIDTH_OF_AGE_BAND = 20
OLDEST = 120
MOST_VALUES = 12
"""Columns with more values than this are names or codes, not subgroups."""

KNOWN_COLUMNS = {
    "sex": ("sex", "gender", "patientsex"),
    "age": ("age", "patientage", "age_approx"),
    "site": (
        "site",
        "localization",
        "localisation",
        "anatom_site",
        "hospital",
        "centre",
        "center",
        "institution",
    ),
    "source": ("source", "dataset", "scanner", "manufacturer", "device"),
    "evidence": ("lesion shows in",),  # of the phantoms
}
"""What is looked for when nobody names columns -> spellings, in lower case."""


@dataclass(frozen=True)
class Subgroup:
    """One value of one column.

    Attributes:
      name: the value, or the band of it.
      num_records, num_groups: labelled ones; None where suppressed.
      metrics: name -> figure; empty where suppressed.
    """

    name: str
    num_records: int | None
    num_groups: int | None
    metrics: Mapping[str, Interval]

    @property
    def suppressed(self) -> bool:
        return self.num_records is None

    def to_json(self) -> dict[str, Any]:
        if self.suppressed:
            return {"suppressed": f"fewer than {SMALLEST_GROUP} groups"}
        return {
            "num_records": self.num_records,
            "num_groups": self.num_groups,
            "metrics": {name: found.to_json() for name, found in self.metrics.items()},
        }


def find_columns(held: Sequence[str], asked: Sequence[str] | None) -> list[str]:
    """The columns of the records to make subgroups of.

    Args:
      held: names of all columns.
      asked: columns that must be there; None looks for sex, age, site and source.

    Raises:
      UserError: listing what the records have, where one that was asked for is missing.
    """
    if asked is None:
        spellings = {name for several in KNOWN_COLUMNS.values() for name in several}
        # In paired sets of strangers a column is named `modality/column`.
        return [name for name in held if name.rsplit("/", 1)[-1].lower() in spellings]
    found = []
    for name in asked:
        same = [column for column in held if name in (column, column.rsplit("/", 1)[-1])]
        if not same:
            listed = f"they have {', '.join(held)}" if held else "they have no columns"
            raise UserError(
                f"--subgroups {name}: the test records have no such column; {listed}. Columns "
                "come from a manifest or a prepared table (data.modalities.<name>.table)."
            )
        found += same
    return found


def subgroup_values(values: Sequence[str]) -> list[str]:
    """The subgroup of each record: the value itself, or the band of a number.

    Numbers with many values become bands of 20 (ages), or of a quarter of the records each where
    they are not ages. Values of a column that has too many to be subgroups are all `MISSING`.
    """
    numbers = [_number(value) for value in values]
    known = [n for n in numbers if n is not None]
    texts = {v for v, n in zip(values, numbers, strict=True) if n is None and not _is_missing(v)}
    if known and not texts and len(set(known)) > MOST_VALUES / 2:
        name = _bands(np.array(known))
        return [MISSING if n is None else name(n) for n in numbers]
    if len({v for v in values if not _is_missing(v)}) > MOST_VALUES:
        return [MISSING] * len(values)
    return [MISSING if _is_missing(v) else str(v) for v in values]


def subgroup_table(
    probabilities: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str],
    classes: Sequence[str],
    values: Sequence[str],
    *,
    num_resamples: int,
    seed: int = 0,
) -> list[Subgroup]:
    """One row for each value of a column, ordered by it, over the labelled records.

    Args:
      probabilities, labels, groups, classes: as of `task_metrics`.
      values: of the column, `[n]`, "" where unknown.

    Test: tests/evaluate/test_subgroups.py.
    """
    labels, group = np.asarray(labels), np.asarray(groups, dtype=str)
    names = np.asarray(subgroup_values(values))
    known = labels >= 0
    rows = []
    for name in sorted(set(names[known].tolist()), key=_order):
        chosen = known & (names == name)
        num_groups = len(np.unique(group[chosen]))
        if num_groups < SMALLEST_GROUP:
            rows.append(Subgroup(name, None, None, {}))
            continue
        found = task_metrics(
            probabilities[chosen],
            labels[chosen],
            group[chosen].tolist(),
            classes,
            num_resamples=num_resamples,
            seed=seed,
            metrics=shown_metrics(),
        )
        rows.append(Subgroup(name, found.num_records, num_groups, found.scalars))
    return rows


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        # DICOM writes ages as "063Y".
        text = str(value)
        return float(text[:-1]) if text[-1:] in "Yy" and text[:-1].isdigit() else None
    return number if math.isfinite(number) else None


def _bands(known: np.ndarray) -> Callable[[float], str]:
    """Number -> the name of its band; ages have fixed ones, others those of the quarters."""
    if known.min() >= 0 and known.max() <= OLDEST:

        def band_of_age(number: float) -> str:
            low = int(number // WIDTH_OF_AGE_BAND) * WIDTH_OF_AGE_BAND
            return f"{low} to {low + WIDTH_OF_AGE_BAND - 1}"

        return band_of_age
    edges = np.unique(np.quantile(known, [0, 0.25, 0.5, 0.75, 1]))

    def band(number: float) -> str:
        place = int(np.searchsorted(edges, number, side="right")) - 1
        place = min(max(place, 0), len(edges) - 2)
        return f"{edges[place]:g} to {edges[place + 1]:g}"

    return band


def _is_missing(value: Any) -> bool:
    return value is None or str(value).strip().lower() in ("", "nan", "none", "null", MISSING)


def _order(name: str) -> tuple[bool, float, str]:
    number = _number(name.split(" to ")[0])
    return name == MISSING, math.inf if number is None else number, name
