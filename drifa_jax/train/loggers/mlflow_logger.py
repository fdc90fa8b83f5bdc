"""MLflow: parameters, metrics by step and files, in a database file or on a server."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from drifa_jax.extras import optional
from drifa_jax.train.loggers.contract import LoggedRun

MOST_METRICS, MOST_PARAMETERS, LONGEST_VALUE = 1000, 100, 6000
"""Of one request, as MLflow's interface allows."""
SQLITE = "sqlite:///"


class MLflowLogger:
    """One MLflow run for a run directory, however often it is resumed.

    `tracking.store` is the address of the store, as MLflow writes it (`sqlite:///mlflow.db`,
    `http://host:5000`); "" takes `MLFLOW_TRACKING_URI`, or a database beside the run directory.
    """

    def __init__(self, run: LoggedRun):
        mlflow = optional("mlflow", "tracking.loggers=mlflow", "mlflow")
        import logging

        # It tells of each table that it makes.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        store = run.tracking.store or os.environ.get("MLFLOW_TRACKING_URI", "")
        store = store or f"{SQLITE}{run.workdir.resolve().parent / 'mlflow.db'}"
        self._entities, self._client = mlflow.entities, mlflow.MlflowClient(tracking_uri=store)
        self._waiting: list = []
        self._last: dict[str, int] = {}
        self._resumed = bool(run.run_id)
        if run.run_id:
            self.run_id = run.run_id
            self._client.update_run(self.run_id, status="RUNNING")
        else:
            self.run_id = self._new_run(run, store)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps them for the next `flush`, but for those that a lost attempt has logged."""
        now = int(time.time() * 1000)
        for name, value in values.items():
            key = _name(name)
            if self._resumed and step <= self._last_step(key):
                continue
            self._waiting.append(self._entities.Metric(key, float(value), now, step))
        if len(self._waiting) > MOST_METRICS:
            self.flush()

    def files(self, folder: str, paths: Sequence[Path]) -> None:
        """Copies them to the artifacts of the run."""
        for path in paths:
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), f"{folder}/{path.name}")
            else:
                self._client.log_artifact(self.run_id, str(path), folder)

    def flush(self) -> None:
        """Sends what waits, a request for a thousand values."""
        while self._waiting:
            now, self._waiting = self._waiting[:MOST_METRICS], self._waiting[MOST_METRICS:]
            self._client.log_batch(self.run_id, metrics=now)

    def close(self, finished: bool) -> None:
        """Sends the rest; the run is FINISHED or KILLED, which a resumed one takes back."""
        self.flush()
        self._client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")

    def _new_run(self, run: LoggedRun, store: str) -> str:
        called = run.tracking.experiment
        experiment = self._client.get_experiment_by_name(called)
        if experiment is None:
            files = None
            if store.startswith(SQLITE):
                # Beside the database, rather than wherever the command was started.
                folder = Path(store.removeprefix(SQLITE)).resolve().parent / "mlartifacts"
                files = folder.as_uri()
            experiment_id = self._client.create_experiment(called, artifact_location=files)
        else:
            experiment_id = experiment.experiment_id
        run_id = self._client.create_run(experiment_id, run_name=run.workdir.name).info.run_id
        parameters = [
            self._entities.Param(_name(name), str(value)[:LONGEST_VALUE])
            for name, value in run.parameters.items()
        ]
        for first in range(0, len(parameters), MOST_PARAMETERS):
            self._client.log_batch(run_id, params=parameters[first : first + MOST_PARAMETERS])
        return run_id

    def _last_step(self, key: str) -> int:
        if key not in self._last:
            history = self._client.get_metric_history(self.run_id, key)
            self._last[key] = max((metric.step for metric in history), default=-1)
        return self._last[key]


def _name(text: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^\w./ -]", "_", text)
