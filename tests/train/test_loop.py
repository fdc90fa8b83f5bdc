"""A run end to end on tiny SYNTHETIC phantoms: results, resuming, interruption, refusal."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import shutil
import signal

import chex
import jax
import numpy as np
import pytest

from drifa_jax.commands.train import train_and_test
from drifa_jax.data.dataset import open_dataset
from drifa_jax.errors import UserError
from drifa_jax.machine_options import MeshConfig
from drifa_jax.models.backbones.resnet import ResNet
from drifa_jax.models.registry import BACKBONES
from drifa_jax.network_options import NetworkOptions
from drifa_jax.sharding import layout_of
from drifa_jax.train import feed, loop
from drifa_jax.train.checkpoint import Checkpoints
from drifa_jax.train.console import TrainingDisplay
from drifa_jax.train.experiment import build_experiment
from drifa_jax.train.metrics_log import read_metrics
from drifa_jax.train.prediction import split_predictor
from drifa_jax.train.program import Program
from drifa_jax.train.run_directory import begun, opened, saved_config
from drifa_jax.train.starting_weights import starting_weights
from drifa_jax.train.state import abstract_state
from tests.train import toy


def newest_state(workdir, config):
    experiment = build_experiment(config, open_dataset(config.data))
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.newest(abstract_state(experiment.network, experiment.optimizer))


def stop_after(step: int, number: int, monkeypatch):
    """Sends a signal to this process when a step is shown as done."""
    shown = TrainingDisplay.step_done

    def step_done(self, done, losses):
        shown(self, done, losses)
        if done == step:
            signal.raise_signal(number)

    monkeypatch.setattr(TrainingDisplay, "step_done", step_done)


def assert_same_run(one, other, config):
    chex.assert_trees_all_equal(newest_state(one, config), newest_state(other, config))
    assert read_metrics(one) == read_metrics(other)
    assert (one / "metrics.json").read_text() == (other / "metrics.json").read_text()
    assert (one / "predictions.csv").read_text() == (other / "predictions.csv").read_text()


def test_the_first_step_is_told_before_the_second_begins(tmp_path, monkeypatch):
    logged = []
    run_step = Program.__call__

    def step(self, *arguments):
        logged.append([line["step"] for line in read_metrics(tmp_path / "run")])
        return run_step(self, *arguments)

    monkeypatch.setattr(Program, "__call__", step)
    assert train_and_test(toy.toy_config(train={"num_epochs": 1}), tmp_path / "run") == 0
    assert logged[:2] == [[], [1]]


def test_run_leaves_its_configuration_environment_metrics_and_picture(finished_run, tiny_config):
    assert saved_config(finished_run) == tiny_config()
    environment = json.loads((finished_run / "environment.json").read_text())
    assert {"command", "git_commit", "packages", "devices"} <= set(environment)
    steps = [line["step"] for line in read_metrics(finished_run) if line["split"] == "train_step"]
    assert steps == list(range(1, 9))
    assert (finished_run / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((finished_run / "tensorboard").iterdir())


def test_results_name_every_task_and_say_that_the_data_are_synthetic(finished_run):
    results = json.loads((finished_run / "metrics.json").read_text())
    assert results["synthetic"]
    assert set(results["tasks"]) == {"tumour", "stroke"}
    for task in results["tasks"].values():
        assert np.sum(task["confusion_matrix"]) == task["num_records"] == 20


def test_predictions_hold_every_test_record_once_with_its_uncertainty(finished_run):
    header, *lines = (finished_run / "predictions.csv").read_text().splitlines()
    assert "tumour/predictive_entropy" in header.split(",")
    ids = [line.split(",")[0] for line in lines]
    assert ids == [f"phantom-test-{i:06d}" for i in range(20)]


def test_same_configuration_gives_the_same_run(finished_run, tmp_path, tiny_config):
    assert train_and_test(tiny_config(), tmp_path / "again") == 0
    assert_same_run(finished_run, tmp_path / "again", tiny_config())


@pytest.mark.parametrize(("step", "number"), [(3, signal.SIGTERM), (5, signal.SIGINT)])
def test_interrupted_run_saves_and_resumes_as_if_never_stopped(
    step, number, finished_run, tmp_path, monkeypatch, tiny_config
):
    with monkeypatch.context() as patch:
        stop_after(step, number, patch)
        assert train_and_test(tiny_config(), tmp_path / "run") == 128 + number
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert train_and_test(tiny_config(), tmp_path / "run") == 0
    assert_same_run(finished_run, tmp_path / "run", tiny_config())


def test_the_papers_network_resumes_as_if_never_stopped(tmp_path, monkeypatch, tiny_config):
    """MFA in every block and MIFA after every stage, which the tiny run leaves out."""
    monkeypatch.setitem(BACKBONES, "resnet6", functools.partial(ResNet, plan=(1, 1)))
    config = dataclasses.replace(tiny_config(num_epochs=1), model=NetworkOptions(2, "resnet6"))
    experiment = build_experiment(config, open_dataset(config.data))
    # Compiled once for all three.
    program, predict = Program(experiment, layout_of(config)), split_predictor(experiment)

    def trained(name):
        workdir = tmp_path / name
        workdir.mkdir(exist_ok=True)
        model = loop.train(experiment, predict, workdir, program)
        with Checkpoints(workdir / "checkpoints") as checkpoints:
            return model, checkpoints.newest(program.template), read_metrics(workdir)

    never_stopped = trained("never_stopped")
    with monkeypatch.context() as patched, pytest.raises(loop.Interrupted):
        stop_after(2, signal.SIGTERM, patched)
        trained("stopped")
    chex.assert_trees_all_equal(trained("stopped"), never_stopped)


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(
    finished_run, tmp_path, caplog, tiny_config
):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    for array in (workdir / "checkpoints" / "8" / "training").rglob("*"):
        if array.is_file():
            array.write_bytes(array.read_bytes()[:20])
    (workdir / "metrics.json").unlink()
    assert train_and_test(tiny_config(), workdir) == 0
    assert "Checkpoint 8 cannot be read" in caplog.text
    assert (workdir / "damaged_checkpoints" / "8").is_dir()
    assert_same_run(finished_run, workdir, tiny_config())


def test_finished_run_is_not_trained_again(finished_run, tmp_path, monkeypatch, tiny_config):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    monkeypatch.setattr(loop, "Feed", None)
    assert train_and_test(tiny_config(), workdir) == 0
    assert_same_run(finished_run, workdir, tiny_config())


def test_directory_of_another_configuration_is_refused_and_left_alone(
    finished_run, tmp_path, tiny_config
):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    with pytest.raises(UserError, match=r"train.learning_rate: the run has 0.001.* 0.1"):
        train_and_test(tiny_config(learning_rate=0.1), workdir)
    assert (workdir / "config.json").read_text() == (finished_run / "config.json").read_text()


def test_directory_with_foreign_files_is_refused(tmp_path, tiny_config):
    (tmp_path / "thesis.tex").write_text("do not touch")
    with pytest.raises(UserError, match="holds files but no run"):
        train_and_test(tiny_config(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_directory_in_use_by_another_process_is_refused(tmp_path, tiny_config):
    with (
        opened(tmp_path, tiny_config()),
        pytest.raises(UserError, match="in use by another process"),
        opened(tmp_path, tiny_config()),
    ):
        pass


@pytest.mark.parametrize(
    "error",
    (OSError(errno.ENOSPC, "No space left on device"), ValueError("No space left on device")),
)
def test_full_disk_says_what_to_do(error, tmp_path, tiny_config):
    with (
        pytest.raises(UserError, match="Free some space there; the same command then goes on"),
        opened(tmp_path, tiny_config()),
    ):
        raise error


def test_directory_that_was_deleted_is_named(tmp_path, tiny_config):
    with (
        pytest.raises(UserError, match=r"run was deleted or moved while the run wrote to it"),
        opened(tmp_path / "run", tiny_config()),
    ):
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run" / "metrics.json").write_text("{}")


def test_directory_that_cannot_be_written_is_named(tmp_path, tiny_config):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--workdir .*file/run cannot be written"):
        train_and_test(tiny_config(), tmp_path / "file" / "run")


def test_loss_that_is_not_finite_stops_with_step_and_records(tmp_path, monkeypatch, tiny_config):
    def diverged(*arguments):
        params, statistics = starting_weights(*arguments)
        return jax.tree.map(lambda leaf: leaf * np.nan, params), statistics

    monkeypatch.setattr(loop, "starting_weights", diverged)
    with pytest.raises(UserError, match=r"Step 1: the loss is nan .*phantom-train-\d+"):
        train_and_test(tiny_config(), tmp_path / "run")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            {"batch_size": 64},
            r"batch_size is 64 but there are only 32 training records; lower it with "
            r"--config\.train\.batch_size, or draw more by --config\.data\.phantoms\.num_train",
        ),
        ({"batch_size": 12}, "train.batch_size is 12, which 8 devices cannot share evenly"),
        ({"task_weights": {"tumor": 1.0}}, "task_weights names 'tumor'; the tasks are"),
        ({"task_weights": {"tumour": 0.0, "stroke": 0.0}}, "use shares of 0 or more"),
    ],
)
def test_training_options_that_do_not_fit_are_named(
    train, message, tmp_path, tiny_config, every_device
):
    with pytest.raises(UserError, match=message):
        train_and_test(tiny_config(**train), tmp_path / "new" / "run")
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_before_its_first_step_leaves_a_folder_as_it_was(tmp_path, monkeypatch):
    def unfit(*arguments):
        assert (tmp_path / "run/config.json").is_file()
        assert (tmp_path / "run/checkpoints").is_dir()
        raise UserError("these weights do not fit")

    (tmp_path / "run").mkdir()
    monkeypatch.setattr(loop, "starting_weights", unfit)
    with pytest.raises(UserError, match="do not fit"):
        train_and_test(toy.toy_config(), tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_a_run_that_exists_is_not_touched_by_options_that_do_not_fit(
    finished_run, tmp_path, tiny_config
):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    before = contents(workdir)
    config = dataclasses.replace(tiny_config(), mesh=MeshConfig(data=3))
    with pytest.raises(UserError, match="does not fit the 1 device"):
        train_and_test(config, workdir)
    assert contents(workdir) == before


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_waiting_for_data_is_said_with_its_cure(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(feed, "WAITING_WORTH_A_WARNING", -1.0)
    assert train_and_test(toy.toy_config(train={"num_epochs": 1}), tmp_path / "run") == 0
    assert "raise --config.data.num_workers (now 0" in capfd.readouterr().err


def test_run_that_saved_nothing_yet_may_start_with_another_configuration(tmp_path):
    killed = toy.toy_config(train={"batch_size": 16})
    with opened(tmp_path / "run", killed), begun(tmp_path / "run", killed):
        pass
    assert saved_config(tmp_path / "run") == killed
    assert train_and_test(toy.toy_config(train={"num_epochs": 1}), tmp_path / "run") == 0


def test_signal_during_the_last_step_ends_the_run_before_the_test(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(4, signal.SIGTERM, patch)
        assert train_and_test(toy.toy_config(train={"num_epochs": 1}), tmp_path / "run") == 143
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert train_and_test(toy.toy_config(train={"num_epochs": 1}), tmp_path / "run") == 0
    assert (tmp_path / "run" / "metrics.json").exists()
