"""The folder of an evaluation: the names in it, where it is found, and what may be replaced."""

from __future__ import annotations

from pathlib import Path

from drifa_jax.errors import UserError

EVALUATION_FOLDER = "evaluation"

METRICS_FILE, REPORT_FILE, FIGURES_FOLDER = "metrics.json", "report.html", "figures"
PREDICTIONS = ("predictions.csv", "predictions.parquet")


def find_evaluation(path: Path) -> Path:
    """The evaluation folder that a run directory, or itself, holds.

    Raises:
      UserError: where there is none.
    """
    for folder in (path / EVALUATION_FOLDER, path):
        # A run holds files of the same names from the test that ended its training.
        is_run = (folder / "config.json").is_file()
        if not is_run and all((folder / n).is_file() for n in (PREDICTIONS[1], METRICS_FILE)):
            return folder
    raise UserError(f"{path} has no evaluation; run `drifa evaluate {path}` first.")


def check_replaceable(folder: Path, mark: str = REPORT_FILE) -> None:
    """Refuses a folder that does not hold an earlier result.

    Args:
      folder: given as `--out`.
      mark: the file by which an earlier result is known.

    Raises:
      UserError: naming it.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / mark).is_file():
        raise UserError(
            f"--out {folder} holds files but no {mark}; choose an empty or a new folder."
        )
