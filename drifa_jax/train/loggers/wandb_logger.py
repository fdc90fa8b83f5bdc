"""Weights & Biases, on-line or off-line (`WANDB_MODE=offline`)."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from drifa_jax.extras import optional
from drifa_jax.train.loggers.contract import LoggedRun


class WandbLogger:
    """One W&B run for a run directory, however often it is resumed.

    W&B's own environment variables say the rest: `WANDB_MODE`, `WANDB_ENTITY`, `WANDB_API_KEY`.
    Files go below the run's own folder of files, so nothing is uploaded that is not listed here.
    """

    def __init__(self, run: LoggedRun):
        wandb = optional("wandb", "tracking.loggers=wandb", "wandb")
        self.run_id = run.run_id or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            id=self.run_id,
            resume="allow",
            project=run.tracking.experiment,
            name=run.workdir.name,
            dir=str(run.workdir),
            config=dict(run.parameters),
            settings=wandb.Settings(
                silent=True,
                console="off",
                x_disable_stats=True,
                save_code=False,
                disable_git=True,
                # A question at the terminal would stop a run that nobody watches.
                **({} if os.environ.get("WANDB_API_KEY") else {"login_timeout": 1}),
            ),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Hands them on; of steps that it has already W&B keeps the first."""
        self._run.log(dict(values), step=step)

    def files(self, folder: str, paths: Sequence[Path]) -> None:
        """Copies them below the run's files, which are uploaded with it."""
        into = Path(self._run.dir) / folder
        into.mkdir(parents=True, exist_ok=True)
        for path in paths:
            if path.is_dir():
                shutil.copytree(path, into / path.name, dirs_exist_ok=True)
            else:
                shutil.copy2(path, into / path.name)

    def flush(self) -> None:
        """Nothing: a process of W&B writes what it is handed."""

    def close(self, finished: bool) -> None:
        """Ends the attempt."""
        self._run.finish(exit_code=0 if finished else 1)
