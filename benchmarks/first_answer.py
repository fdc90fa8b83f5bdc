"""Seconds to the first answer and to the first training step, beside another checkout.

    python -m benchmarks.first_answer RUN --against CHECKOUT [--run-there RUN] [--repeats 3]

CHECKOUT is a folder with the code of another commit (`git worktree add CHECKOUT f38679b`), and the
second RUN one that it made, where it cannot read the first. Cold: an empty compilation cache. Both
run in turn, so that other work on the machine hits both; processor seconds suffer less from it than
seconds on the clock.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--against", type=Path, required=True)
    parser.add_argument("--run-there", type=Path, help="RUN unless given")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-training", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measure(options, Path(name))


def measure(options, folder: Path) -> None:
    codes = {"here": HERE, "there": options.against.resolve()}
    runs = {"here": options.run.resolve(), "there": (options.run_there or options.run).resolve()}
    commands = {code: commands_of(codes[code], runs[code], folder / code) for code in codes}
    for what in commands["here"]:
        took = {(code, state): [] for code in codes for state in ("cold", "warm")}
        for _ in range(options.repeats):
            for code, root in codes.items():
                cache = Path(tempfile.mkdtemp(dir=folder))
                for state in ("cold", "warm"):
                    took[code, state].append(timed(commands[code][what], root, cache))
        report(what, took)
    if not options.no_training:
        took = {(code, "cold"): [] for code in codes}
        for _ in range(options.repeats):
            for code, root in codes.items():
                took[code, "cold"].append(first_step(root, folder))
        report("first training step", took)


def commands_of(root: Path, run: Path, folder: Path) -> dict[str, list[str]]:
    """What is timed with a checkout's code and a run of its own."""
    check_code(root)
    folder.mkdir()
    images, exported = one_case(run, folder), folder / "network.drifa"
    drifa = [sys.executable, "-m", "drifa_jax.cli"]
    export = [*drifa, "export", str(run), str(exported)]
    subprocess.run(export, check=True, cwd=root, env=environment(root, None), capture_output=True)
    return {
        "one case of a run": [*drifa, "predict", str(run), *images],
        "one case of an export": [*drifa, "predict", str(exported), *images],
    }


def report(what: str, took) -> None:
    """Prints medians on the clock and of the processor, and the ratio to the other checkout."""
    for state in dict.fromkeys(state for _, state in took):
        here, there = (np.median(took[code, state], axis=0) for code in ("here", "there"))
        print(
            f"{what}, {state}: {here[0]:.1f} s, {here[1]:.1f} s of the processor; there "
            f"{there[0]:.1f} and {there[1]:.1f}; ratio {here[0] / there[0]:.2f} and "
            f"{here[1] / there[1]:.2f} (load {os.getloadavg()[0]:.1f})",
            flush=True,
        )


def environment(root: Path, cache: Path | None) -> dict[str, str]:
    chosen = {} if cache is None else {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    return {**os.environ, "PYTHONPATH": str(root), **chosen}


def check_code(root: Path) -> None:
    """Ends the program unless commands in a checkout run that checkout's code."""
    command = [sys.executable, "-c", "import drifa_jax; print(drifa_jax.__file__)"]
    answer = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=root, env=environment(root, None)
    )
    if Path(answer.stdout.strip()).parents[1] != root:
        raise SystemExit(f"{answer.stdout.strip()} would run instead of the code in {root}")


def timed(command: list[str], root: Path, cache: Path) -> tuple[float, float]:
    """Seconds on the clock and of the processor that a command takes with a checkout's code.

    It begins in the checkout, because Python looks for a module in the current folder first.
    """
    variables = environment(root, cache)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, env=variables, capture_output=True, cwd=root)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def first_step(root: Path, folder: Path) -> tuple[float, float]:
    """The same from the start of training until its first step is logged."""
    cache, run = Path(tempfile.mkdtemp(dir=folder)), Path(tempfile.mkdtemp(dir=folder)) / "run"
    command = [
        *[sys.executable, "-m", "drifa_jax.main", "--config", str(root / "configs/brain.py:quick")],
        *["--workdir", str(run)],
    ]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(
        command, env=environment(root, cache), stderr=subprocess.DEVNULL, cwd=root
    )
    log = run / "metrics.jsonl"
    while not (log.exists() and '"step": 1,' in log.read_text()):
        if process.poll() is not None:
            raise SystemExit(f"the run ended with {process.returncode}")
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    process.kill()
    process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(run.parent)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def one_case(run: Path, folder: Path) -> list[str]:
    """Pictures of noise for each modality of a run, as arguments of the command."""
    import json

    specs = json.loads((run / "preprocessing.json").read_text())["modalities"]
    draw = np.random.default_rng(0)
    arguments = []
    for spec in specs:
        shape = (spec["height"], spec["width"]) + (3,) * (spec["channels"] == 3)
        path = folder / f"{spec['name']}.png"
        Image.fromarray(draw.integers(0, 256, shape, np.uint8)).save(path)
        arguments.append(f"{spec['name']}={path}")
    return arguments


if __name__ == "__main__":
    main()
