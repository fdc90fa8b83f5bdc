"""Problems with the user's data, gathered so that all of them are told at once."""

from __future__ import annotations

import csv
from pathlib import Path

from drifa_jax.errors import UserError

MAX_SHOWN = 20


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

    def settle(self, cure: str, quarantine: Path | str | None) -> None:
        """The policy: raise everything found or, with a report file, write it there and go on.

        Whoever goes on must have left out what the problems are about.
        """
        if quarantine is None:
            self.raise_any(cure)
        elif self.found:
            self.write_report(Path(quarantine))

    def write_report(self, path: Path) -> None:
        """Write the quarantine report: a CSV table of where and what."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["where", "problem"])
            writer.writerows(self.found)
