from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def studies():
    """`tests/archive/studies.py`, made-up studies and answers."""
    path = Path(__file__).parent / "studies.py"
    spec = importlib.util.spec_from_file_location("archive_studies", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
