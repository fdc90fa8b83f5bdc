"""The launchers' commands, as they would be run; nothing is created anywhere."""

from __future__ import annotations

import importlib.util
import os
import re
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


GCLOUD = """#!/bin/bash
# A stand-in for gcloud compute tpus: notes what it is asked, does what the lines of its plan say.
echo "$3 $4" >>"$STUB/asked"
[ "$4" = describe ] && { cat "$STUB/state"; exit 0; }
[ "$4" = ssh ] && [[ "$*" == *tail* ]] && set -- follow
read -r word code <<<"$(grep -m1 "^${1/compute/$4} " "$STUB/plan")"
sed -i "0,/^$word $code$/{//d}" "$STUB/plan"
exit "${code:-0}"
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A function that plays `watch` against a stand-in of gcloud; answers (code, what was asked).

    Its plan has lines such as "follow 255": the next time the trainer is followed, ssh ends so.
    """
    stub = tmp_path / "gcloud"
    stub.write_text(GCLOUD)
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("STUB", str(tmp_path))
    tpu = load("tpu")
    monkeypatch.setattr(tpu.time, "sleep", lambda seconds: None)

    def watch(plan, *flags, state="ACTIVE"):
        (tmp_path / "plan").write_text(plan)
        (tmp_path / "state").write_text(state)
        code = tpu.watch(tpu.parse(["watch", "--no-compile", *TPU, *flags, *TRAIN]))
        asked = (tmp_path / "asked").read_text().splitlines()
        return code, [line for line in asked if "describe" not in line]

    return watch


CREATE, DELETE = "queued-resources create", "queued-resources delete"
SSH, SCP = "tpu-vm ssh", "tpu-vm scp"
ROUND = [CREATE, SSH, SCP, SSH, SSH, SSH]


def test_tpu_watch_queues_copies_trains_and_deletes(cloud):
    assert cloud("") == (0, [*ROUND, DELETE])


def test_tpu_slice_is_kept_after_success_where_that_is_asked_for(cloud):
    assert cloud("", "--keep") == (0, ROUND)


@pytest.mark.parametrize("code", (75, 137, 143))
def test_tpu_is_made_anew_after_a_preemption_or_a_loss(cloud, code):
    assert cloud(f"follow {code}\n") == (0, [*ROUND, DELETE, *ROUND, DELETE])


