"""Prediction on Ray against the local command, and what a lost node and a killed driver cost.

    python -m benchmarks.ray_predict RUN [--records 4096] [--nodes 3]

A local cluster of several nodes on this machine, whose cores they share. Pictures of noise at the
size that RUN reads. Three proofs: the folder of Ray holds the local command's table to the last
bit; so it does after a node was killed in mid-run; and after the command was killed and started
again. Records/s are between the first and the last answer, so without starting and compiling.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

NODE = {"num_cpus": 1, "object_store_memory": 200 * 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--records", type=int, default=4096)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = make_cases(options.run, folder / "cases", options.records)
        few = make_cases(options.run, folder / "few", 256)
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args=NODE)
        try:
            compare(options, cluster, folder, manifest, few)
        finally:
            cluster.shutdown()


def compare(options, cluster, folder: Path, manifest: Path, few: Path) -> None:
    """Prints the figures and the proofs."""
    others = [cluster.add_node(**NODE) for _ in range(options.nodes - 1)]
    cluster.wait_for_nodes()
    run, count = options.run, options.records

    def ray(manifest: Path, out: Path) -> list[str]:
        where = ["--engine", "ray", "--address", cluster.address, "--out", str(out)]
        return command(run, manifest, *where)

    def local(manifest: Path, out: Path) -> list[str]:
        return command(run, manifest, "--parquet", str(out))

    local_out = folder / "local.parquet"
    for repeat in range(options.repeats):
        took = {}
        for kind, make in (("local", local), ("ray", ray)):
            ending = ".parquet" if kind == "local" else ""
            took[kind] = [
                timed(make(asked, folder / f"{kind}-{repeat}-{size}{ending}"))
                for size, asked in (("few", few), ("all", manifest))
            ]
        local_out = folder / f"local-{repeat}-all.parquet"
        rates = {kind: (count - 256) / (whole - start) for kind, (start, whole) in took.items()}
        print(
            f"local: {rates['local']:.1f} records/s, 256 records in {took['local'][0]:.1f} s; "
            f"Ray, {options.nodes} nodes: {rates['ray']:.1f} records/s "
            f"({rates['ray'] / rates['local']:.2f}x), 256 records in {took['ray'][0]:.1f} s; "
            f"load {os.getloadavg()[0]:.1f}; same table: "
            f"{same(local_out, folder / f'ray-{repeat}-all')}",
            flush=True,
        )

    parts = -(-count // 256)
    out = folder / "node-killed"
    killer = threading.Thread(
        target=lambda: (
            wait_for(out, parts // 3),
            cluster.remove_node(others[0], allow_graceful=False),
        )
    )
    killer.start()
    seconds = timed(ray(manifest, out))
    killer.join()
    print(f"a node killed: {seconds:.1f} s; same table: {same(local_out, out)}", flush=True)

    out = folder / "driver-killed"
    process = subprocess.Popen(ray(manifest, out), stdout=subprocess.DEVNULL)
    wait_for(out, parts // 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    held = len(list(out.glob("part-*.parquet")))
    seconds = timed(ray(manifest, out))
    print(
        f"the command killed after {held} of {parts} partitions, started again: {seconds:.1f} s; "
        f"same table: {same(local_out, out)}",
        flush=True,
    )


def command(run: Path, manifest: Path, *rest: str) -> list[str]:
    return [sys.executable, "-m", "drifa_jax.cli", "predict", str(run), str(manifest), *rest]


def timed(arguments: list[str]) -> float:
    """Seconds that a command takes."""
    began = time.perf_counter()
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def wait_for(out: Path, count: int) -> None:
    """Until so many partitions are written."""
    while len(list(out.glob("part-*.parquet"))) < count:
        time.sleep(0.05)


def same(file: Path, folder: Path) -> bool:
    """Whether a file and a folder of partitions hold the same table, to the last bit."""
    from drifa_jax.predictions.files import read_predictions, to_arrow
    from drifa_jax.predictions.partitions import read_partitions

    ours, theirs = to_arrow(read_predictions(file)), to_arrow(read_partitions(folder))
    return ours.equals(theirs, check_metadata=True)


def make_cases(run: Path, folder: Path, count: int) -> Path:
    """Pictures of noise for every modality of a run, and the manifest that names them."""
    from drifa_jax.predict.restored import restore

    specs = restore([run]).description.modalities
    folder.mkdir()
    draw = np.random.default_rng(0)
    lines = [",".join(["record_id", *(spec.name for spec in specs)])]
    for row in range(count):
        for spec in specs:
            pixels = draw.integers(0, 256, spec.shape, np.uint8)
            image = Image.fromarray(pixels[..., 0] if spec.channels == 1 else pixels)
            image.save(folder / f"{spec.name}-{row}.png")
        lines.append(",".join([f"case{row}", *(f"{spec.name}-{row}.png" for spec in specs)]))
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


if __name__ == "__main__":
    main()
