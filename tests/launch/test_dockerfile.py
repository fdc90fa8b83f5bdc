"""launch/Dockerfile: its targets install what they say, and what is copied is what is needed."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.launch.test_launch import LAUNCH, load
from tests.stacks import STACKS

ROOT = LAUNCH.parent
TEXT = (LAUNCH / "Dockerfile").read_text()
dockerfile = load("follow_dockerfile")


@pytest.mark.parametrize("target", ("cpu", "cuda", "tpu"))
def test_a_target_installs_extras_that_exist_and_those_of_its_machine(target):
    steps = dockerfile.steps_of(TEXT, target)
    (install,) = [s.rest for s in steps if s.name == "RUN" and "pip install" in s.rest]
    extras = set(re.search(r"'\.\[(.*)\]'", install)[1].split(","))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras <= project["optional-dependencies"].keys()
    assert {"cpu", "cuda", "tpu"} & extras == {target} - {"cpu"}


def test_what_is_copied_is_what_the_launcher_of_tpus_copies():
    copied = [s.rest.split()[:-1] for s in dockerfile.steps_of(TEXT, "cpu") if s.name == "COPY"]
    assert {name for names in copied for name in names} == set(load("tpu").SOURCES)
    assert all((ROOT / name).exists() for names in copied for name in names)


def test_the_folder_is_that_of_the_jobset():
    place, environment = dockerfile.follow(dockerfile.steps_of(TEXT, "tpu"), None)
    options = load("kubernetes").parse(["--image", "i", "--claim", "c", "--", "--config", "a.py"])
    job = load("kubernetes").manifest(options)["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert container["workingDir"] == place == "/app"
    assert environment["PATH"].startswith("/opt/venv/bin:")


def test_its_python_is_one_that_is_tested():
    python = re.search(r"brings Python (3\.\d+)", TEXT)[1]
    assert python in [stack.python for stack in STACKS.values()]


def test_steps_are_followed_in_turn_in_the_folder_and_the_environment_so_far(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(
        dockerfile,
        "in_root",
        lambda root, place, environment, words: done.append((place, dict(environment), words)),
    )
    text = """
FROM debian:x AS system
RUN first && \\
    more
WORKDIR /app
COPY pyproject.toml LICENSE ./
COPY launch launch
FROM system AS cpu
# said in between
ENV A=1
RUN second
"""
    dockerfile.follow(dockerfile.steps_of(text, "cpu"), tmp_path)
    assert [(place, environment.get("A"), words[-1]) for place, environment, words in done] == [
        ("/", None, "first && more"),
        ("/app", "1", "second"),
    ]
    assert (tmp_path / "app/launch/Dockerfile").read_text() == TEXT
    assert {path.name for path in (tmp_path / "app").iterdir()} == {
        *("pyproject.toml", "LICENSE", "launch")
    }


def test_an_instruction_that_is_not_followed_is_named():
    with pytest.raises(ValueError, match="ADD"):
        dockerfile.targets("FROM debian AS cpu\nADD a b\n")