@pytest.mark.parametrize("code", (0, 1))
def test_tpu_watch_compiles_before_it_asks_for_a_slice(code, monkeypatch, capsys):
    """With the type of the slice and the fields that training gets; what does not fit ends it."""
    tpu = load("tpu")
    called = []
    monkeypatch.setattr(tpu.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(tpu.subprocess, "call", lambda words: called.append(words) or code)
    monkeypatch.setattr(tpu, "granted", lambda options: True)
    field = ["--config.train.batch_size", "512"]
    tpu.watch(tpu.parse(["watch", *TPU, "--type", "v6e-8", *TRAIN, *field]))
    assert called[0][1:] == [
        *("-m", "drifa_jax.cli", "compile", "configs/brain.py:quick", "--topology", "v6e-8"),
        *("--only", "step", "--no-search", *field),
    ]
    assert [words[0] for words in called[1:2]] == ["gcloud"] * (code == 0)
    assert ("nothing was asked for" in capsys.readouterr().out) == (code == 1)


def test_tpu_watch_goes_on_where_nothing_can_be_compiled(monkeypatch, capsys):
    tpu = load("tpu")
    monkeypatch.setattr(tpu.importlib.util, "find_spec", lambda name: None)
    assert tpu.compile_first(tpu.parse(["watch", *TPU, *TRAIN])) == 0
    assert "not compiled beforehand: drifa_jax and libtpu" in capsys.readouterr().out


def test_tpu_run_that_fails_by_its_own_fault_is_left_to_be_looked_at(cloud, capsys):
    assert cloud("follow 1\n") == (1, ROUND)
    assert "costs until: python launch/tpu.py delete --name drifa" in capsys.readouterr().out


def test_tpu_connection_that_drops_starts_no_second_trainer(cloud):
    """It is followed again; only the preparation before it is not repeated."""
    assert cloud("follow 255\nfollow 255\n") == (0, [*ROUND, SSH, SSH, DELETE])


def test_tpu_commands_that_fail_are_tried_again_but_not_for_ever(cloud):
    assert cloud("create 1\nscp 1\n")[0] == 0
    code, asked = cloud("create 1\n" * 9)
    assert code == 1 and asked[-5:] == [CREATE] * 5


def test_tpu_trainer_outlives_its_connection_and_is_never_started_twice(tmp_path):
    """The shell commands of a worker, run by a shell, with a trainer that takes a moment."""
    tpu = load("tpu")
    start, follow = (
        line[-2].removeprefix("--command=") for line in tpu.run(tpu.parse(["run", *TPU, *TRAIN]))
    )
    python = tmp_path / "drifa" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\necho started "$@"\nsleep 0.5\necho ended\nexit 75\n')
    python.chmod(0o755)

    def shell(command):
        return subprocess.run(
            ["bash", "-c", command],
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )

    for _ in range(2):
        assert shell(start).returncode == 0
    for _ in range(2):
        followed = shell(follow)
        assert followed.returncode == 75
        assert followed.stdout.count("started") == followed.stdout.count("ended") == 1
    assert "--workdir /runs/a run --config.distributed.coordinator=auto" in followed.stdout


@pytest.mark.parametrize(
    ("accelerator", "software"),
    [
        ("v6e-8", "v2-alpha-tpuv6e"),
        ("v5p-16", "v2-alpha-tpuv5"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v4-8", "tpu-ubuntu2204-base"),
    ],
)
def test_tpu_software_follows_the_generation(accelerator, software):
    tpu = load("tpu")
    (create,) = tpu.create(tpu.parse(["create", *TPU, "--type", accelerator]))
    assert f"--runtime-version={software}" in create


def test_tpu_flags_of_gcloud_are_passed_on():
    tpu = load("tpu")
    given = ["--labels=who=me", "--service-account=a@b", "--data-disk=source=d", "--network=n"]
    (create,) = tpu.create(tpu.parse(["create", *TPU, "--max-run-duration", "4h", *given]))
    assert {*given, "--provisioning-model=flex-start", "--max-run-duration=4h"} <= set(create)


@pytest.mark.parametrize("accelerator", ("tpu7x-8", "v9-8"))
def test_tpu_generation_that_cannot_be_had_so_is_named(accelerator):
    tpu = load("tpu")
    with pytest.raises(SystemExit, match=accelerator):
        tpu.create(tpu.parse(["create", *TPU, "--type", accelerator]))


@pytest.mark.parametrize("workdir", ("runs/a", "~/run", "/tmp/run", "/home/me/run", ""))
def test_tpu_run_directory_that_dies_with_the_slice_is_refused(workdir, capsys):
    with pytest.raises(SystemExit):
        load("tpu").parse(["run", *TPU, "--", "--config", "a.py", "--workdir", workdir])
    assert "dies with the slice" in capsys.readouterr().err


FIRST = {"tpu": ["run", *TPU], "slurm": [], "kubernetes": ["--image", "a", "--claim", "b"]}


@pytest.mark.parametrize("name", FIRST)
def test_dry_run_anywhere_runs_nothing(name):
    options = load(name).parse([*FIRST[name], *TRAIN, "--dry-run"])
    assert options.dry_run and options.arguments == TRAIN[1:]


def test_tpu_prints_what_it_would_run():
    assert shlex.split(printed("tpu", "delete", *TPU)) == [
        *["+", "gcloud", "compute", "tpus", "queued-resources", "delete", "drifa", "--force"],
        *["--quiet", "--zone=us-west4-a"],
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
    assert flags["partition"] == '"gpu"'
    (srun,) = (line for line in text.splitlines() if line.startswith("srun"))
    assert_trains(shlex.split(srun))


def test_slurm_folds_are_an_array_of_jobs(tmp_path):
    text = printed("slurm", "--folds", "5", "--name", "a study", "--mem", "64G")
    assert '--job-name="a study"' in text and '--mem="64G"' in text
    assert "#SBATCH --array=0-4" in text
    (tmp_path / "srun").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "3"}
    words = subprocess.run(
        ["bash"], input=text, env=environment, capture_output=True, text=True
    ).stdout.splitlines()
    assert words[-2:] == ["--workdir", "/runs/a run/fold-3"]
    assert {"--config.data.num_folds=5", "--config.data.fold=3"} <= set(words)
    assert words.count("--workdir") == 1


@pytest.mark.parametrize("restarts", (0, 20))
def test_slurm_job_is_requeued_a_limited_number_of_times(restarts, tmp_path):
    (tmp_path / "srun").write_text("#!/bin/bash\nexit 137\n")
    (tmp_path / "scontrol").write_text('#!/bin/bash\necho "$@"\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    result = subprocess.run(
        ["bash"], input=printed("slurm"), env=environment, capture_output=True, text=True
    )
    assert ("requeue 7" in result.stdout) == (restarts < 20)
    assert ("given up" in result.stderr) == (restarts == 20)


@pytest.mark.parametrize(
    ("code", "requeued"),
    [(0, False), (1, False), (75, True), (134, True), (137, True), (143, True)],
)
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


@pytest.mark.parametrize(
    ("code", "action"),
    [
        (1, "FailJobSet"),
        (2, "FailJobSet"),
        (143, "RestartJobSetAndIgnoreMaxRestarts"),
        (129, "RestartJobSetAndIgnoreMaxRestarts"),
        (None, "RestartJobSetAndIgnoreMaxRestarts"),
        (75, "RestartJobSet"),
        (134, "RestartJobSet"),
        (137, "RestartJobSet"),
    ],
)
def test_jobset_restarts_by_what_ended_a_pod(code, action):
    """The rules of the Job and of the JobSet, as their controllers read them; None: node lost."""
    jobset = yaml.safe_load(printed("kubernetes", "--image", "i", "--claim", "c"))
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
        assert rule["action"] == "FailJob"
        if code in rule.get("onExitCodes", {}).get("values", ()):
            ended = f"Container train for pod a/b failed with exit code {code}"
        elif code is None and "onPodConditions" in rule:
            ended = "Pod a/b has condition DisruptionTarget"
        else:
            continue
        reason, message = "PodFailurePolicy", f"{ended} matching FailJob rule at index {index}"
        break
    taken = "RestartJobSet"
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            taken = rule["action"]
            break
    assert taken == action


def test_jobset_fits_the_schema_of_its_controller():
    """JOBSET_CRD names the file in config/components/crd/bases of kubernetes-sigs/jobset."""
    if "JOBSET_CRD" not in os.environ:
        pytest.skip("needs JOBSET_CRD, a file with the definition of JobSet")
    schemas = pytest.importorskip("jsonschema", reason="needs jsonschema")
    crd = yaml.safe_load(Path(os.environ["JOBSET_CRD"]).read_text())
    (version,) = (v for v in crd["spec"]["versions"] if v["name"] == "v1alpha2")
    schema = closed(version["schema"]["openAPIV3Schema"])
    for flags in (["--gpus", "8"], []):
        jobset = yaml.safe_load(printed("kubernetes", "--image", "i", "--claim", "c", *flags))
        schemas.validate(jobset, schema)
    rules = jobset["spec"]["failurePolicy"]["rules"]
    for rule in rules:
        assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    rules[0]["onNothing"] = []
    with pytest.raises(schemas.ValidationError, match="onNothing"):
        schemas.validate(jobset, schema)


def closed(schema):
    """A schema in which fields that it does not name are errors, as for `kubectl apply`."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(part) for name, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and "properties" not in schema["properties"]:
        unknown = schema.get("x-kubernetes-preserve-unknown-fields", False)
        made.setdefault("additionalProperties", bool(unknown))
    return made


def test_jobset_of_gpus_tells_each_pod_its_place_without_asking_the_api():
    flags = ["--image", "i", "--claim", "c", "--gpus", "8", "--hosts", "2", "--name", "fusion"]
    jobset = yaml.safe_load(printed("kubernetes", *flags))
    (workers,) = jobset["spec"]["replicatedJobs"]
    pod = workers["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert pod["nodeSelector"] == {} and "annotations" not in jobset["metadata"]
    places = {each["name"]: each.get("value") for each in container["env"]}
    # JobSet names pods JOBSET-REPLICATED JOB-JOB-POD, in a subdomain of its own name.
    assert places == {
        "JAX_COORDINATOR_ADDRESS": "fusion-workers-0-0.fusion:8476",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": None,
    }
    assert not any("coordinator=auto" in word for word in container["command"])


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
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 20
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize(("accelerator", "admitted"), [("v5litepod-8", True), ("v6e-16", False)])
def test_tpu_slice_of_several_hosts_has_no_run_directory_in_a_bucket(accelerator, admitted, capsys):
    words = ["run", *TPU, "--type", accelerator, "--", "--config", "a.py", "--workdir", "gs://b/a"]
    if admitted:
        assert load("tpu").parse(words).type == accelerator
        return
    with pytest.raises(SystemExit):
        load("tpu").parse(words)
    assert "the hosts of v6e-16 write each checkpoint together" in capsys.readouterr().err
