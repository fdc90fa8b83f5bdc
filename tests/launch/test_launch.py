"""The launchers' commands, as they would be run; nothing is created anywhere."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from drifa_jax.cli import parse_overrides

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
TRAIN = ["--", "--config", "configs/brain.py:quick", "--workdir", "/runs/a run"]
TPU = ["--name", "drifa", "--zone", "us-west4-a"]


def load(name):
    spec = importlib.util.spec_from_file_location(f"launch_{name}", LAUNCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed(name, *arguments):
    return subprocess.run(
        [sys.executable, LAUNCH / f"{name}.py", *arguments, "--dry-run", *TRAIN],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def assert_trains(words):
    """That a shell's words are `python -m drifa_jax.main` with flags that it understands."""
    words = words[words.index("-m") :]
    assert words[:6] == ["-m", "drifa_jax.main", *TRAIN[1:]]
    parse_overrides(words[6:])


def test_local_processes_know_each_other():
    lines = printed("local", "--processes", "3", "--port", "1234").splitlines()
    assert len(lines) == 3
    for number, line in enumerate(lines):
        words = shlex.split(line)
        assert words[0] == f"[{number}]"
        assert "JAX_COORDINATOR_ADDRESS=127.0.0.1:1234" in words
        assert "JAX_NUM_PROCESSES=3" in words
        assert f"JAX_PROCESS_ID={number}" in words
        assert_trains(words)


def test_local_gives_the_exit_code_of_a_process_that_failed(tmp_path):
    wrong = ["--config", "nowhere.py", "--workdir", str(tmp_path)]
    result = subprocess.run(
        [sys.executable, LAUNCH / "local.py", "--processes", "2", "--", *wrong],
        capture_output=True,
        text=True,
        cwd=LAUNCH.parent,
    )
    assert result.returncode == 1
    for number in (0, 1):
        assert f"[{number}] drifa train: --config: there is no file 'nowhere.py'" in result.stdout


def test_tpu_watch_creates_copies_and_trains_on_all_workers():
    tpu = load("tpu")
    options = tpu.parse(["watch", *TPU, "--type", "v5litepod-16", "--spot", *TRAIN])
    create, folder, copy, install, train = tpu.commands(options)
    for command in (create, folder, copy, install, train):
        assert command[:4] == ["gcloud", "compute", "tpus", "tpu-vm"]
        assert "--zone=us-west4-a" in command
    assert {"create", "drifa", "--accelerator-type=v5litepod-16", "--spot"} <= set(create)
    assert all((LAUNCH.parent / source).exists() for source in tpu.SOURCES)
    assert all("--worker=all" in command for command in (folder, copy, install, train))
    (command,) = (word for word in train if word.startswith("--command="))
    words = shlex.split(command.removeprefix("--command="))
    assert words[:3] == ["cd", "~/drifa", "&&"]
    assert_trains(words)
    assert words[-1] == "--config.distributed.coordinator=auto"


def test_tpu_is_made_anew_only_after_a_preemption_or_a_loss(monkeypatch):
    tpu = load("tpu")
    codes, ran = iter([0, 0, 0, 0, 75, 0, 0, 0, 0, 0, 1]), []

    def call(command):
        ran.append(command[4])
        return next(codes)

    monkeypatch.setattr(tpu.subprocess, "call", call)
    monkeypatch.setattr(tpu.time, "sleep", lambda seconds: None)
    assert tpu.watch(tpu.parse(["watch", *TPU, *TRAIN])) == 1
    one_round = ["create", "ssh", "scp", "ssh", "ssh"]
    assert ran == [*one_round, "delete", *one_round]


def test_tpu_prints_what_it_would_run():
    assert shlex.split(printed("tpu", "delete", *TPU)) == [
        *["+", "gcloud", "compute", "tpus", "tpu-vm", "delete", "drifa", "--quiet"],
        "--zone=us-west4-a",
    ]


@pytest.mark.parametrize("action", ("run", "watch"))
def test_tpu_needs_something_to_train(action, capsys):
    with pytest.raises(SystemExit):
        load("tpu").parse([action, *TPU])
    assert "needs -- and the arguments of drifa train" in capsys.readouterr().err


def test_slurm_script_is_bash_and_starts_a_process_for_each_gpu(tmp_path):
    text = printed("slurm", "--nodes", "2", "--gpus", "4", "--partition", "gpu")
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    flags = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in text.splitlines()
        if line.startswith("#SBATCH")
    )
    assert flags["nodes"] == "2"
    assert flags["ntasks-per-node"] == flags["gpus-per-node"] == "4"
    assert flags["partition"] == "gpu"
    (srun,) = (line for line in text.splitlines() if line.startswith("srun"))
    assert_trains(shlex.split(srun))


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (75, True), (143, True)])
def test_slurm_job_goes_back_into_the_queue_after_a_preemption(code, requeued, tmp_path):
    (tmp_path / "srun").write_text(f"#!/bin/bash\nexit {code}\n")
    (tmp_path / "scontrol").write_text('#!/bin/bash\necho "$@"\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    result = subprocess.run(
        ["bash"],
        input=printed("slurm"),
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == code
    assert ("requeue 7" in result.stdout) == requeued


def test_jobset_runs_one_pod_on_each_host_and_restarts_them_together():
    arguments = ["--image", "example.org/drifa:1", "--claim", "runs", "--hosts", "4"]
    jobset = yaml.safe_load(printed("kubernetes", *arguments, "--chips", "4"))
    assert jobset["kind"] == "JobSet"
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert_trains(container["command"])
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 100
    (rule,) = job["podFailurePolicy"]["rules"]
    assert not {75, 143} & set(rule["onExitCodes"]["values"])
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
