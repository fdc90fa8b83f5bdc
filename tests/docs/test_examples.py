"""The examples in documents and docstrings run."""

from __future__ import annotations

import doctest
import importlib
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("docs/python_api.md",)
MODULES = ("models.mfa", "models.mifa", "models.drifa_net", "models.functional")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_blocks_of_a_document_run_in_order(document, finished_run, tmp_path, monkeypatch):
    # The documents speak of the run that the README's first command leaves behind.
    shutil.copytree(finished_run, tmp_path / "runs" / "brain-quick")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.S)
    assert blocks
    scope: dict = {}
    for block in blocks:
        exec(compile(block, document, "exec"), scope)


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_give_what_they_show(module):
    result = doctest.testmod(importlib.import_module(f"drifa_jax.{module}"))
    assert result.attempted
    assert result.failed == 0
