"""What scaling costs, as far as one machine can show it. Tables: docs/scaling.md.

    python benchmarks/scaling.py devices       # memory of each of 1 to 8 emulated devices
    python benchmarks/scaling.py checkpoint    # size and seconds at the paper's width
    python benchmarks/scaling.py preemption    # seconds from SIGTERM to the next new step
    python benchmarks/scaling.py rematerialise # bytes between forward and backward pass

Emulated devices share the cores of this machine: they show correctness and memory, not speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from drifa_jax.config import Config, from_mapping, modality


def paper_config(
    size: int, batch: int, backbone: str, shard_state: bool = False, dtype: str = "float32"
) -> Config:
    return from_mapping(
        {
            "data": {
                "modalities": {
                    name: modality(height=size, width=size, channels=3) for name in ("mri", "ct")
                },
                "phantoms": {"num_train": batch, "num_validation": 1, "num_test": 1},
            },
            "model": {"backbone": backbone, "compute_dtype": dtype},
            "train": {"batch_size": batch},
            "eval": {"batch_size": batch},
            "mesh": {"shard_state": shard_state},
        }
    )


def program_of(config: Config):
    """The step, a state before it and a batch; all compute stays undone."""
    from drifa_jax.data.dataset import open_dataset
    from drifa_jax.sharding import layout_of
    from drifa_jax.train.experiment import build_experiment
    from drifa_jax.train.program import Program

    # Phantoms are grey; the paper's images have three channels.
    grey = dataclasses.replace(
        config.data,
        modalities={
            name: dataclasses.replace(of, channels=1) for name, of in config.data.modalities.items()
        },
    )
    config = dataclasses.replace(config, data=grey)
    experiment = build_experiment(config, open_dataset(grey))
    return experiment, layout_of(config), Program(experiment, layout_of(config))


def on_devices(count: int, shard_state: bool) -> None:
    """One line of the table of `devices`, in a process of its own."""
    import jax

    from drifa_jax.rng import stream
    from drifa_jax.sharding import put
    from drifa_jax.train.feed import Feed
    from drifa_jax.train.program import put_keys
    from drifa_jax.train.starting_weights import starting_weights
    from drifa_jax.train.state import initial_state

    config = paper_config(32, 8, "resnet10", shard_state)
    experiment, layout, program = program_of(config)
    weights = starting_weights(experiment, stream(put_keys(0, layout), "init"))
    state = initial_state(*weights, experiment.optimizer)
    state = jax.tree.map(lambda leaf, like: put(leaf, like.sharding), state, program.template)
    held = sum(leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(state))
    feed = Feed(experiment, layout, 0)
    totals = []
    for _ in range(3):
        state, sums = program(state, feed.next(lambda: True)[1], 0)
        totals.append(float(sums["total"]))
    feed.close()
    program.analyse()
    print(
        f"| {count} | {'over data' if shard_state else 'whole'} | {held / 2**20:.0f} | "
        f"{program.device_bytes['temporary'] / 2**20:.0f} | "
        f"{' '.join(f'{total:.6f}' for total in totals)} |",
        flush=True,
    )


def devices() -> None:
    print("| devices | state | state, MiB a device | temporary, MiB a device | losses |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for count, shard_state in ((1, False), (2, False), (8, False), (2, True), (4, True), (8, True)):
        subprocess.run(
            [sys.executable, __file__, "on_devices", str(count), *["cut"] * shard_state],
            env=os.environ
            | {
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
            },
            check=True,
        )


def checkpoint() -> None:
    import jax
    import numpy as np

    from drifa_jax.rng import root_key
    from drifa_jax.train.checkpoint import Checkpoints
    from drifa_jax.train.starting_weights import starting_weights
    from drifa_jax.train.state import initial_state

    experiment, _, program = program_of(paper_config(32, 8, "resnet18"))
    state = initial_state(*starting_weights(experiment, root_key(0)), experiment.optimizer)
    # Zeros would compress away.
    noise = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: leaf + noise.normal(size=leaf.shape).astype(leaf.dtype), state
    )
    jax.block_until_ready(state)
    with tempfile.TemporaryDirectory() as folder:
        with Checkpoints(Path(folder)) as checkpoints:
            for step in range(3):
                state = dataclasses.replace(state, step=state.step + 1)
                begin = time.perf_counter()
                checkpoints.save(state, {}, 1.0)
                returned = time.perf_counter() - begin
                checkpoints.wait()
                written = time.perf_counter() - begin
                print(f"save {step}: returns after {returned:.2f} s, on disk after {written:.2f} s")
        size = sum(f.stat().st_size for f in (Path(folder) / "3").rglob("*") if f.is_file())
        print(f"size: {size / 2**20:.0f} MiB")
        with Checkpoints(Path(folder)) as checkpoints:
            for _ in range(2):
                begin = time.perf_counter()
                jax.block_until_ready(checkpoints.newest(program.template))
                print(f"restore: {time.perf_counter() - begin:.2f} s")


def preemption() -> None:
    folder = Path(tempfile.mkdtemp())
    command = [
        *[sys.executable, "-m", "drifa_jax.main", "--config", "configs/brain.py:quick"],
        *["--workdir", str(folder / "run"), "--config.data.phantoms.num_train=320"],
    ]

    def started_until(step: int):
        begin = time.perf_counter()
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        log = folder / "run" / "metrics.jsonl"
        while not log.exists() or f'"step": {step},' not in log.read_text():
            if process.poll() is not None:
                raise SystemExit(f"the run ended with {process.returncode}")
            time.sleep(0.02)
        return process, time.perf_counter() - begin

    process, cold = started_until(3)
    begin = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    code = process.wait()
    stopped = time.perf_counter() - begin
    done = max(int(p.name) for p in (folder / "run" / "checkpoints").iterdir())
    process, again = started_until(done + 1)
    process.kill()
    process.wait()
    print(f"start to step 3: {cold:.1f} s; SIGTERM to exit code {code}: {stopped:.1f} s")
    print(f"start to the first new step ({done + 1}): {again:.1f} s")


def rematerialise() -> None:
    import jax
    import jax.numpy as jnp

    from drifa_jax.models import kernels
    from drifa_jax.models.building import drifa_net
    from drifa_jax.models.functional import Functional
    from drifa_jax.network_options import NetworkOptions

    def kept(backbone: str, size: int, again: bool) -> float:
        """GiB that the backward pass reads of 32 records in bfloat16, weights left out."""
        options = NetworkOptions(backbone=backbone, compute_dtype="bfloat16")
        network = Functional(
            lambda rngs: drifa_net({"mri": 1, "ct": 1}, {"tumour": 4}, options=options, rngs=rngs)
        )

        def residuals(params, statistics, images):
            def forward(params):
                return network.apply(
                    params,
                    statistics,
                    images,
                    train=True,
                    dropout_key=jax.random.key(0),
                    rematerialise=again,
                )[0][0]

            return jax.vjp(forward, params)[1]

        image = jax.ShapeDtypeStruct((32, size, size, 1), jnp.float32)
        weights = network.abstract_params, network.abstract_statistics
        with kernels.batch_over(1, "tpu"):
            found = jax.eval_shape(residuals, *weights, {"mri": image, "ct": image})
        return (bytes_of(found) - bytes_of(weights[0])) / 2**30

    def bytes_of(tree) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    print("| network | pixels | kept, GiB | computed again, GiB |")
    print("| --- | --- | --- | --- |", flush=True)
    for backbone, size in (("resnet18", 128), ("resnet50", 224)):
        both = [f"{kept(backbone, size, again):.2f}" for again in (False, True)]
        print(f"| {backbone} | {size} | {' | '.join(both)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "part", choices=("devices", "on_devices", "checkpoint", "preemption", "rematerialise")
    )
    parser.add_argument("rest", nargs="*")
    options = parser.parse_args()
    if options.part == "on_devices":
        on_devices(int(options.rest[0]), "cut" in options.rest)
    else:
        globals()[options.part]()


# Data workers import this module again.
if __name__ == "__main__":
    main()
