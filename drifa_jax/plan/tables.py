"""Modalities of a table: which of several tables, which columns, which classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drifa_jax.data.sources.folders import SPLIT_FOLDERS
from drifa_jax.data.table import Row, is_missing, read_table
from drifa_jax.errors import UserError
from drifa_jax.plan import columns, names
from drifa_jax.plan.joined_tables import Labels, labels_of, long_form
from drifa_jax.plan.modality import (
    FEWEST_GROUPS,
    ONE_PATIENT,
    Answers,
    Found,
    Questions,
    too_small,
)
from drifa_jax.plan.survey import Survey, survey

MOST_TABLES = 40
NOT_YET = frozenset({"todo", "tbd", "pending", "to do", "unlabeled", "unlabelled"})
"""Labels, in lower case, of records that nobody has labelled yet."""

UNNAMED = "no column names the patient, so two records may be of one (--group-column COLUMN)"


def table_modalities(path: Path, files: Survey, answers: Answers) -> list[Found]:
    """Modalities of the best table of a place; none where no table names images and labels."""
    candidates: list[_Candidate] = []
    chosen = [
        t for t in files.tables if not answers.table or Path(t).name == Path(answers.table).name
    ]
    if answers.table and files.tables and not chosen:
        raise UserError(
            f"--table {answers.table}: the tables of {path} are {', '.join(files.tables[:10])}."
        )
    read_tables = _read(path, files, chosen if path.is_file() or answers.table else ())
    for table in chosen[:MOST_TABLES]:
        root = (files.root / table).parent
        rows = read_tables.get(table, [])
        if not rows:
            continue
        prefix = "" if root == files.root else root.relative_to(files.root).as_posix() + "/"
        beside = (
            survey(root).images
            if path.is_file()
            else tuple(i.removeprefix(prefix) for i in files.images if i.startswith(prefix))
        )
        read = columns.roles(rows, beside)
        others = {
            Path(other).name: cells
            for other, cells in read_tables.items()
            if cells and other != table and (files.root / other).parent == root
        }
        labels = None
        if read.images and not (answers.label and answers.label in rows[0]):
            labels = labels_of(rows, read, others, answers.label_table)
        if read.images and (read.labels or labels or answers.label):
            candidates.append(_Candidate(table, root, read, rows, beside, labels))
    if not candidates:
        if answers.table or (files.tables and path.is_file()):
            told = what_tables_lack(files) or " Give the folder that holds both."
            raise UserError(
                f"{path}: the table has no column that names images below its folder together "
                f"with a column of labels.{told}"
            )
        return []
    candidates.sort(key=lambda candidate: candidate.rank, reverse=True)
    best, *others = candidates
    rivals = [
        other.table
        for other in others
        if other.rank[:2] == best.rank[:2] and other.rank[2] >= 0.95 * best.rank[2]
    ]
    if rivals and not answers.table:
        shown = ", ".join(rivals[:5])
        raise Questions([f"which table has the labels? --table {best.table} or {shown}"])
    return _of_table(best, answers)


def _read(path: Path, files: Survey, must: Sequence[str]) -> dict[str, list[Row]]:
    """Table -> its rows, of those that can be read; those in `must` raise where they cannot."""
    held = {}
    # A table given by itself may have its labels in another one beside it.
    names = survey(files.root).tables if path.is_file() else files.tables
    for table in (*must, *(name for name in names[:MOST_TABLES] if name not in must)):
        try:
            held[table] = read_table(files.root / table)
        except UserError:
            if table in must:
                raise
    return held


@dataclass(frozen=True)
class _Candidate:
    """A table that could hold the labels, or names images whose labels another table holds."""

    table: str
    root: Path
    read: columns.Columns
    rows: list[Row]
    beside: tuple[str, ...]
    labels: Labels | None

    @property
    def rank(self) -> tuple[bool, int, int, int]:
        """A telling label first, then columns of images, rows with images, and columns."""
        read = self.read
        return bool(read.telling or self.labels), len(read.images), read.named, len(self.rows[0])


def _of_table(candidate: _Candidate, answers: Answers) -> list[Found]:
    read, rows, file = candidate.read, candidate.rows, Path(candidate.table).name
    labels = candidate.labels
    if labels is None:
        label = _label(read, rows, answers)
    else:
        rows, label = labels.rows, labels.column
    group = answers.group_column or read.group
    if group and group not in rows[0]:
        raise UserError(f"--group-column {group} is no column; the table has {', '.join(rows[0])}.")
    record = read.record_id or read.images[0]
    by_image = long_form(rows, labels.id_column if labels else "")
    if by_image is not None:
        record = by_image[0]
        rows_of = {
            name: (f"{by_image[1]}={value}", [row for row in rows if row[by_image[1]] == value])
            for value, name in by_image[2].items()
        }
        image_columns = dict.fromkeys(rows_of, read.images[0])
        rows = list({row[record]: row for row in reversed(rows)}.values())
    else:
        named = {_column_name(c, read.images, candidate.root): c for c in read.images}
        rows_of, image_columns = dict.fromkeys(named, ("", rows)), named
    counts = columns.class_counts(rows, label)
    fields: dict[str, Any] = {
        "root": str(candidate.root.resolve()),
        "format": "manifest",
        "table": file,
        "id_column": record,
        "label_column": label,
    }
    reasons = {
        "table": f"{file} names the images of {' and '.join(read.images)} in {read.named} rows",
        "label_column": "as you said"
        if answers.label
        else f"one class a column, 1 in that of the record's ({len(counts)} classes)"
        if "," in label
        else f"{label!r} reads as the label",
    }
    if labels is not None and labels.table:
        fields["label_table"] = labels.table
        reasons["label_table"] = f"{labels.table} holds the labels, by {record!r}"
    if group and group != record:
        fields["group_column"] = group
        held = len({row[group] for row in rows if row[group]})
        reasons["group_column"] = f"{held} of {group!r}, each kept whole in one split"
    if read.split:
        fields["split_column"], reasons["split_column"] = read.split, "the table brings splits"
    groups_of = _groups_by_class(rows, label, group or record)
    known = [
        name
        for name, groups in groups_of.items()
        if groups >= FEWEST_GROUPS and name.lower() not in NOT_YET and name in counts
    ]
    if counts and not known:
        alone = group and len({row[group] for row in rows}) == 1
        raise UserError(
            f"{candidate.root / file}: {ONE_PATIENT if alone else too_small(groups_of)}"
        )
    columns_of_classes = label.split(",") if "," in label else ()
    groups_of = dict.fromkeys(columns_of_classes, 0) | groups_of
    if len(known) < len(groups_of):
        fields["classes"], fields["ignore_other_classes"] = tuple(known), True
        rare = ", ".join(f"{name} ({n})" for name, n in groups_of.items() if name not in known)
        reasons["classes"] = (
            f"left out, of fewer than {FEWEST_GROUPS} groups or not labelled yet: {rare}"
        )
        counts = {name: counts[name] for name in known}
    groups_of = {name: groups_of[name] for name in counts}
    splits = Counter(SPLIT_FOLDERS.get(row[read.split].lower(), "") for row in rows if read.split)
    before = {"numeric_columns": read.numeric, "categorical_columns": read.categorical}
    files = columns.forms(candidate.beside)
    modalities = []
    for name, (chosen, its_rows) in rows_of.items():
        column = image_columns[name]
        own, why = dict(fields, image_column=column), dict(reasons)
        if chosen:
            own["rows"], why["rows"] = chosen, "a row for each image; these are of this modality"
        if not modalities and any(before.values()):
            own |= before
            why["numeric_columns"] = (
                "known before the diagnosis, so these become a modality of their own; other "
                "columns may tell the answer"
            )
        shown = [
            (files[cell], row[label])
            for row in its_rows
            if row[label] in counts and (cell := columns.plain(row[column])) in files
        ]
        _check_images(file, its_rows, column, files)
        modalities.append(
            Found(
                name,
                candidate.root,
                own,
                why,
                tuple(name for name, _ in shown),
                "diagnosis" if "," in label else label,
                counts,
                groups_of,
                dict(splits),
                sum(groups_of.values()) if "group_column" in fields else 0,
                table=str(candidate.root / file),
                facts=[
                    *([] if modalities or "group_column" in fields else [UNNAMED]),
                ],
                classes_of=tuple(kind for _, kind in shown),
            )
        )
    return modalities


def what_tables_lack(files: Survey) -> str:
    """What is said of the tables of a place, none of which can be used; "" where there are none."""
    for table in files.tables[:MOST_TABLES]:
        root = (files.root / table).parent
        try:
            rows = read_table(files.root / table)
        except UserError as error:
            return f" {error}"
        if not rows:
            continue
        images = survey(root).images
        beside, read = columns.forms(images), columns.roles(rows, images)
        if read.images:
            alike = {name: {row[name] for row in rows} for name in rows[0]}
            empty = [name for name, cells in alike.items() if all(map(is_missing, cells))]
            same = [f"{name} ({cells.pop()})" for name, cells in alike.items() if len(cells) == 1]
            told = f"; these columns are empty: {', '.join(empty)}" if empty else ""
            told += f"; these hold one value: {', '.join(same)}" if same and not empty else ""
            return (
                f" {table} names the images of {' and '.join(read.images)}, but no column "
                f"of it reads as a label{told}. --label COLUMN names one."
            )
        named = {name: [row[name] for row in rows if not is_missing(row[name])] for name in rows[0]}
        lacking = {
            name: [cell for cell in cells if columns.plain(cell) not in beside]
            for name, cells in named.items()
        }
        best = max(
            named,
            key=lambda name: (
                len(named[name]) - len(lacking[name]),
                bool(re.search("image|file|path|name|id$", name.lower())),
            ),
        )
        if beside:
            return f" {_in_part(table, best, named[best], lacking[best], beside)}."
    return ""


def _check_images(file: str, rows: Sequence[Row], column: str, images: Mapping[str, str]) -> None:
    """An error where rows and images do not belong together one by one."""
    named = [row[column] for row in rows if not is_missing(row[column])]
    lacking = [cell for cell in named if columns.plain(cell) not in images]
    if lacking:
        raise UserError(
            f"{_in_part(file, column, named, lacking, images)}. Find the images, or leave out the "
            "rows."
        )


def _in_part(file: str, column: str, named: Sequence[str], lacking: Sequence[str], images) -> str:
    """How many rows name images that are not there, with examples of both."""
    found = {images[plain] for cell in named if (plain := columns.plain(cell)) in images}
    alone = sorted(set(images.values()) - found)
    told = f"; {len(alone)} images are in no row, such as {', '.join(alone[:3])}" if alone else ""
    return (
        f"{len(lacking)} of {len(named)} rows of {file} name in {column!r} images that are not "
        f"there, such as {', '.join(lacking[:3])}{told}"
    )


def _label(read: columns.Columns, rows: list, answers: Answers) -> str:
    if answers.label:
        if answers.label not in rows[0]:
            raise UserError(
                f"--label {answers.label} is no column; the table has {', '.join(rows[0])}."
            )
        return answers.label
    if read.telling == 1 or (not read.telling and len(read.labels) == 1):
        return read.labels[0]
    shown = [
        f"{name} ({len(columns.class_counts(rows, name))} classes)"
        for name in read.labels[: read.telling or 8]
    ]
    raise Questions([f"which column is the label? --label, one of {', '.join(shown)}"])


def _groups_by_class(rows: Sequence[Mapping[str, str]], label: str, group: str) -> dict[str, int]:
    members: dict[str, set[str]] = {}
    for number, row in enumerate(rows):
        if not is_missing(row[label]):
            members.setdefault(row[label], set()).add(row[group] or str(number))
    return {name: len(groups) for name, groups in sorted(members.items())}


def _column_name(column: str, all_columns: Sequence[str], root: Path) -> str:
    """A modality's name for an image column; columns called by what they hold keep theirs."""
    plain = column.lower().replace(".", "_").replace("/", "_")
    generic = ("id", "image", "file", "path", "name", "img")
    if len(all_columns) == 1 and any(word in plain for word in generic):
        return names.modality_name(root.name)
    return plain
