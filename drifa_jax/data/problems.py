"""Problems with the user's data, gathered so that all of them are told at once."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from drifa_jax.console import harmless
from drifa_jax.errors import UserError
from drifa_jax.whole_files import written_whole

MAX_SHOWN = 20
MAX_NAMED = 5


def some_of(names: Sequence[str]) -> str:
    """Up to five of several names and how many more there are, for a sentence."""
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + f" and {more:,} more" * (more > 0)


class FileError(UserError):
    """One file that cannot be used: which, and what is wrong with it.

    Args:
      where: the file.
      what: what is wrong, the rest of a sentence that the file begins, without a full stop.
    """

    def __init__(self, where: str | Path, what: str):
        super().__init__(f"{where}: {what}.")
        self.where, self.what = str(where), what

    def __reduce__(self):
        # Data workers hand errors to the process that started them.
        return type(self), (self.where, self.what)


@contextmanager
def reading(path: str | Path, what: str, *, quote: bool = True) -> Iterator[None]:
    """Turns whatever a reading library raises into a `FileError` of the file.

    Libraries meet damaged files with errors of every class (`zlib.error`, `struct.error`,
    `KeyError`, `RecursionError`), so all of them count, and a file is told from a defect of this
    package by who calls: only calls into a library stand inside.

    Args:
      path: the file.
      what: what is wrong with it when the library fails, for example "is damaged or truncated".
      quote: whether the library's own words follow; DICOM's may hold names of patients.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except MemoryError as error:
        raise FileError(path, "needs more memory to read than there is") from error
    except BaseException as error:
        # Panics of libraries in Rust are no `Exception`.
        if isinstance(error, OSError) and error.strerror:
            raise FileError(path, f"cannot be read ({error.strerror})") from error
        words = " ".join(str(error).split()) if quote else ""
        raise FileError(path, f"{what} ({words})" if words else what) from (
            error if quote else None
        )


class LeftOut:
    """What a scan left out, counted by reason, so that nothing is dropped in silence.

    Example:
      >>> left_out = LeftOut()
      >>> left_out.add("segmentations")
      >>> left_out.add("hidden files", 2)
      >>> str(left_out)
      'left out: 2 hidden files, 1 segmentations'
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        counts = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return "left out: " + (", ".join(f"{n} {reason}" for reason, n in counts) or "nothing")

    def __iadd__(self, other: LeftOut) -> LeftOut:
        self.counts += other.counts
        return self

    def notes(self, where: str | Path) -> tuple[str, ...]:
        """The line that tells it of a folder or file; none where nothing was left out."""
        return (f"{where}: {self}",) if self else ()

    def add(self, reason: str, count: int = 1) -> None:
        """Count files or rows left out for a reason, a noun in the plural."""
        if count:
            self.counts[reason] += count


class Problems:
    """A list of (where, what) that ends as one `UserError` or as a quarantine report.

    Example:
      >>> problems = Problems("the folder scans/")
      >>> problems.add("a.jpg", "is truncated")
      >>> len(problems)
      1
    """

    def __init__(self, subject: str):
        self.subject = subject
        self.found: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self.found)

    def add(self, where: str | Path, what: str) -> None:
        """Remember one problem: the file, column or class, and what is wrong with it."""
        self.found.append((str(where), what))

    def __iadd__(self, other: Problems) -> Problems:
        self.found += other.found
        return self

    def raise_any(self, cure: str = "") -> None:
        """Raise every problem in one message, or return when there is none."""
        if not self.found:
            return
        shown = [f"  {where}: {what}" for where, what in self.found[:MAX_SHOWN]]
        if len(self.found) > MAX_SHOWN:
            shown.append(f"  ... and {len(self.found) - MAX_SHOWN} more")
        count = f"{len(self.found)} problem{'s' if len(self.found) > 1 else ''}"
        lines = [f"{count} in {self.subject}:", *shown]
        raise UserError("\n".join([*lines, cure] if cure else lines))

    def settle(self, cure: str, quarantine: Path | str | None, left_out: LeftOut) -> None:
        """The policy: raise everything found or, with a report file, write it there and go on.

        Whoever goes on must have left out what the problems are about; it is counted so.
        """
        if quarantine is None:
            self.raise_any(cure)
        elif self.found:
            self.write_report(Path(quarantine))
            left_out.add(f"with problems, listed in {quarantine}", len(self.found))
        else:
            # What an earlier try found is no longer true.
            Path(quarantine).unlink(missing_ok=True)

    def write_report(self, path: Path) -> None:
        """Write the quarantine report, a CSV table of where and what, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            written_whole(path) as partial,
            partial.open("w", newline="", errors="backslashreplace") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(["where", "problem"])
            writer.writerows([harmless(cell) for cell in row] for row in self.found)
