"""The versions that the suite is run with are those that the package admits and README names."""

from __future__ import annotations

import ast
import re
import tomllib

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.stacks import ROOT, STACKS, requirements_of_tests, without_torch

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_package_admits_the_stacks_and_nothing_newer():
    dependencies = {Requirement(line).name: Requirement(line) for line in PROJECT["dependencies"]}
    admitted = {
        "python": SpecifierSet(PROJECT["requires-python"]),
        "jax": dependencies["jax"].specifier,
        "flax": dependencies["flax"].specifier,
    }
    for part, versions in admitted.items():
        tested = [getattr(stack, part) for stack in STACKS.values()]
        assert all(version in versions for version in tested)
        bounds = {bound.operator: bound.version for bound in versions}
        # The first version after the newest that was tested, at the place that is tested.
        numbers = [int(number) for number in tested[-1].split(".")[:3]]
        assert bounds["<"] == ".".join(map(str, [*numbers[:-1], numbers[-1] + 1]))
        assert bounds[">="] == tested[0]


def test_readme_names_the_stacks():
    rows = re.findall(
        r"^\| (3\.\d+) \| ([\d.]+) \| ([\d.]+) \|", (ROOT / "README.md").read_text(), re.M
    )
    assert rows == [tuple(stack) for stack in STACKS.values()]


def test_without_pytorch_nothing_is_installed_that_brings_it():
    left = {Requirement(line).name for line in without_torch(requirements_of_tests())}
    assert {Requirement(line).name for line in requirements_of_tests()} - left == {
        *("torch", "efficientnet-lite-pytorch")
    }


def test_tests_ask_for_pytorch_before_they_import_it():
    """Else the whole suite ends where it is missing, and not with a test that is skipped."""
    for path in (ROOT / "tests").rglob("*.py"):
        if not path.name.startswith(("test_", "conftest")):
            continue
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert "torch" not in names, f'{path}: torch = pytest.importorskip("torch")'
