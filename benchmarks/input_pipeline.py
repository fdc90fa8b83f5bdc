"""Can the input pipeline feed the network? Records/s by stage, source and number of workers.

    python benchmarks/input_pipeline.py                      # JPEGs written from phantoms
    python benchmarks/input_pipeline.py --root FOLDER        # your class folders of JPEGs

Also: start-up time and memory of worker processes, how far `prepare` is from pure decoding, and
what it takes to open a prepared set of 100,000 records (simulated: tiny pictures; opening reads
only the index). Every figure is one run of a stated number of records; run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from drifa_jax.data.decode import decode_pixels, fit_image
from drifa_jax.data.pipeline import training_batches
from drifa_jax.data.prepare import prepare
from drifa_jax.data.record import ModalitySpec, Record, TaskSpec
from drifa_jax.data.records import Records
from drifa_jax.data.sources.folders import folder_records, scan_folders
from drifa_jax.data.sources.phantoms import PhantomSource
from drifa_jax.data.sources.prepared import open_prepared
from drifa_jax.data.transforms import PAPER, Augment

SIZE = 128
BATCH = 32
SPEC = ModalitySpec("scan", SIZE, SIZE, 1)
AUGMENT = Augment({"scan": PAPER, "mri": PAPER, "ct": PAPER})


class Tiny:
    """A stand-in for a large set: record i is a 4 x 4 picture."""

    synthetic, description = True, "SYNTHETIC tiny records"
    modalities = (ModalitySpec("scan", 4, 4, 1),)
    tasks = (TaskSpec("kind", ("a", "b")),)

    def __init__(self, size: int):
        self._size, self._labels = size, (np.arange(size) % 2).astype(np.int32)

    def __len__(self):
        return self._size

    def __getitem__(self, index):
        image = np.full((4, 4, 1), index % 256, np.uint8)
        name = self.record_id(index)
        return Record(name, name, {"scan": image}, {"kind": int(self._labels[index])})

    def labels(self, task):
        return self._labels

    def record_id(self, index):
        return f"hospital/patient-{index // 4:06d}/image-{index:07d}.jpg"

    group_id = record_id

    def attributes(self, index):
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="class folders of JPEG files")
    parser.add_argument("--records", type=int, default=1200, help="records of each measurement")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument(
        "--consume", type=float, default=90.0, help="records/s of the imagined training step"
    )
    parser.add_argument("--skip-large", action="store_true", help="leave the 100,000 records out")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {SIZE} px, batch {BATCH}, {options.records} records a figure")
    with tempfile.TemporaryDirectory() as folder:
        root = options.root or write_jpegs(Path(folder) / "jpeg", 800)
        jpegs = folder_records(scan_folders(root), SPEC, "kind")
        stages(jpegs, root, options.records)
        before = time.perf_counter()
        prepare({"train": jpegs}, Path(folder) / "prepared")
        seconds = time.perf_counter() - before
        print(f"prepare: {len(jpegs) / seconds:.0f} records/s with 2 threads")
        prepared = open_prepared(Path(folder) / "prepared")["train"]
        phantoms = PhantomSource("train", 4000, 0, SIZE)
        sources = {"JPEG folders": jpegs, "prepared": prepared, "phantoms (2 images)": phantoms}
        for name, source in sources.items():
            for num_workers in options.workers:
                streams(name, source, num_workers, options.records)
            waiting(name, source, options.consume)
        if not options.skip_large:
            large(Path(folder) / "large", 100_000)


def write_jpegs(root: Path, count: int) -> Path:
    """Class folders of JPEG files of 256 px, drawn by the phantoms."""
    source = PhantomSource("train", count, 0, 256)
    for index in range(count):
        folder = root / f"class_{int(source.labels('stroke')[index])}"
        folder.mkdir(parents=True, exist_ok=True)
        picture = source[index].images["mri"]
        cv2.imwrite(str(folder / f"{index}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return root


def rate(count: int, act: Callable[[int], object]) -> float:
    """Calls a second of `act(i)`, one core."""
    act(0)
    before = time.perf_counter()
    for index in range(count):
        act(index)
    return count / (time.perf_counter() - before)


def stages(source: Records, root: Path, count: int) -> None:
    """Each stage by itself, in one thread; the last line decodes in two."""
    paths = [root / source.record_id(i % len(source)) for i in range(count)]
    data = [path.read_bytes() for path in paths]
    pixels = [decode_pixels(one, 1) for one in data]
    records = [source[i % len(source)] for i in range(min(count, 256))]

    def keyed(index: int) -> Record:
        return AUGMENT(records[index % 256], np.random.Generator(np.random.Philox(index)))

    print(f"stage read:      {rate(count, lambda i: paths[i].read_bytes()):8.0f} records/s")
    print(f"stage decode:    {rate(count, lambda i: decode_pixels(data[i], 1)):8.0f} records/s")
    print(f"stage resize:    {rate(count, lambda i: fit_image(pixels[i], SPEC)):8.0f} records/s")
    print(f"stage transform: {rate(count, keyed):8.0f} records/s (paper settings)")
    stack = [record.images["scan"] for record in records[:BATCH]]
    batches = rate(300, lambda i: np.stack(stack))
    print(f"stage batch:     {batches * BATCH:8.0f} records/s")
    before = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(lambda one: fit_image(decode_pixels(one, 1), SPEC), data):
            pass
    seconds = time.perf_counter() - before
    print(f"decode + resize in two threads: {count / seconds:.0f} records/s")


def streams(name: str, source, num_workers: int, count: int) -> None:
    """The whole pipeline, without and with the paper's transforms."""
    for transform, label in ((None, "no transform"), (AUGMENT, "paper")):
        before = time.perf_counter()
        iterator = training_batches(
            source, batch_size=BATCH, seed=0, transform=transform, num_workers=num_workers
        )
        next(iterator)
        start = time.perf_counter() - before
        # Batches that were read ahead before the clock started would flatter short runs.
        for _ in range(16 + 2 * num_workers):
            next(iterator)
        before = time.perf_counter()
        steps = max(1, count // BATCH)
        for _ in range(steps):
            next(iterator)
        speed = steps * BATCH / (time.perf_counter() - before)
        memory = worker_memory() if num_workers else ""
        if hasattr(iterator, "close"):
            iterator.close()
        print(
            f"{name:20s} {num_workers} workers, {label:12s}: {speed:7.0f} records/s, "
            f"first batch after {start:.1f} s{memory}"
        )


def waiting(name: str, source, consume: float) -> None:
    """How long a training step that consumes so many records/s waits for its batches.

    The step sleeps, as a host does whose accelerator computes; on CPU both would share the cores.
    """
    iterator = training_batches(source, batch_size=BATCH, seed=0, transform=AUGMENT)
    next(iterator)
    waited, start = 0.0, time.perf_counter()
    for _ in range(8):
        before = time.perf_counter()
        next(iterator)
        waited += time.perf_counter() - before
        time.sleep(BATCH / consume)
    share = waited / (time.perf_counter() - start)
    print(f"{name:20s} at {consume:.0f} records/s the step waits {100 * share:.1f} % of the time")


def worker_memory() -> str:
    """Largest proportional memory of a child process, in MB (Linux only)."""
    sizes = []
    # Grain starts workers from a thread of its own, so the children of all threads are asked.
    tasks = Path("/proc/self/task").glob("*/children")
    for child in " ".join(task.read_text() for task in tasks).split():
        rollup = Path(f"/proc/{child}/smaps_rollup")
        for line in rollup.read_text().splitlines() if rollup.is_file() else ():
            if line.startswith("Pss:"):
                sizes.append(int(line.split()[1]) / 1024)
    return f", {max(sizes):.0f} MB a worker" if sizes else ""


def large(folder: Path, count: int) -> None:
    """Opening many records in a fresh process: seconds and peak memory."""
    before = time.perf_counter()
    prepare({"train": Tiny(count)}, folder, shard_size=8192)
    print(f"prepare {count} tiny records: {count / (time.perf_counter() - before):.0f} records/s")
    program = (
        "import sys, time\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return int(next(l for l in lines if l.startswith('VmHWM')).split()[1]) / 1024\n"
        "t0 = time.perf_counter()\n"
        "from drifa_jax.data.sources.prepared import open_prepared\n"
        "t1 = time.perf_counter()\n"
        "base = peak()\n"
        "source = open_prepared(sys.argv[1])['train']\n"
        "last = source[len(source) - 1]\n"
        "t2 = time.perf_counter()\n"
        "print(f'open {len(source)} records and read the last: {t2 - t1:.2f} s '\n"
        "      f'(imports {t1 - t0:.1f} s), peak {peak():.0f} MB (imports {base:.0f} MB)')\n"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True)


if __name__ == "__main__":
    main()
