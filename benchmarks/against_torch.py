"""The JAX network beside its PyTorch twin: the time of a forward pass and of a training step.

    python benchmarks/against_torch.py --width 16 --size 64 --batch 8 --threads 2

Both run in this process on the same device, on the same images and weights, in turns, so that
other load hits them alike; medians over the rounds, and the ratio of medians. A step is forward
with Monte Carlo dropout and batch statistics, cross-entropy, backward and Adam. Prints a Markdown
table.

`--compile forward` adds `torch.compile` of the forward pass, `--compile all` of the training step
too. It needs a C++ compiler and much patience: each of several hundred kernels is compiled on its
own. Set TORCHINDUCTOR_CACHE_DIR, and a second run finds them there.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--compile", choices=("forward", "all"), help="time torch.compile too")
    options = parser.parse_args()

    contenders = jax_contenders(options) | torch_contenders(options)
    medians = measure(contenders, options.rounds)
    print(report(medians, options))


def jax_contenders(options) -> dict[tuple[str, str], Callable[[], None]]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from drifa_jax.compilation import (
        KeptMemory,
        compiler_options,
        run_programs_in_the_calling_thread,
        training_options,
    )
    from drifa_jax.models.building import build_network
    from drifa_jax.models.description import NetworkDescription
    from drifa_jax.network_options import NetworkOptions
    from drifa_jax.train.optimizer import make_optimizer

    run_programs_in_the_calling_thread()
    network = NetworkDescription(
        {"mri": 1, "ct": 1}, {"tumour": 4, "stroke": 2}, NetworkOptions(width=options.width)
    )
    shape = (options.batch, options.size, options.size, 1)
    images = {m: jnp.asarray(x) for m, x in random_images(np, shape).items()}
    labels = {t: jnp.asarray(y) for t, y in random_labels(np, network.tasks, options.batch).items()}
    optimizer = make_optimizer(learning_rate=1e-3)
    params, stats = build_network(network).init(jax.random.key(0))
    memory = optimizer.init(params)

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def forward(params, stats, images):
        return build_network(network).apply(params, stats, images, train=False)[0][0]

    def step(params, stats, memory, images, labels, key):
        def loss(params):
            (logits, _), after = build_network(network).apply(
                params, stats, images, train=True, dropout_key=key
            )
            losses = [
                jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits[t], labels[t]))
                for t in labels
            ]
            return sum(losses) / len(losses), after

        gradients, after = jax.grad(loss, has_aux=True)(params)
        updates, memory = optimizer.update(gradients, memory, params)
        return optax.apply_updates(params, updates), after, memory

    step = jax.jit(step, donate_argnums=(0, 1, 2), compiler_options=training_options(params))
    run_params, run_stats = jax.tree.map(jnp.copy, (params, stats))
    state = [run_params, run_stats, memory]
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    step = step.lower(*state, images, labels, next(keys)).compile()
    kept = KeptMemory(step.memory_analysis().temp_size_in_bytes)

    def run_step():
        state[:] = kept.run(step, *state, images, labels, next(keys))
        jax.block_until_ready(state)

    return {
        ("forward", "JAX"): lambda: jax.block_until_ready(forward(params, stats, images)),
        ("training step", "JAX"): run_step,
    }


def torch_contenders(options) -> dict[tuple[str, str], Callable[[], None]]:
    import numpy as np
    import torch

    from drifa_jax.interop.torch_drifa_net import TorchDRIFANet

    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    tasks = {"tumour": 4, "stroke": 2}
    shape = (options.batch, options.size, options.size, 1)
    images = {
        m: torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).to(device)
        for m, x in random_images(np, shape).items()
    }
    labels = {
        t: torch.from_numpy(y).long().to(device)
        for t, y in random_labels(np, tasks, options.batch).items()
    }

    def contenders(kind: str, wrap: Callable) -> dict[tuple[str, str], Callable[[], None]]:
        torch.manual_seed(0)
        model = TorchDRIFANet({"mri": 1, "ct": 1}, tasks, width=options.width).to(device)
        call = wrap(model)
        adam = torch.optim.Adam(model.parameters(), lr=1e-3)

        def forward():
            model.eval()
            with torch.no_grad():
                call(images)
            wait()

        def step():
            model.train()
            logits, _ = call(images, dropout=True)
            losses = [torch.nn.functional.cross_entropy(logits[t], labels[t]) for t in labels]
            adam.zero_grad()
            (sum(losses) / len(losses)).backward()
            adam.step()
            wait()

        return {("forward", kind): forward, ("training step", kind): step}

    found = contenders("PyTorch eager", lambda model: model)
    if options.compile:
        compiled = contenders("torch.compile", torch.compile)
        if options.compile == "forward":
            compiled = {name: run for name, run in compiled.items() if name[0] == "forward"}
        found |= compiled
    return found


def random_images(np, shape):
    generator = np.random.default_rng(0)
    return {m: generator.standard_normal(shape).astype(np.float32) for m in ("mri", "ct")}


def random_labels(np, tasks, batch):
    generator = np.random.default_rng(1)
    return {t: generator.integers(0, k, batch).astype(np.int32) for t, k in tasks.items()}


def measure(contenders, rounds: int) -> dict[tuple[str, str], float | str]:
    """Median seconds of each contender, which run in turns; or why one could not."""
    results: dict[tuple[str, str], list[float] | str] = {name: [] for name in contenders}
    for number in range(rounds + 2):  # two rounds to compile and warm up
        for name, run in contenders.items():
            if isinstance(results[name], str):
                continue
            try:
                start = time.perf_counter()
                run()
                seconds = time.perf_counter() - start
            except Exception as error:  # torch.compile needs a C++ compiler, for one
                results[name] = type(error).__name__
                continue
            if number >= 2:
                results[name].append(seconds)
    return {n: r if isinstance(r, str) else statistics.median(r) for n, r in results.items()}


def report(medians, options) -> str:
    import jax
    import torch

    device = jax.devices()[0].device_kind
    lines = [
        f"width {options.width}, {options.size} x {options.size}, batch {options.batch}, two "
        f"modalities, two tasks, float32; {device}, {options.threads} threads; "
        f"jax {jax.__version__}, torch {torch.__version__}; medians of {options.rounds}",
        "",
        "| what | framework | ms | records/s | JAX is faster by |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (what, kind), seconds in sorted(medians.items()):
        if isinstance(seconds, str):
            lines.append(f"| {what} | {kind} | failed: {seconds} | | |")
            continue
        ratio = seconds / medians[(what, "JAX")]
        lines.append(
            f"| {what} | {kind} | {1000 * seconds:.0f} | {options.batch / seconds:.1f} | "
            + ("" if kind == "JAX" else f"{ratio:.2f}x")
            + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
