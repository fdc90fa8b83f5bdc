"""The order of the rooms: lower ones import no higher ones, none is overfull, none is private.

The exceptions are those of today. The lists may only shrink: an exception that no longer holds
fails as well.
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "drifa_jax"
LAYERS = (
    (
        "chips",
        "errors",
        "extras",
        "typing",
        "console",
        "digests",
        "whole_files",
        "buckets",
        "sealed_files",
        "plain_values",
        "network_options",
        "fusion_presets",
        "machine_options",
        "inline_pictures",
    ),
    ("cpu",),
    ("config", "config_files", "rng", "compilation", "processes"),
    ("sharding",),
    ("data",),
    ("models",),
    ("uncertainty",),
    ("interop",),
    ("train",),
    ("predictions", "post_processing"),
    ("predict",),
    ("evaluate",),
    ("ablate",),
    ("explain",),
    ("report",),
    ("archive", "monitor"),
    ("serve",),
    ("plan",),
    ("benchmark", "compile_for"),
    ("commands",),
    ("cli",),
    ("main",),
)
"""From the lowest to the highest; rooms of one layer may import each other."""

LONGEST = 400
"""Lines of a module."""

LONG: set[str] = {
    "drifa_jax.data.sources.phantom_anatomy",
    "drifa_jax.interop.torch_drifa_net",
}
UPWARD: set[str] = set()
CIRCLES: set[str] = set()
PRIVATE: set[str] = set()


def modules() -> dict[str, Path]:
    return {
        ".".join(("drifa_jax", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in PACKAGE.rglob("*.py")
    }


def imported(name: str, path: Path, known: set[str]) -> set[str]:
    """Modules that one imports, wherever in its file; of this package the very modules."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
    return found


def graph() -> dict[str, set[str]]:
    files = modules()
    return {name: imported(name, path, set(files)) for name, path in files.items()}


def layer(module: str) -> int:
    room = module.split(".")[1]
    (number,) = [number for number, rooms in enumerate(LAYERS) if room in rooms]
    return number


def test_no_module_imports_a_higher_room():
    upward = {
        f"{name} -> {other}"
        for name, others in graph().items()
        for other in others
        if name != "drifa_jax" and other.startswith("drifa_jax.") and layer(other) > layer(name)
    }
    assert upward == UPWARD


def test_no_modules_import_each_other_in_a_circle():
    imports = graph()
    edges = {name: others & set(imports) for name, others in imports.items()}

    def reached(start: str) -> set[str]:
        found, waiting = set(), [start]
        while waiting:
            new = edges[waiting.pop()] - found
            found |= new
            waiting += new
        return found

    assert {name for name in edges if name in reached(name)} == CIRCLES


def test_nothing_private_of_jax_is_imported():
    private = {
        name for name, others in graph().items() if any("jax._src" in other for other in others)
    }
    assert private == PRIVATE


def test_no_module_is_longer_than_a_reader_can_hold():
    long = {
        name for name, path in modules().items() if len(path.read_text().splitlines()) > LONGEST
    }
    assert long == LONG


def test_no_variable_is_called_of_or_one():
    """They say nothing of what they hold."""
    named = {
        f"{name}, line {node.lineno}"
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if getattr(node, "id", getattr(node, "arg", "")) in ("of", "one")
    }
    assert named == set()
