"""The example of docs/uncertainty.md runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_python_example_runs(run, predictor, folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(run, tmp_path / "runs" / "brain-quick")
    shutil.copytree(folder, tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "uncertainty.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    scope: dict = {}
    exec(compile(block, "docs/uncertainty.md", "exec"), scope)
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert scope["tumour"].labels[0] in scope["tumour"].classes
