"""Prediction at scale: seconds and memory of 10,000 and 100,000 records, streamed to files.

    python -m benchmarks.predict [--records 10000 100000] [--samples 5]

An untrained network of width 4 on drawn images of 16 x 16 pixels: what is measured is the way
of a record from memory to CSV and Parquet, not the network. Each count runs in a process of its
own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--samples", type=int, default=5)
    options = parser.parse_args()
    for count in options.records:
        process = multiprocessing.get_context("spawn").Process(
            target=measure, args=(count, options.samples)
        )
        process.start()
        process.join()


def measure(count: int, num_samples: int) -> None:
    """Prints what streaming `count` records takes, without compilation."""
    from drifa_jax.compilation import use_compilation_cache
    from drifa_jax.predict.predictor import Predictor
    from drifa_jax.predictions.files import written

    use_compilation_cache()
    predictor = Predictor(untrained(), num_samples=num_samples)
    draw = np.random.default_rng(0)
    images = {m: draw.integers(0, 256, (count, 16, 16, 1), np.uint8) for m in ("mri", "ct")}
    names = [f"record-{i}" for i in range(count)]
    predictor({m: x[:16] for m, x in images.items()}, names[:16])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with written([Path(folder) / name for name in ("out.csv", "out.parquet")]) as write:
            for block in predictor.stream(images, names):
                write(block)
        seconds = time.perf_counter() - began
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        f"{count:9,} records: {seconds:7.1f} s ({1000 * seconds / count:.2f} ms a record), "
        f"{grown:.0f} MiB more at the peak, {size / 2**20:.0f} MiB written",
        flush=True,
    )


def untrained():
    """A run that was never trained, in memory."""
    import jax

    from drifa_jax.config import from_mapping, modality
    from drifa_jax.data.dataset import open_dataset
    from drifa_jax.predict.restored import Restored, describe
    from drifa_jax.train.experiment import build_experiment

    size = {"height": 16, "width": 16, "channels": 1}
    config = from_mapping(
        {
            "data": {
                "modalities": {"mri": modality(**size), "ct": modality(**size)},
                "phantoms": {"num_train": 8, "num_validation": 8, "num_test": 8},
            },
            "model": {"width": 4, "backbone": "resnet10"},
            "train": {"batch_size": 8},
        }
    )
    dataset = open_dataset(config.data)
    description = describe(config.data, dataset)
    network = build_experiment(config, dataset).network
    with jax.numpy_dtype_promotion("standard"):
        members = jax.vmap(network.init)(jax.random.split(jax.random.key(0), 1))
    params, statistics = jax.device_get(members)
    runs = (Path("untrained"),)
    return Restored(runs, config, description, network, params, statistics, (0,), "never trained")


if __name__ == "__main__":
    main()
