"""The network on a GPU beside its PyTorch twin on the same card: training, evaluation, sampling.

    python benchmarks/gpu.py                                  # all cases, on the first GPU
    python benchmarks/gpu.py --compile                        # torch.compile too: patience
    python benchmarks/gpu.py --deterministic                  # with XLA's and PyTorch's flags
    python benchmarks/gpu.py --device cpu --cases tiny        # that the code runs, nothing more

ResNet-18 at the paper's width and 128 px and ResNet-50 at 224 px, in float32 and bfloat16 (PyTorch:
channels_last, autocast), in turns in one process; medians. Sampling is 20 samples of Monte Carlo
dropout of each record: here what is before the first dropout is computed once; there, as in the
authors' notebook, every sample is a pass of the whole network. Prints a Markdown table; records/s,
share of the card's peak FLOP/s and of its memory bandwidth (as XLA counts both), peak memory, and
seconds from tracing to the end of the first step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

TASKS = {"tumour": 4, "stroke": 2}
MODALITIES = ("mri", "ct")
NUM_SAMPLES = 20


@dataclass(frozen=True)
class Case:
    backbone: str
    size: int
    batch: int
    width: int = 64


CASES = {
    "paper": Case("resnet18", 128, 128),
    "resnet50": Case("resnet50", 224, 64),
    "tiny": Case("resnet10", 32, 2, width=4),
}


@dataclass
class Contender:
    """One way to do one thing.

    Attributes:
      run: does it once, to the end.
      first_seconds: that getting ready took.
      flops, num_bytes: of one run, where they are known.
    """

    run: Callable[[], None]
    first_seconds: float = 0.0
    flops: float | None = None
    num_bytes: float | None = None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", default=["paper", "resnet50"], choices=CASES)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument("--deterministic", action="store_true")
    options = parser.parse_args()
    # Both frameworks share the card.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if options.deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true"
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    os.environ["JAX_PLATFORMS"] = "cuda,cpu" if options.device == "gpu" else "cpu"

    import jax

    if options.device == "gpu" and not any(d.platform == "gpu" for d in _devices(jax)):
        print("no GPU is at hand: nothing was measured", file=sys.stderr)
        return 1
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, deterministic: "
        f"{options.deterministic}; medians of {options.rounds}\n"
    )
    print(
        "| case | dtype | what | framework | records/s | of peak | of bandwidth | first, s "
        "| JAX is faster by |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for name in options.cases:
        for dtype in options.dtypes:
            contenders = of_jax(CASES[name], dtype)
            contenders |= of_torch(CASES[name], dtype, options)
            medians = measured(contenders, options.rounds)
            show(name, CASES[name], dtype, contenders, medians)
    stats = jax.devices()[0].memory_stats() or {}
    print(f"\npeak memory of JAX: {stats.get('peak_bytes_in_use', 0) / 2**30:.2f} GiB")
    return 0


def _devices(jax):
    try:
        return jax.devices()
    except RuntimeError:
        return []


def of_jax(case: Case, dtype: str) -> dict[tuple[str, str], Contender]:
    """Training step, evaluation step and sampler, as training and prediction run them."""
    import jax
    import jax.numpy as jnp

    from drifa_jax.models import kernels
    from drifa_jax.models.building import build_network
    from drifa_jax.models.description import NetworkDescription
    from drifa_jax.network_options import NetworkOptions
    from drifa_jax.train.losses import TaskLoss
    from drifa_jax.train.optimizer import make_optimizer
    from drifa_jax.train.state import initial_state
    from drifa_jax.train.step import make_evaluation_step, make_train_step
    from drifa_jax.uncertainty.mc_dropout import make_sampler, record_words

    options = NetworkOptions(width=case.width, backbone=case.backbone, compute_dtype=dtype)
    network = build_network(NetworkDescription(dict.fromkeys(MODALITIES, 1), TASKS, options))
    optimizer = make_optimizer(learning_rate=1e-3)
    params, statistics = network.init(jax.random.key(0))
    images, labels = drawn(case)
    batch = {
        "images": jax.tree.map(jnp.asarray, images),
        "labels": jax.tree.map(jnp.asarray, labels),
    }
    losses = {task: TaskLoss(weight=1 / len(TASKS)) for task in TASKS}
    platform = jax.devices()[0].platform

    def ready(function, *arguments, donate=()):
        began = time.perf_counter()
        with kernels.batch_over(1, platform):
            lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
        compiled = lowered.compile()
        analysis = compiled.cost_analysis() or {}
        found = Contender(lambda: None, 0.0, analysis.get("flops"), analysis.get("bytes accessed"))
        return compiled, found, began

    copies = jax.tree.map(jnp.copy, (params, statistics))
    state = [initial_state(*copies, optimizer)]
    key = jax.random.key(1)
    step, training, began = ready(
        make_train_step(network, optimizer, losses), state[0], batch, key, donate=0
    )

    def train():
        state[0], sums = step(state[0], batch, key)
        jax.block_until_ready(sums)

    train()
    training.run, training.first_seconds = train, time.perf_counter() - began
    evaluate, evaluation, began = ready(make_evaluation_step(network), params, statistics, batch)
    evaluation.run = lambda: jax.block_until_ready(evaluate(params, statistics, batch))
    evaluation.run()
    evaluation.first_seconds = time.perf_counter() - began
    members = jax.tree.map(lambda x: x[None], (params, statistics))
    words = record_words([str(number) for number in range(case.batch)])
    sample, sampling, began = ready(
        make_sampler(network, num_samples=NUM_SAMPLES), *members, batch["images"], key, words
    )
    sampling.run = lambda: jax.block_until_ready(sample(*members, batch["images"], key, words))
    sampling.run()
    sampling.first_seconds = time.perf_counter() - began
    return {
        ("training step", "JAX"): training,
        ("evaluation", "JAX"): evaluation,
        ("20 samples", "JAX"): sampling,
    }


def of_torch(case: Case, dtype: str, options) -> dict[tuple[str, str], Contender]:
    """The twin in channels_last; bfloat16 by autocast."""
    import torch

    from drifa_jax.interop.torch_drifa_net import TorchDRIFANet

    device = "cuda" if options.device == "gpu" else "cpu"
    torch.use_deterministic_algorithms(options.deterministic)
    images, labels = drawn(case)
    images = {
        m: torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).to(device) for m, x in images.items()
    }
    images = {m: x.contiguous(memory_format=torch.channels_last) for m, x in images.items()}
    labels = {t: torch.from_numpy(y).long().to(device) for t, y in labels.items()}

    def cast():
        return torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    def ways(kind: str, wrap: Callable) -> dict[tuple[str, str], Contender]:
        torch.manual_seed(0)
        model = TorchDRIFANet(
            dict.fromkeys(MODALITIES, 1), TASKS, width=case.width, backbone=case.backbone
        ).to(device, memory_format=torch.channels_last)
        call, adam = wrap(model), torch.optim.Adam(model.parameters(), lr=1e-3)

        def train():
            model.train()
            with cast():
                logits, _ = call(images, dropout=True)
            losses = [
                torch.nn.functional.cross_entropy(logits[t].float(), labels[t]) for t in TASKS
            ]
            adam.zero_grad()
            (sum(losses) / len(losses)).backward()
            adam.step()
            wait()

        def evaluate(times: int = 1, dropout: bool = False):
            model.eval()
            with torch.no_grad(), cast():
                for _ in range(times):
                    call(images, dropout=dropout)
            wait()

        found = {}
        for what, run in (
            ("training step", train),
            ("evaluation", evaluate),
            ("20 samples", lambda: evaluate(NUM_SAMPLES, dropout=True)),
        ):
            began = time.perf_counter()
            run()
            found[what, kind] = Contender(run, time.perf_counter() - began)
        return found

    found = ways("PyTorch eager", lambda model: model)
    return found | (ways("torch.compile", torch.compile) if options.compile else {})


def drawn(case: Case):
    """Images and labels, the same for both."""
    import numpy as np

    draw = np.random.default_rng(0)
    shape = (case.batch, case.size, case.size, 1)
    images = {m: draw.standard_normal(shape).astype(np.float32) for m in MODALITIES}
    labels = {t: draw.integers(0, k, case.batch).astype(np.int32) for t, k in TASKS.items()}
    return images, labels


def measured(contenders, rounds: int) -> dict[tuple[str, str], float]:
    """Median seconds of each, in turns after a round to warm up."""
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, contender in contenders.items():
            began = time.perf_counter()
            contender.run()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(of) for name, of in seconds.items()}


def show(name: str, case: Case, dtype: str, contenders, medians) -> None:
    import jax

    from drifa_jax.chips import memory_bandwidth
    from drifa_jax.train.step_times import peak_flops

    device = jax.devices()[0].device_kind
    peak = peak_flops(device, "tensorfloat32" if dtype == "float32" else dtype)
    bandwidth = memory_bandwidth(device)
    for (what, kind), seconds in sorted(medians.items()):
        of = contenders[what, kind]
        share = f"{of.flops / seconds / peak:.0%}" if of.flops and peak else ""
        moved = f"{of.num_bytes / seconds / bandwidth:.0%}" if of.num_bytes and bandwidth else ""
        ratio = "" if kind == "JAX" else f"{seconds / medians[what, 'JAX']:.2f}x"
        print(
            f"| {name} | {dtype} | {what} | {kind} | {case.batch / seconds:.1f} | {share} | "
            f"{moved} | {of.first_seconds:.1f} | {ratio} |",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
