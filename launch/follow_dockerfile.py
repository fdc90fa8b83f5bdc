"""Follows the steps of launch/Dockerfile in a folder that holds a system, where docker is not.

    debootstrap --variant=minbase trixie ROOT         # what debian:trixie-slim is made of
    mount --bind /proc ROOT/proc && mount --bind /dev ROOT/dev
    python launch/follow_dockerfile.py cpu --root ROOT --run drifa demo --workdir /runs/brain-quick

Every COPY and RUN of the target and of the targets that it begins from is done in turn, in ROOT by
chroot, which needs root; then `--run` in the environment that the image would have. `--dry-run`
prints the steps. Variables whose name begins with PIP_, and certificates, are handed on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).resolve().parents[1]
DOCKERFILE = Path(__file__).with_name("Dockerfile")
HANDED_ON = ("PIP_", "SSL_CERT_", "REQUESTS_CA_")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Step(NamedTuple):
    """One instruction: its name in capitals, and what follows."""

    name: str
    rest: str


def targets(text: str) -> dict[str, tuple[str, list[Step]]]:
    """Target -> what it begins from, and its steps.

    Raises:
      ValueError: for an instruction that is not followed here.
    """
    found: dict[str, tuple[str, list[Step]]] = {}
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, rest = line.strip().partition(" ")
        if not name:
            continue
        if name == "FROM":
            base, _, target = rest.partition(" AS ")
            found[target] = (base, [])
        elif name in ("RUN", "COPY", "ENV", "WORKDIR", "ENTRYPOINT", "CMD"):
            found[target][1].append(Step(name, " ".join(rest.split())))
        else:
            raise ValueError(f"{name} is not followed here")
    return found


def steps_of(text: str, target: str) -> list[Step]:
    """All steps of a target, those of what it begins from first."""
    base, own = targets(text)[target]
    return [*(steps_of(text, base) if base in targets(text) else []), *own]


def follow(steps: list[Step], root: Path | None) -> tuple[str, dict[str, str]]:
    """Does the steps in `root`, or only prints them; the working directory and the environment."""
    place, environment = "/", {"PATH": PATH, "HOME": "/root"}
    for step in steps:
        print("+", step.name, step.rest, flush=True)
        if step.name == "WORKDIR":
            place = step.rest
        elif step.name == "ENV":
            name, _, value = step.rest.partition("=")
            environment[name] = value
        if root is None:
            continue
        if step.name == "WORKDIR":
            (root / place.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif step.name == "COPY":
            *sources, to = step.rest.split()
            for source in sources:
                copy(SOURCES / source, root / place.lstrip("/") / to)
        elif step.name == "RUN":
            in_root(root, place, environment, ["sh", "-c", step.rest])
    return place, environment


def copy(source: Path, to: Path) -> None:
    """What COPY does: the content of a folder, or a file into a folder."""
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, to, dirs_exist_ok=True, ignore=ignored)
    else:
        shutil.copy(source, to)


def in_root(root: Path, place: str, environment: dict[str, str], command: list[str]) -> None:
    """Runs a command with `root` as its whole system.

    Raises:
      SystemExit: with its exit code where that is not 0.
    """
    handed = {k: v for k, v in os.environ.items() if k.startswith(HANDED_ON)}
    inside = ["sh", "-c", 'cd "$0" && exec "$@"', place, *command]
    code = subprocess.call(["chroot", root, *inside], env=handed | environment)
    if code:
        sys.exit(code)


def main() -> int:
    """Follows a target; returns 0 when every step succeeded."""
    text = DOCKERFILE.read_text()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", choices=targets(text))
    parser.add_argument("--root", type=Path, help="a folder with the system to begin from")
    parser.add_argument("--dry-run", action="store_true", help="print the steps only")
    parser.add_argument("--run", nargs=argparse.REMAINDER, default=[], help="then this, inside")
    options = parser.parse_args()
    if not options.dry_run and options.root is None:
        parser.error("it needs --root, or --dry-run")
    root = None if options.dry_run else options.root.resolve()
    steps = steps_of(text, options.target)
    place, environment = follow(steps, root)
    entry = json.loads(next(step.rest for step in steps if step.name == "ENTRYPOINT"))
    print("entry point:", *entry)
    if options.run and root is not None:
        in_root(root, place, environment, options.run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
