"""How long a class-folder set of many files takes to open, verify and prepare, here and elsewhere.

    git archive 55ac4c8 | tar x -C ../earlier       # another state of the package
    python benchmarks/open_folders.py --against ../earlier

The files are drawn: small grey PNG pictures, each another, in 4 classes. Each step runs in a
process of its own, the two states of the package by turns; the table holds the medians and their
ratio. `decode` reads and decodes every file in as many threads as `prepare` has, which is the least
that `prepare` could take.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

STEPS = {
    "open": """
try:
    from drifa_jax.config import ModalityConfig
    from drifa_jax.data.sources.opening import open_modality
    from drifa_jax.data.splits import shares
except ImportError:  # of 55ac4c8
    from drifa_jax.data.record import ModalitySpec
    from drifa_jax.data.sources.opening import Location, open_location
    place = Location(ModalitySpec("ct", 32, 32, 1), root=ROOT, task="dx", format="folders")
    start = time.perf_counter()
    splits = open_location(place)
else:
    config = ModalityConfig(height=32, width=32, channels=1, root=ROOT, task="dx")
    start = time.perf_counter()
    splits = open_modality("ct", config, shares(0.15, 0.2))
""",
    "verify": """
from drifa_jax.data.verify import inspect, verify
facts = {split: inspect(source) for split, source in splits.items()}
verify(splits, facts)
""",
    "decode": """
from concurrent.futures import ThreadPoolExecutor
start = time.perf_counter()
with ThreadPoolExecutor(2) as pool:
    for source in splits.values():
        for _ in pool.map(source.__getitem__, range(len(source))):
            pass
""",
    "prepare": """
import tempfile
from drifa_jax.data.prepare import prepare
with tempfile.TemporaryDirectory() as out:
    start = time.perf_counter()
    prepare(splits, out + "/set", num_threads=2)
    seconds = time.perf_counter() - start
""",
}


def draw(root: Path, count: int) -> None:
    """Pictures of 32 pixels, each another."""
    generator = np.random.Generator(np.random.Philox(0))
    for number in range(count):
        folder = root / "abcd"[number % 4]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (8, 8), np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels).save(folder / f"{number:06d}.png", compress_level=1)


def seconds_of(step: str, tree: Path, root: Path) -> float:
    """Seconds of one step in a process that imports the package of a tree."""
    code = f"import time, json\nROOT = {str(root)!r}\n" + STEPS["open"]
    if step != "open":
        code += "\nstart = time.perf_counter()\n" + STEPS[step]
    code += "\nprint(json.dumps(locals().get('seconds', time.perf_counter() - start)))"
    environment = dict(os.environ, PYTHONPATH=str(tree), JAX_PLATFORMS="cpu")
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return float(json.loads(told.stdout.splitlines()[-1]))


def main() -> None:
    """Draws the set, measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--against", type=Path, help="a folder with another state of the package")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    options = parser.parse_args()
    trees = {"here": Path(__file__).parents[1]}
    if options.against:
        trees["there"] = options.against
    folder = Path(tempfile.mkdtemp(prefix="drifa-open"))
    try:
        draw(folder / "set", options.files)
        print(f"| step, {options.files:,} files | {' | '.join(trees)} | here / there |")
        for step in options.steps:
            taken: dict[str, list[float]] = {name: [] for name in trees}
            for _ in range(options.repeats):
                for name, tree in trees.items():
                    taken[name].append(seconds_of(step, tree, folder / "set"))
            medians = [statistics.median(values) for values in taken.values()]
            ratio = f"{medians[0] / medians[-1]:.2f}" if len(medians) > 1 else "-"
            print(f"| {step} | {' | '.join(f'{m:.1f} s' for m in medians)} | {ratio} |", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
