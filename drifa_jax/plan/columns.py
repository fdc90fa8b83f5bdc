"""What the columns of a table mean: images, labels, groups, splits, and what else is known."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from drifa_jax.data.sources.folders import SPLIT_FOLDERS
from drifa_jax.data.table import Row, is_missing
from drifa_jax.plan.names import MOST_CLASSES

LABEL_WORDS = (
    *("label", "class", "target", "diagnosis", "dx", "finding", "pathology", "outcome"),
    *("category", "grade", "status", "disease"),
)
GROUP_WORDS = re.compile(r"patient|subject|person|^pid$|case|lesion|study|participant|mrn")
PATIENT_WORDS = re.compile(
    r"(patient|subject|participant|person)([_ ]?(id|no|nr|number|code|name))?|pid|mrn"
)
"""Columns that say so in so many words count with few patients too, even with one."""
SPLIT_WORDS = re.compile(r"split|subset|partition|fold_name|set$|usage")
KNOWN_BEFORE = re.compile(
    r"^(patient_?)?(age|sex|gender)($|_)|^(site|localization|location|laterality|side|body_part)"
    r"$|anatom|^skin_(tone|type)"
)
"""Columns that are known before anybody looks at the image, and so cannot tell the answer."""
FEWEST_BY_CLASS = 3
SEEN = 400
"""Rows from which the roles of columns are read; labels are counted over all."""


@dataclass(frozen=True)
class Columns:
    """The roles of a table's columns.

    Attributes:
      images: columns that name images below the folder of the table, in the table's order.
      named: how many rows the first of them names an image in.
      record_id: a column that is different in every row, "" where there is none.
      labels: columns that could be the label, those with a telling name first.
      telling: how many of `labels` have a telling name.
      group, split: "" where there is none.
      numeric, categorical: columns that are known before the diagnosis.
    """

    images: tuple[str, ...]
    named: int
    record_id: str
    labels: tuple[str, ...]
    telling: int
    group: str
    split: str
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]


def roles(rows: Sequence[Row], images: Sequence[str]) -> Columns:
    """Reads the roles of columns off their names and values.

    Args:
      rows: of the table, as `read_table` gives them.
      images: names of the images beside the table, relative to its folder.
    """
    names = list(rows[0])
    known = forms(images)
    values = {name: [row[name] for row in rows if not is_missing(row[name])] for name in names}
    distinct = {name: len(set(values[name])) for name in names}
    # Numbered images are called as codes are, but a column of codes holds the same few.
    image_columns = {
        name: hits
        for name in names
        if distinct[name] >= 0.1 * len(values[name])
        and (hits := sum(plain(cell) in known for cell in values[name][:SEEN]))
        >= 0.5 * max(1, len(values[name][:SEEN]))
        and hits > 0
    }
    unique = [n for n in names if len(values[n]) == distinct[n] == len(rows)]
    split = next((name for name in names if _is_split(name, values[name])), "")
    group = next(
        (
            name
            for name in names
            if GROUP_WORDS.search(name.lower())
            and name not in image_columns
            and (1 if PATIENT_WORDS.fullmatch(name.lower()) else 10)
            <= distinct[name]
            < len(values[name])
            > 0.5 * len(rows)
        ),
        "",
    )
    taken = {*image_columns, split, group}
    labels = [
        name
        for name in names
        if name not in taken
        and not KNOWN_BEFORE.search(name.lower())
        and 2 <= distinct[name] <= MOST_CLASSES
        and len(values[name]) >= max(0.3 * len(rows), FEWEST_BY_CLASS * distinct[name])
        and not _numeric_measure(values[name])
    ]
    telling = [name for word in LABEL_WORDS for name in labels if _says(name, word)]
    before = [n for n in names if n not in taken and KNOWN_BEFORE.search(n.lower()) and values[n]]
    numeric = tuple(n for n in before if _is_number(values[n]) and distinct[n] > 8)
    return Columns(
        images=tuple(image_columns),
        named=max((_count(values[name], known) for name in image_columns), default=0),
        record_id=min(unique, key=lambda name: _unlike_an_id(name, image_columns), default=""),
        labels=tuple(dict.fromkeys([*telling, *labels])),
        telling=len(set(telling)),
        group=group,
        split=split,
        numeric=numeric,
        categorical=tuple(
            n
            for n in before
            if distinct[n] <= 60 and not (_is_number(values[n]) and distinct[n] > 8)
        ),
    )


def class_counts(rows: Sequence[Row], label: str) -> dict[str, int]:
    """Class -> rows, of the rows that have a label."""
    counts: dict[str, int] = {}
    for row in rows:
        if not is_missing(row[label]):
            counts[row[label]] = counts.get(row[label], 0) + 1
    return dict(sorted(counts.items()))


def plain(cell: str) -> str:
    """A cell as paths are written here."""
    return cell.replace("\\", "/").removeprefix("./")


def forms(images: Sequence[str]) -> dict[str, str]:
    """How cells may name an image, by its path or, where that is unique, name or stem -> path."""
    names = Counter(PurePosixPath(image).name for image in images)
    stems = Counter(PurePosixPath(image).stem for image in images)
    found = {}
    for image in images:
        pure = PurePosixPath(image)
        found |= {image: image}
        found |= {pure.name: image} if names[pure.name] == 1 else {}
        found |= {pure.stem: image} if stems[pure.stem] == 1 else {}
    return found


def _unlike_an_id(name: str, image_columns: Container[str]) -> int:
    """0 for columns called as ids are, 1 for those that name images, 2 for the rest."""
    if name not in image_columns and re.search(
        r"(^|[_ ])(name|number|key)$|id$|case|record|accession", name.lower()
    ):
        return 0
    return 1 if name in image_columns else 2


def _count(cells: Sequence[str], known: Mapping[str, str]) -> int:
    return sum(plain(cell) in known for cell in cells)


def _is_split(name: str, cells: Sequence[str]) -> bool:
    said = {cell.lower() for cell in cells}
    return bool(SPLIT_WORDS.search(name.lower()) and len(said) > 1 and said <= SPLIT_FOLDERS.keys())


def _says(name: str, word: str) -> bool:
    return re.fullmatch(rf"(\w*[_ ])?{word}([_ ]?(name|id|code))?", name.lower()) is not None


def _is_number(cells: Sequence[str]) -> bool:
    try:
        for cell in cells[:SEEN]:
            float(cell)
    except ValueError:
        return False
    return True


def _numeric_measure(cells: Sequence[str]) -> bool:
    """Numbers with fractions, or many whole ones: a measurement rather than a class."""
    if not _is_number(cells):
        return False
    numbers = {float(cell) for cell in cells[:SEEN]}
    return any(not number.is_integer() for number in numbers) or len(numbers) > 12
