"""The sampler against plain Monte Carlo dropout: how much faster, at equal samples.

    python benchmarks/mc_dropout.py                      # full width, T = 30, two tasks
    python benchmarks/mc_dropout.py --passes 1 2 4 8     # and how large a pass should be

Three ways to the same samples of one member, drawn from the same keys:

- sampler: `uncertainty.mc_dropout.make_sampler`, samples spread over the devices;
- (a) vectorised: T whole passes as one batch of T times as many rows;
- (b) notebook: T whole passes one after another, fetched one by one, and all of that again for
  each task head, as the authors' notebook does.

On CPU the sampler splits the cores into as many devices (`--devices`); (a) and (b) have one
device with all cores, which is how such code is usually run. Compilation is not counted.
"""

from __future__ import annotations

import argparse
import os
import time
from statistics import median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--samples", type=int, default=30)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=128, help="pixels along each side")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--devices", type=int, default=os.cpu_count(), help="devices on CPU")
    parser.add_argument("--passes", type=int, nargs="*", default=[], help="samples per pass to try")
    parser.add_argument("--against", nargs="*", default=["vectorised", "notebook"])
    options = parser.parse_args()
    os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={options.devices}")
    measure(options)


def measure(options: argparse.Namespace) -> None:
    # Imported after the flag that JAX reads once.
    import jax
    import jax.numpy as jnp
    import numpy as np

    from drifa_jax.models.building import drifa_net
    from drifa_jax.models.functional import Functional
    from drifa_jax.models.pixels import scale_pixels
    from drifa_jax.network_options import NetworkOptions
    from drifa_jax.uncertainty.mc_dropout import (
        make_sampler,
        record_words,
        sample_key,
        sampling_mesh,
    )

    tasks = {"tumour": 4, "stroke": 3}
    network = Functional(
        lambda rngs: drifa_net(
            {"mri": 1, "ct": 1}, tasks, options=NetworkOptions(width=options.width), rngs=rngs
        )
    )
    params, statistics = network.init(jax.random.key(0))
    draw = np.random.default_rng(0)
    shape = (options.records, options.size, options.size, 1)
    images = {m: draw.integers(0, 256, shape, np.uint8) for m in ("mri", "ct")}
    words = record_words([f"record {n}" for n in range(options.records)])
    key, num_samples = jax.random.key(1), options.samples
    stacked = jax.tree.map(lambda leaf: leaf[None], (params, statistics))

    def full_pass(params, statistics, images, samples):
        """Whole passes of all records, once a sample: `[len(samples), b, k]` by task."""
        keys = jax.vmap(lambda s: sample_key(key, jnp.int32(0), words, s))(samples)
        tiled = {m: jnp.concatenate([x] * len(samples)) for m, x in scale_pixels(images).items()}
        (logits, _), _ = network.apply(
            params, statistics, tiled, train=False, dropout_key=keys.reshape(-1)
        )
        return {
            task: jax.nn.softmax(x).reshape(len(samples), options.records, -1)
            for task, x in logits.items()
        }

    def sampler_of(**how):
        sampler = make_sampler(network, num_samples=num_samples, **how)
        return lambda: jax.tree.map(lambda p: p[0], sampler(*stacked, images, key, words))

    whole, one = jax.jit(full_pass), jax.jit(full_pass)
    every = jnp.arange(num_samples, dtype=jnp.int32)

    def notebook():
        return {
            task: np.stack(
                [
                    np.asarray(one(params, statistics, images, every[s : s + 1])[task][0])
                    for s in range(num_samples)
                ]
            )
            for task in tasks
        }

    ways = {
        "sampler": sampler_of(mesh=sampling_mesh(1)),
        "vectorised": lambda: whole(params, statistics, images, every),
        "notebook": notebook,
    }
    ways = {name: ways[name] for name in ("sampler", *options.against)}
    for size in options.passes:
        ways[f"sampler, {size} a pass"] = sampler_of(mesh=sampling_mesh(1), samples_per_pass=size)
    print(
        f"{jax.devices()[0].device_kind} x {jax.device_count()}, width {options.width}, "
        f"{options.size} px, {options.records} records, T = {num_samples}, {len(tasks)} tasks"
    )
    first, results, seconds = {}, {}, {name: [] for name in ways}
    for name, way in ways.items():
        started = time.perf_counter()
        results[name] = jax.device_get(way())
        first[name] = time.perf_counter() - started
    # In turn, so that a machine that grows slower slows all of them.
    for _ in range(options.repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            jax.device_get(way())
            seconds[name].append(time.perf_counter() - started)
    reference = results["sampler"]
    spread = max(p.std(0).max() for p in reference.values())
    print(f"samples of one record vary by {spread:.1e} (largest standard deviation)")
    for name, times in seconds.items():
        ratio = median(one / ours for one, ours in zip(times, seconds["sampler"], strict=True))
        difference = max(np.abs(results[name][t] - reference[t]).max() for t in tasks)
        print(
            f"{name:22} {median(times):7.2f} s, {ratio:5.2f} x the sampler (medians of "
            f"{options.repeats}; first call {first[name]:.0f} s), largest difference "
            f"{difference:.1e}"
        )


if __name__ == "__main__":
    main()
