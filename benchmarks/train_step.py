"""Speed of a training step, the time until the first, and the memory it takes.

    python benchmarks/train_step.py --config full
    python benchmarks/train_step.py --config quick --cache FOLDER       # twice: cold, then warm
    python benchmarks/train_step.py --config quick --against-plain      # ratio to plain formulas
    python benchmarks/train_step.py --parts

Every variant runs in a process of its own, so that peak memory and the time to the first step
(from the start of Python, imports included) belong to it alone. The plain formulas are those of
the tests: what JAX makes of the same network when it differentiates everything itself.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

START = time.perf_counter()

CONFIGS = {
    # name: width, pixels a side, batch size, channels
    "full": (64, 128, 16, 3),
    "quick": (16, 64, 32, 1),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=CONFIGS, default="quick")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--cache", help="folder of a persistent compilation cache")
    parser.add_argument("--against-plain", action="store_true")
    parser.add_argument("--parts", action="store_true", help="time single mechanisms instead")
    parser.add_argument("--variant", choices=("written", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.parts:
        return time_parts()
    if args.variant:
        return print(json.dumps(measure(args)))
    variants = ["written", "plain"] if args.against_plain else ["written"]
    results = {variant: in_process(variant) for variant in variants}
    for variant, result in results.items():
        print(f"{variant:8}", "  ".join(f"{name} {value:g}" for name, value in result.items()))
    if args.against_plain:
        ratios = {n: results["written"][n] / results["plain"][n] for n in results["plain"]}
        print("ratio   ", "  ".join(f"{name} {value:.2f}" for name, value in ratios.items()))


def in_process(variant):
    command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def measure(args):
    """Numbers of one variant, in this process."""
    import jax
    import numpy as np

    from drifa_jax.compilation import compiler_options, give_back_freed_memory
    from drifa_jax.models.drifa_net import NetworkOptions, drifa_net
    from drifa_jax.models.functional import Functional
    from drifa_jax.train.losses import TaskLoss
    from drifa_jax.train.optimizer import make_optimizer
    from drifa_jax.train.state import initial_state
    from drifa_jax.train.step import make_train_step

    if args.cache:
        jax.config.update("jax_compilation_cache_dir", args.cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if args.variant == "plain":
        use_plain_formulas()
    width, pixels, batch_size, channels = CONFIGS[args.config]
    modalities, tasks = {"mri": channels, "ct": channels}, {"tumour": 5, "stroke": 7}
    network = Functional(
        lambda rngs: drifa_net(modalities, tasks, options=NetworkOptions(width=width), rngs=rngs)
    )
    optimizer = make_optimizer(learning_rate=1e-3)
    key = jax.random.key(0)
    state = jax.block_until_ready(initial_state(*network.init(key), optimizer))
    initialised = time.perf_counter()
    rng = np.random.default_rng(0)
    batch = {
        "images": {
            m: rng.integers(0, 256, (batch_size, pixels, pixels, c), np.uint8)
            for m, c in modalities.items()
        },
        "labels": {t: rng.integers(0, k, batch_size, np.int32) for t, k in tasks.items()},
        "present": {m: np.ones(batch_size, bool) for m in modalities},
    }
    losses = {task: TaskLoss() for task in tasks}
    step = jax.jit(make_train_step(network, optimizer, losses), donate_argnums=0)
    cpu = time.process_time()
    traced = step.lower(state, batch, key)
    lowered = time.perf_counter()
    compiled = traced.compile(compiler_options())
    del traced  # it holds the whole program a second time
    give_back_freed_memory()
    done = time.perf_counter()
    compile_cpu, seconds, cpu = time.process_time() - cpu, [], 0.0
    for number in range(args.steps + 1):
        begin = time.perf_counter()
        state, sums = compiled(state, batch, key)
        loss = float(sums["total"])
        seconds.append(time.perf_counter() - begin)
        if number == 0:
            first = time.perf_counter() - START
            cpu = time.process_time()
    step_cpu = (time.process_time() - cpu) / args.steps
    if not np.isfinite(loss):
        raise SystemExit(f"the loss is {loss}")
    memory = compiled.memory_analysis()
    return {
        "records/s": round(batch_size / statistics.median(seconds[1:]), 2),
        "best": round(batch_size / min(seconds[1:]), 2),
        "first_step_s": round(first, 1),
        "import_init_s": round(initialised - START, 1),
        "trace_s": round(lowered - initialised, 1),
        "compile_s": round(done - lowered, 1),
        # Seconds of processor time stand still while other programs have the cores.
        "step_cpu_s": round(step_cpu, 2),
        "trace_compile_cpu_s": round(compile_cpu, 1),
        "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "arguments_MiB": memory.argument_size_in_bytes >> 20,
        "temporary_MiB": memory.temp_size_in_bytes >> 20,
    }


def use_plain_formulas():
    """Has JAX differentiate what the package differentiates by hand."""
    import jax.numpy as jnp

    from drifa_jax.models import backbone, batch_norm, mfa, pooling

    mfa.hifa_pools = plain_hifa_pools
    pooling._extreme = lambda reduction, x: reduction(x, axis=pooling.spatial_axes(x))
    batch_norm._normalise_once = plain_normalise
    backbone.max_pool_3x3 = lambda x, padding: plain_max_pool(jnp.asarray(x))


def plain_hifa_pools(conv1, conv2, conv3, conv4, x):
    import jax

    from drifa_jax.models.pointwise import pointwise
    from drifa_jax.models.pooling import average_pool, max_pool

    gate1 = jax.nn.sigmoid(pointwise(x, conv1))
    gate2 = jax.nn.sigmoid(pointwise(gate1, conv2))
    gate3 = jax.nn.sigmoid(pointwise(gate1 + gate2, conv3))
    deepest = max_pool(pointwise(gate3, conv4))
    return average_pool(gate1), max_pool(gate2), average_pool(gate3), deepest


def plain_normalise(x, scale, bias, present, epsilon):
    import jax.numpy as jnp

    axes = tuple(range(x.ndim - 1))
    mean, var = jnp.mean(x, axes), jnp.var(x, axes)
    return (x - mean) / jnp.sqrt(var + epsilon) * scale + bias, mean, var


def plain_max_pool(x):
    from jax import lax

    return lax.reduce_window(x, -float("inf"), lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")


def time_parts():
    """Forward and backward of single mechanisms at the stem of the full network, in ms."""
    import jax
    import jax.numpy as jnp

    from drifa_jax.models.batch_norm import _normalise
    from drifa_jax.models.hifa_pools import hifa_pools
    from drifa_jax.models.pooling import max_pool
    from drifa_jax.models.window_pool import max_pool_3x3

    x = jax.random.normal(jax.random.key(0), (16, 64, 64, 64))
    conv = (jax.random.normal(jax.random.key(1), (64, 64)) / 8, jnp.zeros(64))
    row, epsilon = jnp.ones(64), 1e-3
    pairs = {
        "HIFA pools": (hifa_pools, plain_hifa_pools, (conv, conv, conv, conv, x)),
        "3x3 max pool": (max_pool_3x3, plain_max_pool, (x,)),
        "global max": (max_pool, lambda x: jnp.max(x, (1, 2)), (x,)),
        "batch norm": (
            lambda x, s, b: _normalise(x, s, b, None, epsilon)[0],
            lambda x, s, b: plain_normalise(x, s, b, None, epsilon)[0],
            (x, row, row),
        ),
    }
    for name, (written, plain, arguments) in pairs.items():
        ours, theirs = gradient_ms(written, arguments), gradient_ms(plain, arguments)
        print(f"{name:14} written {ours:7.1f} ms  plain {theirs:7.1f} ms  x{theirs / ours:.2f}")


def gradient_ms(function, arguments):
    import jax
    import jax.numpy as jnp

    def loss(*arguments):
        return sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(function(*arguments)))

    gradient = jax.jit(jax.grad(loss, tuple(range(len(arguments)))))
    jax.block_until_ready(gradient(*arguments))
    seconds = []
    for _ in range(15):
        begin = time.perf_counter()
        jax.block_until_ready(gradient(*arguments))
        seconds.append(time.perf_counter() - begin)
    return 1e3 * min(seconds)


if __name__ == "__main__":
    main()
