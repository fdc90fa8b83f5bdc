"""Columns of labels as people write them: one class in many spellings, one-hot, missing by word.

What is told apart only by letter case, space or the notation of a number (`0`, `0.0`, `00`) is one
class, and words that programs write for a missing value (`None`, `NA`, `nan`) are a class where
they are frequent. Both are guesses, so both are told; declared classes leave nothing to guess.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from drifa_jax.data.record import MISSING_LABEL
from drifa_jax.data.table import Row, is_missing

FREQUENT = 0.05
"""Share of the cells that hold something, from which on a word of `MISSING_VALUES` is a class."""

WRITTEN_BY_PROGRAMS = ("nan", "null")
"""Such words, beside empty cells in one column, are only another way to write those."""

SURE = "Name the classes (--classes, or classes in the configuration) to say otherwise."

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.ASCII)
_EXACT_DIGITS = 28  # that decimal arithmetic keeps; longer cells are codes, not numbers


@dataclass(frozen=True)
class LabelColumn:
    """What the cells of a column of labels mean.

    Attributes:
      name: of the column, or of several with commas between, which are one-hot.
      classes: names, in the order of their numbers.
      spellings: folded cell -> number of its class.
      notes: what was guessed, for people.
    """

    name: str
    classes: tuple[str, ...]
    spellings: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def label(self, row: Row) -> int | str:
        """The number of the class of a row, `MISSING_LABEL`, or what is wrong with its cells."""
        cell = told(row, self.name)
        if cell is None:
            return f"of no one-hot row (one 1, else 0) in {self.name}"
        if cell in self.classes:
            return self.classes.index(cell)
        if (number := self.spellings.get(folded(cell))) is not None:
            return number
        return MISSING_LABEL if is_missing(cell) else f"{cell!r}, not one of {self.classes}"


def column_names(name: str, row: Row) -> tuple[str, ...]:
    """The columns that a name means: itself, or several with commas between."""
    if name in row or "," not in name:
        return (name,)
    return tuple(part.strip() for part in name.split(","))


def told(row: Row, name: str) -> str | None:
    """What a row says of its label, "" where nothing; None where one-hot cells are no such."""
    names = column_names(name, row)
    if len(names) == 1:
        return row[name]
    cells = [row[part] for part in names]
    if all(map(is_missing, cells)):
        return ""
    values = [folded(cell) for cell in cells]
    if set(values) - {"0", "1"} or values.count("1") > 1:
        return None
    return names[values.index("1")] if "1" in values else ""


def folded(cell: str) -> str:
    """A cell without what people write in several ways."""
    text = " ".join(unicodedata.normalize("NFC", cell).casefold().split())
    if len(text) > _EXACT_DIGITS or not _NUMBER.fullmatch(text):
        return text
    # Adding zero turns -0 into 0.
    return str(Decimal(text).normalize() + 0)


def read_labels(rows: Sequence[Row], name: str, declared: Sequence[str] = ()) -> LabelColumn:
    """The classes of a column (or of one-hot columns), and every guess that was made.

    Args:
      rows: of the table; each has the columns.
      name: of the column; several with commas between are one-hot, and name the classes.
      declared: the classes, in their order; empty takes those of the cells, sorted.

    Test: tests/data/test_label_columns.py.
    """
    one_hot = len(names := column_names(name, rows[0])) > 1
    cells = Counter(told(row, name) or "" for row in rows)
    if declared or one_hot:
        classes = tuple(declared or names)
        spelt = Counter(map(folded, classes))
        # Classes that differ by their spelling alone were declared so, and are kept apart.
        known = {folded(c): k for k, c in enumerate(classes) if spelt[folded(c)] == 1}
        return LabelColumn(name, classes, known, tuple(_respelt(name, cells, known, classes)))
    notes, present = [], sum(n for cell, n in cells.items() if cell)
    for word, count in sorted(_missing_words(cells).items()):
        as_class = count >= FREQUENT * present and not (
            cells[""] and word.casefold() in WRITTEN_BY_PROGRAMS
        )
        meaning = "a class" if as_class else "no label"
        notes.append(f"{count} cells of {name} say {word!r}, taken for {meaning}. {SURE}")
        if not as_class:
            cells = Counter({c: n for c, n in cells.items() if folded(c) != folded(word)})
    kinds: dict[str, Counter[str]] = {}
    for cell, count in cells.items():
        if cell:
            kinds.setdefault(folded(cell), Counter())[cell] += count
    # The spelling that most cells have; of equals the shortest, then the first.
    chosen = {
        kind: min(spelt, key=lambda cell: (-spelt[cell], len(cell), cell))
        for kind, spelt in kinds.items()
    }
    classes = tuple(sorted(chosen.values()))
    known = {kind: classes.index(cell) for kind, cell in chosen.items()}
    notes += _respelt(name, cells, known, classes)
    return LabelColumn(name, classes, known, tuple(notes))


def one_hot_columns(rows: Sequence[Row], other_than: Sequence[str]) -> tuple[str, ...]:
    """Columns that together look one-hot; none where they do not."""
    names = [
        name
        for name in rows[0]
        if name not in other_than and {folded(row[name]) for row in rows} <= {"0", "1"}
    ]
    sums = [sum(folded(row[name]) == "1" for name in names) for row in rows]
    return tuple(names) if len(names) > 1 and set(sums) == {1} else ()


def _missing_words(cells: Counter[str]) -> Counter[str]:
    """Word for a missing value, as most cells spell it -> number of cells."""
    spelt: dict[str, Counter[str]] = {}
    for cell, count in cells.items():
        if cell and is_missing(cell):
            spelt.setdefault(folded(cell), Counter())[cell] += count
    return Counter({c.most_common(1)[0][0]: c.total() for c in spelt.values()})


def _respelt(
    name: str, cells: Counter[str], known: dict[str, int], classes: Sequence[str]
) -> list[str]:
    """A line for each class that cells spell in other ways than it is called."""
    others: dict[int, list[str]] = {}
    for cell in sorted(cells):
        number = known.get(folded(cell))
        if number is not None and cell not in classes:
            others.setdefault(number, []).append(cell)
    return [
        f"{', '.join(map(repr, spelt))} and {classes[k]!r} of {name} are one class. {SURE}"
        for k, spelt in sorted(others.items())
    ]
