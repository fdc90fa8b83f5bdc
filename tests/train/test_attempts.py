"""Runs in processes of their own: killed at any moment, spread over several, resumed elsewhere."""

from __future__ import annotations

import json
import os
import random
import signal
import time

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from drifa_jax.data.dataset import open_dataset
from drifa_jax.train.checkpoint import Checkpoints
from drifa_jax.train.experiment import build_experiment
from drifa_jax.train.metrics_log import read_metrics
from drifa_jax.train.run_directory import begun, opened
from drifa_jax.train.state import abstract_state
from tests.train import toy
from tests.train.attempts import Attempts, free_port

# Reductions over devices and processes add in another order, and eight steps of Adam carry the
# difference along.
LOSS_TOLERANCE = 1e-5
LOST_SECONDS = 3


@pytest.fixture(scope="module")
def attempts(tmp_path_factory):
    server = Attempts(tmp_path_factory.mktemp("outputs"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def undisturbed(attempts, tmp_path_factory):
    """A run that saves after every step, on one device."""
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    attempts.run(workdir, train=EVERY_STEP)
    return workdir


EVERY_STEP = {"checkpoint_every_steps": 1}


def newest_state(workdir, **groups):
    config = toy.toy_config(**groups)
    experiment = build_experiment(config, open_dataset(config.data))
    template = abstract_state(experiment.network, experiment.optimizer, config.ensemble.num_members)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return jax.device_get(checkpoints.newest(template))


def assert_same_run(one, other, **groups):
    """Bit for bit."""
    chex.assert_trees_all_equal(newest_state(one, **groups), newest_state(other, **groups))
    assert read_metrics(one) == read_metrics(other)
    for name in ("metrics.json", "predictions.csv"):
        assert (one / name).read_text() == (other / name).read_text()


def losses(workdir):
    lines = [line for line in read_metrics(workdir) if line["split"] == "train_step"]
    assert [line["step"] for line in lines] == list(range(1, 9))
    return np.array([line["total"] for line in lines])


def assert_close_run(one, other):
    np.testing.assert_allclose(losses(one), losses(other), rtol=LOSS_TOLERANCE)
    ours, theirs = (json.loads((w / "metrics.json").read_text()) for w in (one, other))
    for task, of in ours["tasks"].items():
        assert of["num_records"] == theirs["tasks"][task]["num_records"] == 20


def unfinished_write(workdir):
    folder = workdir / "checkpoints"
    return folder.is_dir() and any("tmp" in name for name in os.listdir(folder))


def damage(checkpoint):
    for part in (checkpoint / "training").rglob("*"):
        if part.is_file():
            part.write_bytes(part.read_bytes()[:20])


def test_run_killed_at_random_moments_equals_the_undisturbed_one(attempts, undisturbed, tmp_path):
    workdir, moments = tmp_path / "run", random.Random(5)
    in_a_write = 0
    for kill in range(6):
        attempt = attempts.start(workdir, train=EVERY_STEP)
        if kill % 2:
            attempt.wait_for_step(workdir, kill)
            time.sleep(moments.uniform(0, 0.2))
        else:
            # In the middle of writing a checkpoint.
            while attempt.code() is None and not unfinished_write(workdir):
                pass
            in_a_write += unfinished_write(workdir)
        attempt.kill(signal.SIGKILL)
        attempt.wait()
    assert in_a_write >= 2
    attempts.run(workdir, train=EVERY_STEP)
    assert_same_run(workdir, undisturbed, train=EVERY_STEP)


def test_other_number_of_devices_gives_the_same_run(attempts, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    said = attempts.run(workdir, devices=4, train=EVERY_STEP, profile={"steps": "2-3"})
    assert_close_run(workdir, undisturbed)
    performance = json.loads((workdir / "performance.json").read_text())
    assert performance["num_devices"] == 4 and performance["num_steps"] == 7
    assert performance["flops_per_step"] > 0
    assert f"trace: {workdir / 'profile'}" in said
    assert list((workdir / "profile").rglob("perfetto_trace.json.gz"))


def test_run_goes_on_with_other_devices(attempts, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    attempt = attempts.start(workdir, devices=4, train=EVERY_STEP, mesh={"shard_state": True})
    attempt.wait_for_step(workdir, 3)
    attempt.kill(signal.SIGTERM)
    assert attempt.wait() == 128 + signal.SIGTERM
    attempts.run(workdir, devices=2, train=EVERY_STEP, mesh={"model": 2})
    assert_close_run(workdir, undisturbed)


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (2, {"devices": 2}),
        (4, {}),
        # Each process trains one member, or holds half of the state.
        (2, {"ensemble": {"num_members": 2}, "mesh": {"ensemble": 2}}),
        (2, {"mesh": {"shard_state": True}, "large": 64}),
    ],
    ids=("two", "four", "members", "pieces"),
)
def test_several_processes_give_the_run_of_one(count, options, attempts, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    members = options.get("ensemble", {}).get("num_members", 1)
    started = attempts.together(workdir, processes=count, **options)
    assert [attempt.wait() for attempt in started] == [0] * count, started[0].said()
    assert all(attempt.said().count("epoch 1/2") == 0 for attempt in started[1:])
    if members == 1:
        assert_close_run(workdir, undisturbed)
    else:
        attempts.run(tmp_path / "one", ensemble={"num_members": members})
        assert_close_run(workdir, tmp_path / "one")


@pytest.mark.parametrize("lost", (0, 1))
def test_lost_process_is_named_and_the_restart_goes_on_from_a_whole_checkpoint(
    lost, attempts, undisturbed, tmp_path
):
    workdir = tmp_path / "run"
    options = {"processes": 2, "train": EVERY_STEP}
    started = attempts.together(workdir, distributed={"lost_seconds": LOST_SECONDS}, **options)
    started[0].wait_for_step(workdir, 3)
    started[lost].kill(signal.SIGKILL)
    begin = time.monotonic()
    other = started[1 - lost]
    assert other.wait() == 75
    # The limit, two beats of the watch, and the start of the last write.
    assert time.monotonic() - begin < LOST_SECONDS + 5
    assert f"Process {lost} of 2 is lost" in other.said()
    if lost:
        newest = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal())
        damage(workdir / "checkpoints" / str(newest))
    started = attempts.together(workdir, **options)
    assert [attempt.wait() for attempt in started] == [0, 0], started[0].said()
    assert ("cannot be read" in started[0].said()) == bool(lost)
    assert_close_run(workdir, undisturbed)


def test_signal_to_one_process_saves_and_ends_all_after_one_step(attempts, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    started = attempts.together(workdir, processes=2, train=EVERY_STEP)
    started[0].wait_for_step(workdir, 2)
    started[1].kill(signal.SIGTERM)
    assert [attempt.wait() for attempt in started] == [143, 143], started[0].said()
    attempts.run(workdir, train=EVERY_STEP)
    assert_close_run(workdir, undisturbed)


def test_coordinator_that_is_not_there_is_named_after_the_time_allowed(attempts, tmp_path):
    port, begin = free_port(), time.monotonic()
    attempt = attempts.start(
        tmp_path / "run",
        process=1,
        port=port,
        distributed={"num_processes": 2, "connect_seconds": 2},
    )
    assert attempt.wait() == 75
    assert time.monotonic() - begin < 10
    assert f"Process 0 cannot be reached at 127.0.0.1:{port}" in attempt.said()
    assert not (tmp_path / "run").exists()


def test_processes_that_do_not_come_are_missed_after_the_time_allowed(attempts, tmp_path):
    attempt = attempts.start(
        tmp_path / "run",
        port=free_port(),
        distributed={"num_processes": 2, "connect_seconds": 2},
    )
    assert attempt.wait() == 75
    assert "The 2 processes did not meet at 127.0.0.1" in attempt.said()


def test_processes_with_different_configurations_refuse_each_other(attempts, tmp_path):
    port = free_port()
    started = [
        attempts.start(
            tmp_path / "run",
            process=process,
            port=port,
            train={"seed": process},
            distributed={"num_processes": 2, "lost_seconds": 3},
        )
        for process in (0, 1)
    ]
    assert [attempt.wait() for attempt in started] == [1, 1]
    assert all("was started with another configuration" in a.said() for a in started)


def test_processes_that_fail_at_the_start_leave_their_words_alone(attempts, tmp_path):
    weights, workdir = tmp_path / "weights", tmp_path / "run"
    weights.mkdir()
    save_file({"another": np.zeros(1)}, weights / "weights.safetensors")
    train = {"initial_weights": str(weights), "num_epochs": 1}
    started = attempts.together(workdir, processes=2, train=train, distributed={"lost_seconds": 2})
    assert [attempt.wait() for attempt in started] == [1, 1]
    assert all("does not fit the network" in attempt.said() for attempt in started)
    left = {path.name for path in workdir.iterdir()} - {".lock"}
    assert left and left <= {"failed-0.txt", "failed-1.txt"}
    # Another start may have fewer processes, and another configuration.
    config = toy.toy_config()
    with opened(workdir, config), begun(workdir, config):
        assert not list(workdir.glob("failed*"))


def test_process_that_fails_ends_for_that_though_the_others_go_before_it(attempts, tmp_path):
    workdir = tmp_path / "run"
    started = attempts.together(
        workdir, processes=2, backbone="toy_of_process_0", distributed={"lost_seconds": 10}
    )
    while not (workdir / "failed-1.txt").exists():
        assert started[1].code() is None, started[1].said()
        time.sleep(0.005)
    # With process 0 goes the coordinator, and JAX aborts all who hold to it.
    started[0].kill(signal.SIGKILL)
    assert started[1].wait() == 1
    assert "a file is not here" in started[1].said()
    assert "is lost" not in started[1].said()


def test_workdir_in_use_stops_all_processes(attempts, tmp_path):
    workdir = tmp_path / "run"
    holder = attempts.start(workdir, train={"num_epochs": 1000})
    holder.wait_for_step(workdir, 1)
    started = attempts.together(workdir, processes=2, train={"num_epochs": 1000})
    assert [attempt.wait() for attempt in started] == [1, 1]
    assert all("is in use by another process" in attempt.said() for attempt in started)
    assert holder.code() is None
    holder.kill(signal.SIGKILL)
    holder.wait()
