"""Where the scalars and files of a run go beside its own folder: one file and one line each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from drifa_jax.config import TrackingConfig
from drifa_jax.errors import UserError
from drifa_jax.train.loggers.contract import LoggedRun, Logger
from drifa_jax.train.loggers.mlflow_logger import MLflowLogger
from drifa_jax.train.loggers.tensorboard import TensorBoardLogger
from drifa_jax.train.loggers.wandb_logger import WandbLogger
from drifa_jax.whole_files import written_whole

LOGGERS: dict[str, Callable[[LoggedRun], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "mlflow": MLflowLogger,
    "wandb": WandbLogger,
}
"""Name in `tracking.loggers` -> what opens it."""

TRACKING_FILE = "tracking.json"
"""In a run directory: logger -> how it calls the run, so that a resumed run goes on in it."""


class Loggers:
    """The loggers of a run, opened together.

    One that fails later is told of and left: a run outlives a server that went away, and what it
    missed is in `metrics.jsonl`.

    Args:
      workdir: of the run.
      tracking: which loggers, and where.
      step: steps done so far.
      parameters: the configuration by dotted names.
      say: called with a line for the user.

    Raises:
      UserError: for a name that is no logger, or one that cannot be opened.
    """

    def __init__(
        self,
        workdir: Path,
        tracking: TrackingConfig,
        step: int,
        parameters: Mapping[str, object],
        say: Callable[[str], None],
    ):
        for name in tracking.loggers:
            if name not in LOGGERS:
                known = ", ".join(LOGGERS)
                raise UserError(f"config: tracking.loggers names {name!r}; choose among {known}.")
        file, self._say = workdir / TRACKING_FILE, say
        known = json.loads(file.read_text()) if file.exists() else {}
        self._open: dict[str, Logger] = {}
        for name in tracking.loggers:
            run = LoggedRun(workdir, tracking, known.get(name, ""), step, parameters)
            try:
                self._open[name] = LOGGERS[name](run)
            except UserError:
                raise
            except Exception as error:
                raise UserError(
                    f"tracking: {name} cannot be opened ({_short(error)}). Mend tracking.store, or "
                    "leave it out of tracking.loggers."
                ) from error
        ids = known | {name: log.run_id for name, log in self._open.items() if log.run_id}
        if ids != known:
            with written_whole(file) as partial:
                partial.write_text(json.dumps(ids))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Hands on the values of a step, by name."""
        self._each(lambda log: log.scalars(step, values))

    def files(self, folder: str, paths: Sequence[Path]) -> None:
        """Hands on files, to be kept under a folder's name."""
        self._each(lambda log: log.files(folder, paths))

    def flush(self) -> None:
        """Returns when what was handed on is where it belongs."""
        self._each(lambda log: log.flush())

    def close(self, finished: bool) -> None:
        """Ends this attempt; `finished` says whether the run is over."""
        self._each(lambda log: log.close(finished))

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, log in list(self._open.items()):
            try:
                call(log)
            except Exception as error:
                del self._open[name]
                self._say(
                    f"NOTE: {name} takes nothing any more ({_short(error)}); the run goes on, and "
                    "its folder has everything."
                )


def keep_files(
    workdir: Path,
    tracking: TrackingConfig,
    folder: str,
    paths: Sequence[Path],
    say: Callable[[str], None],
) -> None:
    """Adds files to a run that the loggers know, such as its report.

    Args:
      workdir: of the run.
      tracking: of its configuration.
      folder: that they are kept under.
      paths: of files and folders; those that do not exist are passed over.
      say: called with a line where that failed.
    """
    keeping = tuple(name for name in tracking.loggers if name != "tensorboard")
    there = [path for path in paths if path.exists()]
    if not keeping or not there or not (workdir / TRACKING_FILE).exists():
        return
    from dataclasses import replace

    try:
        loggers = Loggers(workdir, replace(tracking, loggers=keeping), 0, {}, say)
    except UserError as error:
        say(f"NOTE: {error} The files are in {workdir}.")
        return
    loggers.files(folder, there)
    loggers.close(finished=True)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
