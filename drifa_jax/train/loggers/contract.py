"""What every logger is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from drifa_jax.config import TrackingConfig


@dataclass(frozen=True)
class LoggedRun:
    """What a logger is opened with.

    Attributes:
      workdir: of the run.
      tracking: where to.
      run_id: how an earlier attempt was called; "" for a new run.
      step: steps done so far; what an attempt that was lost wrote beyond it comes again.
      parameters: the configuration by dotted names; empty where a finished run is opened.
    """

    workdir: Path
    tracking: TrackingConfig
    run_id: str
    step: int
    parameters: Mapping[str, object]


class Logger(Protocol):
    """One place that scalars and files of a run go to; made of a `LoggedRun`.

    Attributes:
      run_id: how it calls the run, to go on with it; "" where it needs none.
    """

    run_id: str

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the values of a step, by names such as `train/tumour/loss`."""

    def files(self, folder: str, paths: Sequence[Path]) -> None:
        """Takes files and folders, to be kept below `folder`."""

    def flush(self) -> None:
        """Returns when nothing that was taken can be lost by a kill."""

    def close(self, finished: bool) -> None:
        """Ends the attempt."""
