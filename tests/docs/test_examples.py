"""The examples in documents and docstrings run."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
import shutil
from pathlib import Path

import jax
import pytest

from drifa_jax.cli import main

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("docs/python_api.md", "docs/tutorials/attention_in_your_model.md")
MODULES = ("models.mfa", "models.mifa", "models.building", "models.functional")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_blocks_of_a_document_run_in_order(document, finished_run, tmp_path, monkeypatch):
    # The documents speak of the run that the README's first command leaves behind.
    shutil.copytree(finished_run, tmp_path / "runs" / "brain-quick")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.S)
    assert blocks
    scope: dict = {}
    # As readers have it; Optax raises a float to an integer power, which strict dtypes forbid.
    with jax.numpy_dtype_promotion("standard"):
        for block in blocks:
            exec(compile(block, document, "exec"), scope)


@pytest.mark.parametrize(
    ("tutorial", "left_behind"),
    [
        ("train_on_folders", "study/metrics.json"),
        ("own_network", "own/explanations"),
        ("fine_tuning", "fine/metrics.json"),
        ("plan_and_run", "plan/plan.drifa"),
        pytest.param(
            "sweep",
            "sweep/trial-0/metrics.json",
            # Optuna and SQLAlchemy warn among themselves.
            marks=pytest.mark.filterwarnings("default"),
        ),
    ],
)
def test_a_tutorial_runs_as_it_stands(tutorial, left_behind, tmp_path, monkeypatch):
    """Python is executed, a block that names a file is written there, `drifa` lines are run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
    text = (ROOT / f"docs/tutorials/{tutorial}.md").read_text()
    scope: dict = {}
    for language, block in re.findall(r"```(python|bash)\n(.*?)```", text, flags=re.S):
        first, _, rest = block.partition("\n")
        if language == "bash":
            for line in block.splitlines():
                command, *arguments = shlex.split(line)
                assert command == "drifa"
                with jax.numpy_dtype_promotion("standard"):
                    assert main(arguments) == 0, line
        elif file := re.fullmatch(r"# (\w+\.py)", first):
            Path(file[1]).write_text(rest)
        else:
            with jax.numpy_dtype_promotion("standard"):
                exec(compile(block, f"{tutorial}.md", "exec"), scope)
    assert (Path("runs") / left_behind).exists()


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_give_what_they_show(module):
    result = doctest.testmod(importlib.import_module(f"drifa_jax.{module}"))
    assert result.attempted
    assert result.failed == 0
