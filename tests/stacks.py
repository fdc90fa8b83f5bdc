"""Runs the suite with another Python, JAX and Flax, in an environment outside the checkout.

    python tests/stacks.py newest                     # the whole suite
    python tests/stacks.py newest tests/models -x     # a part of it, or any option of pytest
    NNX_GRAPH_MODE=false NNX_GRAPH_UPDATES=false python tests/stacks.py newest

The environment is made once and kept in `--folder`, with its own compilation cache. PyTorch is left
out where only builds for CUDA can be had (gigabytes): the tests that hold the network against it
say that they are skipped. Needs nothing but the interpreters.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Stack(NamedTuple):
    """Versions that are tested together."""

    python: str
    jax: str
    flax: str


STACKS = {
    "oldest": Stack("3.11", "0.10.2", "0.12.8"),
    "middle": Stack("3.12", "0.11.2", "0.12.12"),
    "newest": Stack("3.13", "0.12.0.1", "0.12.12"),
}
NEED_TORCH = {"torch", "efficientnet-lite-pytorch"}
"""What cannot be installed without PyTorch."""
MADE = "made-for.txt"


def interpreter(version: str) -> str:
    """`python3.13` on the path, or the newest of pyenv's of that version."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    pyenv = sorted(
        root.glob(f"{version}.*/bin/python"), key=lambda path: int(path.parts[-3].split(".")[2])
    )
    found = shutil.which(f"python{version}", path=_path_without_shims(root))
    if not found and not pyenv:
        sys.exit(f"Python {version} is not on the path nor in {root}: name it by --python.")
    return found or str(pyenv[-1])


def _path_without_shims(root: Path) -> str:
    # A shim of a version that pyenv has and is not told to use ends with an error.
    folders = os.environ.get("PATH", "").split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if folder != str(root.parent / "shims"))


def requirements_of_tests() -> list[str]:
    """What `pip install '.[test]'` installs beside the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["optional-dependencies"]["test"]


def of_checkout() -> str:
    """What an environment was made for: it is made anew for another."""
    return "\n".join([str(ROOT), (ROOT / "pyproject.toml").read_text()])


def without_torch(requirements: list[str]) -> list[str]:
    return [r for r in requirements if re.split(r"[^\w.-]", r)[0] not in NEED_TORCH]


def brings_cuda(pip: list[str], requirement: str) -> bool:
    """Whether installing it would fetch the libraries of CUDA; also where it cannot be had."""
    command = [*pip, "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    asked = subprocess.run([*command, requirement], capture_output=True, text=True)
    if asked.returncode:
        return True
    names = [part["metadata"]["name"] for part in json.loads(asked.stdout)["install"]]
    return any(name.startswith(("nvidia-", "cuda-")) for name in names)


def make(folder: Path, stack: Stack, python: str) -> None:
    """A fresh environment in `folder` with the package, editable, and what its tests need."""
    subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", "--upgrade", "pip"], check=True)
    requirements = requirements_of_tests()
    torch = next(r for r in requirements if r.startswith("torch"))
    if brings_cuda(pip, torch):
        print(f"without PyTorch: for Python {stack.python} there is no {torch} for CPUs alone")
        requirements = without_torch(requirements)
    pins = [f"jax=={stack.jax}", f"flax=={stack.flax}"]
    subprocess.run([*pip, "install", "--quiet", "-e", ROOT, *requirements, *pins], check=True)
    (folder / MADE).write_text(of_checkout())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stack", choices=STACKS)
    parser.add_argument("--python", help="its interpreter, where it is not found")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "drifa-stacks")
    parser.add_argument("--make-only", action="store_true", help="do not run the tests")
    options, pytest_arguments = parser.parse_known_args()
    stack = STACKS[options.stack]
    folder = options.folder.resolve() / "-".join(["python", stack.python, "jax", stack.jax])
    if folder.is_relative_to(ROOT):
        parser.error(f"--folder={options.folder} lies in the checkout; choose one outside it.")
    made = folder / MADE
    if not made.is_file() or made.read_text() != of_checkout():
        make(folder, stack, options.python or interpreter(stack.python))
    if options.make_only:
        return 0
    return subprocess.run(
        [folder / "bin" / "python", "-m", "pytest", *pytest_arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "jax_cache")},
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
