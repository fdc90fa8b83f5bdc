"""Reports and captures of predicted records as files, a folder of each, whole or not at all."""

from __future__ import annotations

import filecmp
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from drifa_jax.archive.codes import class_codes, read_codes
from drifa_jax.archive.identity import model_identity
from drifa_jax.archive.places import SUFFIX
from drifa_jax.archive.secondary_capture import secondary_captures
from drifa_jax.archive.sources import CaseSources, read_case
from drifa_jax.archive.structured_report import structured_report
from drifa_jax.errors import UserError
from drifa_jax.explain.explanation import explain_records
from drifa_jax.predict.inputs import Cases
from drifa_jax.predict.predictor import Predictor
from drifa_jax.predict.streaming import LARGEST_BATCH
from drifa_jax.predictions.table import Predictions
from drifa_jax.whole_files import written_whole


def read_sources(cases: Cases, predictor: Any) -> list[CaseSources]:
    """The sources of every case, before any is predicted.

    Raises:
      UserError: as `read_case`.
    """
    readings = predictor.description.readings
    return [
        read_case({m: items[row] for m, items in cases.images.items()}, readings, case)
        for row, case in enumerate(cases.record_ids)
    ]


@contextmanager
def archived(
    predictor: Any,
    cases: Cases,
    *,
    reports: Path | None,
    captures: Path | None,
    codes: Path | None,
) -> Iterator[Callable[[Predictions], None]]:
    """A function that takes the predictions of `cases`, block by block in their order.

    When the block ends well both folders are there; a folder that holds the very same objects
    stays as it is, one that holds others is left alone.

    Args:
      predictor: of the predictions; captures need one that was read from a run directory.
      cases: all records, in the order in which they are predicted.
      reports, captures: folders; None writes none.
      codes: a file for `read_codes`.

    Raises:
      UserError: as `read_sources` and `read_codes`; for objects that would be
        overwritten.

    Test: tests/archive/test_writing.py.
    """
    if captures is not None and not isinstance(predictor, Predictor):
        raise UserError(
            "--dicom-sc: an exported file has no gradients, of which Grad-CAM is made; give the "
            "run directory."
        )
    tasks = predictor.description.tasks
    model = model_identity(predictor.provenance, tasks, predictor.post_processing)
    coded = class_codes(model, read_codes(codes, tasks) if codes is not None else None)
    sources = read_sources(cases, predictor)
    done = 0
    with ExitStack() as stack:
        folders = {
            flag: stack.enter_context(_filled(flag, path))
            for flag, path in (("--dicom-sr", reports), ("--dicom-sc", captures))
            if path is not None
        }
        into_reports, into_captures = folders.get("--dicom-sr"), folders.get("--dicom-sc")

        def keep(block: Predictions) -> None:
            nonlocal done
            for start in range(0, len(block), LARGEST_BATCH):
                rows = range(start, min(start + LARGEST_BATCH, len(block)))
                explained = _explained(predictor, cases, block, rows, done) if captures else None
                for place, row in enumerate(rows):
                    source, name = sources[done + row], _name(done + row, block.record_ids[row])
                    if into_reports:
                        into_reports.add(name, structured_report(source, block, row, model, coded))
                    if into_captures:
                        of_record = [found[place] for found in explained]
                        made = secondary_captures(source, of_record, block, row, model)
                        for explanation, capture in zip(of_record, made, strict=True):
                            into_captures.add(f"{name}-{_plain(explanation.task)}", capture)
            done += len(block)

        yield keep
        # Before any folder appears, so that a conflict of one leaves no other behind.
        for folder in folders.values():
            folder.is_there()


def _explained(
    predictor: Predictor, cases: Cases, block: Predictions, rows: Sequence[int], before: int
) -> list[list[Any]]:
    """By task, the explanations of some rows of a block that `before` records precede."""
    some = block.take(rows)
    images = {
        m: [items[before + row] for row in rows]
        for m, items in cases.images.items()
        if any(items[before + row] is not None for row in rows)
    }
    pixels, present = predictor.read(images)
    return [
        explain_records(
            predictor, some.record_ids, pixels, present, task, uncertainty=found.uncertainty,
            classes=found.probabilities.argmax(1),
        )
        for task, found in some.tasks.items()
    ]  # fmt: skip


class _Folder:
    """Objects on their way into a folder: written under another name until all are there."""

    def __init__(self, flag: str, path: Path, partial: Path):
        self.flag, self.path, self.partial = flag, path, partial
        partial.mkdir()

    def add(self, name: str, made: Any) -> None:
        made.save_as(self.partial / f"{name}{SUFFIX}", enforce_file_format=True)

    def is_there(self) -> bool:
        """Whether the folder holds these very objects already; UserError where it holds others."""
        if not (self.path.is_dir() and any(self.path.iterdir())):
            return False
        if not _same(self.partial, self.path):
            raise UserError(
                f"{self.flag} {self.path} holds other objects, which stay as they are; choose an "
                "empty or a new folder."
            )
        return True


class _AlreadyThere(Exception):
    """Nothing is to be replaced."""


@contextmanager
def _filled(flag: str, path: Path) -> Iterator[_Folder]:
    try:
        with written_whole(path) as partial:
            folder = _Folder(flag, path, partial)
            yield folder
            if folder.is_there():
                raise _AlreadyThere
    except _AlreadyThere:
        pass


def _same(first: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same content."""
    names = sorted(file.name for file in first.iterdir())
    if names != sorted(file.name for file in other.iterdir()):
        return False
    return not filecmp.cmpfiles(first, other, names, shallow=False)[1]


def _name(place: int, record_id: str) -> str:
    return f"{place + 1:05d}-{_plain(record_id)}".rstrip("-")


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[-60:]
