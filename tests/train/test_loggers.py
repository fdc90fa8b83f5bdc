"""Where scalars and files of a run go: MLflow in a database file, Weights & Biases off-line."""

from __future__ import annotations

import importlib.util
import json
import signal

import pytest

from drifa_jax.commands.train import train_and_test
from drifa_jax.errors import UserError
from drifa_jax.machine_options import TrackingConfig
from drifa_jax.train.loggers import LOGGERS, TRACKING_FILE, Loggers, keep_files
from tests.train import toy
from tests.train.test_loop import stop_after

# What other packages warn of among themselves is not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")

needs_mlflow = pytest.mark.skipif(
    not (importlib.util.find_spec("mlflow") and importlib.util.find_spec("sqlalchemy")),
    reason="mlflow-skinny and sqlalchemy are not installed (extra mlflow)",
)
needs_wandb = pytest.mark.skipif(
    not importlib.util.find_spec("wandb"), reason="wandb is not installed (extra wandb)"
)


def opened(workdir, *, step=0, said=None, parameters=None, **tracking):
    say = (lambda text: None) if said is None else said.append
    return Loggers(workdir, TrackingConfig(**tracking), step, parameters or {}, say)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One database for all tests, since it takes seconds to make."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def mlflow_client(store):
    import mlflow

    return mlflow.MlflowClient(tracking_uri=store)


@needs_mlflow
def test_a_resumed_run_goes_on_in_the_same_mlflow_run(store, tmp_path, monkeypatch):
    config = toy.toy_config(tracking={"loggers": ("tensorboard", "mlflow"), "store": store})
    with monkeypatch.context() as patch:
        stop_after(3, signal.SIGTERM, patch)
        assert train_and_test(config, tmp_path / "run") == 128 + signal.SIGTERM
    assert train_and_test(config, tmp_path / "run") == 0
    client = mlflow_client(store)
    (run,) = client.search_runs([client.get_experiment_by_name("drifa").experiment_id])
    assert run.info.run_id == json.loads((tmp_path / "run" / TRACKING_FILE).read_text())["mlflow"]
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.params["train.batch_size"] == "8"
    history = client.get_metric_history(run.info.run_id, "train_step/total")
    assert sorted(metric.step for metric in history) == list(range(1, 9))
    kept = {file.path for file in client.list_artifacts(run.info.run_id, "run")}
    assert {"run/metrics.json", "run/learning_curves.png", "run/checkpoints"} <= kept
    assert list((tmp_path / "run" / "tensorboard").iterdir())


@needs_mlflow
def test_what_a_lost_attempt_logged_is_not_logged_twice(store, tmp_path):
    for first in (0, 2):
        log = opened(tmp_path, step=first, loggers=("mlflow",), store=store, experiment="lost")
        for step in range(first + 1, 6):
            log.scalars(step, {"train/a:b/loss": 1 / step})
        log.close(finished=first > 0)
    run_id = json.loads((tmp_path / TRACKING_FILE).read_text())["mlflow"]
    history = mlflow_client(store).get_metric_history(run_id, "train/a_b/loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4, 5]


@needs_mlflow
def test_a_report_is_added_to_a_finished_run(store, tmp_path):
    tracking = TrackingConfig(("mlflow",), store, "reported")
    Loggers(tmp_path, tracking, 0, {}, print).close(finished=True)
    (tmp_path / "report.html").write_text("<p>report")
    paths = [tmp_path / "report.html", tmp_path / "absent.png"]
    keep_files(tmp_path, tracking, "evaluation", paths, print)
    run_id = json.loads((tmp_path / TRACKING_FILE).read_text())["mlflow"]
    (kept,) = mlflow_client(tracking.store).list_artifacts(run_id, "evaluation")
    assert kept.path == "evaluation/report.html"


@needs_wandb
def test_weights_and_biases_off_line_keeps_one_id(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    (tmp_path / "report.html").write_text("<p>report")
    for first in (0, 2):
        log = opened(tmp_path, step=first, loggers=("wandb",), parameters={"train.seed": 3})
        log.scalars(first + 1, {"train/loss": 0.5})
        log.files("evaluation", [tmp_path / "report.html"])
        log.close(finished=first > 0)
    run_id = json.loads((tmp_path / TRACKING_FILE).read_text())["wandb"]
    attempts = sorted((tmp_path / "wandb").glob(f"offline-run-*-{run_id}"))
    assert attempts
    assert list((tmp_path / "wandb").rglob(f"run-{run_id}.wandb"))
    assert list((tmp_path / "wandb").rglob("files/evaluation/report.html"))


class Broken:
    """A logger whose server goes away after the first step."""

    run_id = "7"

    def __init__(self, run):
        self.taken = 0

    def scalars(self, step, values):
        self.taken += 1
        if self.taken > 1:
            raise ConnectionError("no route to host")

    def files(self, folder, paths): ...

    def flush(self): ...

    def close(self, finished): ...


def test_a_server_that_goes_away_is_told_of_once_and_left(tmp_path, monkeypatch):
    monkeypatch.setitem(LOGGERS, "broken", Broken)
    said = []
    log = opened(tmp_path, said=said, loggers=("broken",))
    for step in range(4):
        log.scalars(step, {"loss": 1.0})
    assert len(said) == 1 and "no route to host" in said[0]


def test_a_name_that_is_no_logger_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"tracking\.loggers names 'mlflo'; choose among"):
        opened(tmp_path, loggers=("mlflo",))


def test_a_store_that_cannot_be_opened_is_refused(tmp_path, monkeypatch):
    def fails(run):
        raise OSError("unable to open database file")

    monkeypatch.setitem(LOGGERS, "failing", fails)
    with pytest.raises(UserError, match="unable to open database file"):
        opened(tmp_path, loggers=("failing",))


def test_where_it_is_logged_is_no_other_run(tmp_path):
    elsewhere = toy.toy_config(tracking={"loggers": ("wandb",)})
    assert elsewhere.essence() == toy.toy_config().essence()
