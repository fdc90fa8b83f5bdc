"""Speed of a training step, the time until the first, and the memory it takes.

    python benchmarks/train_step.py --config full
    python benchmarks/train_step.py --config quick --cache FOLDER       # twice: cold, then warm
    python benchmarks/train_step.py --config quick --against-plain      # ratio to plain formulas
    python benchmarks/train_step.py --config quick --cache FOLDER --allocators LIBRARY.so...
    python benchmarks/train_step.py --parts
    python benchmarks/train_step.py --config full --check               # exactness, no speed

Every variant runs in a process of its own, so that peak memory and the time to the first step
(from the start of Python, imports included) belong to it alone. The plain formulas are
what JAX makes of the same network when it differentiates everything itself.

`--check` compares one step's loss, statistics and gradients with the same in float64: compiled as
training compiles them, and with the library fusions that training leaves out. Both are as far
from float64 as rounding that moves a ReLU or a maximum makes them, and repeat bit by bit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
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
MODALITIES, TASKS = ("mri", "ct"), {"tumour": 5, "stroke": 7}
CHECKED = (0, 1, 2)
"""Seeds of the batches and dropout masks of `--check`."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=CONFIGS, default="quick")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--cache", help="folder of a persistent compilation cache")
    parser.add_argument("--against-plain", action="store_true")
    parser.add_argument(
        "--allocators",
        nargs="+",
        metavar="LIBRARY",
        help="preload each instead of keeping memory; in turns with that, and glibc alone",
    )
    parser.add_argument("--turns", type=int, default=3, help="of --allocators")
    parser.add_argument("--new-memory", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--parts", action="store_true", help="time single mechanisms instead")
    parser.add_argument("--check", action="store_true", help="compare with float64 instead")
    parser.add_argument("--repeats", type=int, default=5, help="of each step of --check")
    parser.add_argument("--variant", choices=("written", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.parts:
        return time_parts()
    if args.check:
        return check(args)
    if args.variant:
        return print(json.dumps(measure(args)))
    if args.allocators:
        return compare_allocators(args)
    variants = ["written", "plain"] if args.against_plain else ["written"]
    results = {variant: in_process(variant) for variant in variants}
    for variant, result in results.items():
        print(f"{variant:8}", "  ".join(f"{name} {value:g}" for name, value in result.items()))
    if args.against_plain:
        ratios = {n: results["written"][n] / results["plain"][n] for n in results["plain"]}
        print("ratio   ", "  ".join(f"{name} {value:.2f}" for name, value in ratios.items()))


def in_process(variant, arguments=None, **environment):
    given = sys.argv[1:] if arguments is None else arguments
    command = [sys.executable, __file__, *given, "--variant", variant]
    run = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env={**os.environ, **environment}
    )
    return json.loads(run.stdout)


def compare_allocators(args):
    """Kept memory against what ready allocators do with none kept, interleaved."""
    given = ["--config", args.config, "--steps", str(args.steps), "--cache", args.cache]
    variants = {"kept": (given, {}), "glibc": ([*given, "--new-memory"], {})}
    for library in args.allocators:
        variants[library] = ([*given, "--new-memory"], {"LD_PRELOAD": library})
    for turn in range(args.turns):
        for name, (arguments, environment) in variants.items():
            result = in_process("written", arguments, **environment)
            shown = ("records/s", "best", "step_cpu_s", "page_faults_a_step", "peak_MiB")
            print(turn, name, "  ".join(f"{key} {result[key]:g}" for key in shown), flush=True)


def measure(args):
    """Numbers of one variant, in this process."""
    import jax
    import numpy as np

    from drifa_jax.compilation import (
        KeptMemory,
        compiled_beside,
        run_programs_in_the_calling_thread,
        training_options,
        without_garbage_collection,
    )
    from drifa_jax.models import kernels
    from drifa_jax.train.optimizer import make_optimizer
    from drifa_jax.train.state import abstract_state, initial_state
    from drifa_jax.train.step import make_train_step

    run_programs_in_the_calling_thread()
    if args.cache:
        jax.config.update("jax_compilation_cache_dir", args.cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    network, losses = network_of(args.config)
    optimizer = make_optimizer(learning_rate=1e-3)
    batch, key = batch_of(args.config, 0), jax.random.key(0)
    batch_size = len(batch["present"]["mri"])
    imported = time.perf_counter()
    # As `train.loop` does it: the state is drawn while XLA compiles the step or loads it.
    cpu = time.process_time()
    formulas = kernels.plain() if args.variant == "plain" else contextlib.nullcontext()
    with without_garbage_collection(), formulas:
        step = jax.jit(
            make_train_step(network, optimizer, losses),
            donate_argnums=0,
            compiler_options=training_options(network.abstract_params),
        )
        traced = step.lower(abstract_state(network, optimizer), batch, key)
        lowered = time.perf_counter()
        compiling = compiled_beside(traced)
        state = jax.block_until_ready(initial_state(*network.init(key), optimizer))
    compiled = compiling.result()
    del traced  # it holds the whole program a second time
    done = time.perf_counter()
    compile_cpu, seconds, cpu = time.process_time() - cpu, [], 0.0
    memory = compiled.memory_analysis()
    kept = KeptMemory(0 if args.new_memory else memory.temp_size_in_bytes)
    for number in range(args.steps + 1):
        begin = time.perf_counter()
        state, sums = kept.run(compiled, state, jax.device_put(batch), key)
        loss = float(sums["total"])
        seconds.append(time.perf_counter() - begin)
        if number == 0:
            first = time.perf_counter() - START
            cpu = time.process_time()
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step_cpu = (time.process_time() - cpu) / args.steps
    if not np.isfinite(loss):
        raise SystemExit(f"the loss is {loss}")
    return {
        "records/s": round(batch_size / statistics.median(seconds[1:]), 2),
        "best": round(batch_size / min(seconds[1:]), 2),
        "first_step_s": round(first, 1),
        "import_build_s": round(imported - START, 1),
        "trace_s": round(lowered - imported, 1),
        "compile_s": round(done - lowered, 1),
        # Seconds of processor time stand still while other programs have the cores.
        "step_cpu_s": round(step_cpu, 2),
        "page_faults_a_step": (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
        // args.steps,
        "trace_compile_cpu_s": round(compile_cpu, 1),
        "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "arguments_MiB": memory.argument_size_in_bytes >> 20,
        "temporary_MiB": memory.temp_size_in_bytes >> 20,
    }


def network_of(config, dtype="float32"):
    """The network of a configuration, and how its tasks are scored."""
    from drifa_jax.models.building import drifa_net
    from drifa_jax.models.functional import Functional
    from drifa_jax.network_options import NetworkOptions
    from drifa_jax.train.losses import TaskLoss

    width, _, _, channels = CONFIGS[config]
    options = NetworkOptions(width=width, compute_dtype=dtype)
    modalities = {m: channels for m in MODALITIES}
    network = Functional(lambda rngs: drifa_net(modalities, TASKS, options=options, rngs=rngs))
    return network, {task: TaskLoss() for task in TASKS}


def batch_of(config, seed):
    """Noise, which is as much work as anatomy."""
    import numpy as np

    _, pixels, batch_size, channels = CONFIGS[config]
    rng = np.random.default_rng(seed)
    return {
        "images": {
            m: rng.integers(0, 256, (batch_size, pixels, pixels, channels), np.uint8)
            for m in MODALITIES
        },
        "labels": {t: rng.integers(0, k, batch_size, np.int32) for t, k in TASKS.items()},
        "present": {m: np.ones(batch_size, bool) for m in MODALITIES},
    }


def check(args):
    """Distances from float64 of a step compiled in two ways, on several batches."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from drifa_jax.compilation import compiler_options, training_options
    from drifa_jax.train.losses import total_loss

    if args.cache:
        jax.config.update("jax_compilation_cache_dir", args.cache)

    def program(dtype, options):
        network, losses = network_of(args.config, dtype)

        def step(params, statistics, batch, key):
            images = {m: x.astype(dtype) / 255 for m, x in batch["images"].items()}

            def objective(params):
                (logits, _), after = network.apply(
                    params, statistics, images, train=True, dropout_key=key
                )
                return total_loss(logits, batch["labels"], losses, None)[0], after

            (total, after), gradients = jax.value_and_grad(objective, has_aux=True)(params)
            return {"loss": total, "statistics": after, "gradients": gradients}

        start = jax.tree.map(
            lambda leaf: jnp.asarray(np.asarray(leaf), dtype), network.init(jax.random.key(0))
        )
        compiled = jax.jit(step, compiler_options=options)
        return lambda seed: jax.device_get(
            compiled(*start, batch_of(args.config, seed), jax.random.key(seed))
        )

    with jax.enable_x64(True):
        exact = [program("float64", compiler_options())(seed) for seed in CHECKED]
    for name, options in (
        ("as training does", training_options(network_of(args.config)[0].abstract_params)),
        ("with library fusions", compiler_options()),
    ):
        run = program("float32", options)
        for seed, expected in zip(CHECKED, exact, strict=True):
            found = run(seed)
            moved = sum(not same_bits(found, run(seed)) for _ in range(args.repeats))
            distances = "  ".join(f"{of} {distance(found[of], expected[of]):.1e}" for of in found)
            print(f"{name:24} batch {seed}  {distances}  repeats that differ {moved}", flush=True)


def distance(found, expected):
    """Length of the difference of two trees over the length of the second."""
    import jax
    import numpy as np

    found, expected = (
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (found, expected)
    )
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def same_bits(one, other):
    import jax
    import numpy as np

    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


def time_parts():
    """Forward and backward of single mechanisms at the stem of the full network, in ms."""
    import jax
    import jax.numpy as jnp

    from drifa_jax.models import kernels
    from drifa_jax.models.kernels.attention_pools import hifa_pools
    from drifa_jax.models.kernels.extremes import max_pool
    from drifa_jax.models.kernels.normalise import normalise
    from drifa_jax.models.kernels.window_pool import max_pool_3x3

    x = jax.random.normal(jax.random.key(0), (16, 64, 64, 64))
    conv = (jax.random.normal(jax.random.key(1), (64, 64)) / 8, jnp.zeros(64))
    row, epsilon = jnp.ones(64), 1e-3
    parts = {
        "HIFA pools": (hifa_pools, ((conv, conv, conv, conv), x)),
        "3x3 max pool": (max_pool_3x3, (x,)),
        "global max": (max_pool, (x,)),
        "batch norm": (lambda x, s, b: normalise(x, s, b, None, epsilon)[0], (x, row, row)),
    }
    for name, (function, arguments) in parts.items():
        ours = gradient_ms(function, arguments)
        with kernels.plain():
            theirs = gradient_ms(function, arguments)
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
