"""TensorBoard event files in the folder of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drifa_jax.train.loggers.contract import LoggedRun


class TensorBoardLogger:
    """Writes event files; what a lost attempt wrote beyond the first step is purged."""

    run_id = ""

    def __init__(self, run: LoggedRun):
        self._run = run
        self._board: Any = None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds them to the event file."""
        if self._board is None:
            # Only now: it loads PyTorch where that is installed, a second before the first step.
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(
                str(self._run.workdir / "tensorboard"),
                purge_step=self._run.step + 1,
                write_to_disk=True,
            )
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def files(self, folder: str, paths: Sequence[Path]) -> None:
        """Nothing: they lie beside the event files."""

    def flush(self) -> None:
        """Nothing: event files are purged on resume and made again."""

    def close(self, finished: bool) -> None:
        """Closes the event file."""
        if self._board is not None:
            self._board.close()
