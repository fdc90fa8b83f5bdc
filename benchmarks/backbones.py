"""Each backbone beside the same network in PyTorch: a forward pass and a training step.

    python benchmarks/backbones.py                        # all of NAMES
    python benchmarks/backbones.py resnet18 vit_tiny --size 224 --batch 8 --compile 300
    python benchmarks/backbones.py slices_resnet18        # volumes of 4 slices, pooled by attention

Both run in this process on the same cores, on the same images, in turns, so that other load hits
them alike; medians over the rounds, and the ratio of medians. On a busy machine take
`--threads 1 --clock processor`: threads that wait for each other while another program has the
core say more about that program than about either framework. The backbone stands alone, without
DRIFA (and a ResNet without the MFA of its blocks). A step is a forward pass with batch statistics,
the mean square of the last features, backward and Adam. Peak memory is what a step needs beside
weights, moments and images: of JAX what XLA plans, of PyTorch what the process holds more at the
most while it takes one. `--compile SECONDS` times
`torch.compile` of the forward pass too, where it finishes within them. Prints a Markdown table.

`swin_tiny` is left out of NAMES: `transformers` reads no map smaller than its windows, so that it
wants `--size 224`.

Needs the extra "test": the references are those of `transformers`, `efficientnet-lite-pytorch`, and
`tests/reference/densenet.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import math
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

NAMES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "convnext_atto",
    "convnext_tiny",
    "convnextv2_atto",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "densenet121",
    "vit_tiny",
    "deit_tiny",
    "dinov2_small",
    "dinov2_registers_small",
    "dinov3_small",
    "slices_efficientnet_lite0",
)
SLICES = "slices_"
"""Before a name: volumes of NUM_SLICES slices through that backbone, with attention over them."""
NUM_SLICES = 4
WARM_UPS = 2
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
FLOPS_SIZE = 224

Contenders = dict[tuple[str, str], Callable[[], None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, help="of the registry")
    parser.add_argument("--size", type=int, default=112, help="a multiple of 14 and of 16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--compile", type=int, default=0, metavar="SECONDS")
    options = parser.parse_args()

    # Before either framework counts the cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    import torch

    torch.set_num_threads(options.threads)
    print(
        f"{options.size} x {options.size} x 3, batch {options.batch}, float32, CPU, "
        f"threads: {options.threads}, {options.clock} time, medians of {options.rounds}; "
        f"torch {torch.__version__}\n\n"
        "| backbone | parameters | GFLOPs (224 px) | forward: JAX | eager | ratio | compiled | "
        "step: JAX | eager | ratio | peak: JAX | eager |\n" + "| --- " * 12 + "|",
        flush=True,
    )
    for name in options.names:
        print(line(name, options), flush=True)
        gc.collect()


def line(name: str, options) -> str:
    """One row of the table."""
    depth = (NUM_SLICES,) * name.startswith(SLICES)
    images = np.random.default_rng(0).standard_normal(
        (options.batch, *depth, options.size, options.size, 3), np.float32
    )
    num_parameters, planned, contenders = jax_contenders(name, images)
    model = reference(name, options.size)
    contenders |= torch_contenders(model, images)
    if options.compile:
        contenders |= compiled_contender(model, images, options.compile)
    times = measure(contenders, options.rounds, CLOCKS[options.clock])
    measured = peak_bytes(contenders["step", "eager"])

    def ms(what: str, kind: str) -> str:
        seconds = times.get((what, kind))
        return "" if seconds is None else f"{1000 * seconds:.0f} ms"

    def ratio(what: str) -> str:
        return f"{times[what, 'eager'] / times[what, 'JAX']:.2f}x"

    cells = (
        f"`{name}`", f"{num_parameters:,}", f"{flops(name) / 1e9:.2f}",
        ms("forward", "JAX"), ms("forward", "eager"), ratio("forward"), ms("forward", "compiled"),
        ms("step", "JAX"), ms("step", "eager"), ratio("step"),
        f"{planned / 2**20:.0f} MiB", f"{measured / 2**20:.0f} MiB",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def jax_contenders(name: str, images: np.ndarray) -> tuple[int, int, Contenders]:
    """Number of parameters, bytes that a step plans, and what to time."""
    import jax
    import jax.numpy as jnp
    import optax

    from drifa_jax.compilation import (
        KeptMemory,
        compiler_options,
        run_programs_in_the_calling_thread,
        training_options,
    )
    from drifa_jax.models.backbones.contract import TokenBackbone
    from drifa_jax.models.backbones.slice_attention import over_slices
    from drifa_jax.models.functional import Functional
    from drifa_jax.models.registry import BACKBONES
    from drifa_jax.network_options import NetworkOptions
    from drifa_jax.train.optimizer import make_optimizer

    run_programs_in_the_calling_thread()
    network_options = NetworkOptions(mfa_parts=(), padding="symmetric", batch_norm_epsilon=1e-5)
    declared = []

    def build(rngs):
        module = BACKBONES[name.removeprefix(SLICES)](3, options=network_options, rngs=rngs)
        if name.startswith(SLICES):
            module = over_slices(module, options=network_options, rngs=rngs)
        declared[:] = [len(module.plan), isinstance(module, TokenBackbone)]
        return module

    network = Functional(build)
    params, stats = network.init(jax.random.key(0))
    num_stages, has_tokens = declared
    pixels = jnp.asarray(images)

    def last_features(params, stats, x, train):
        state = (x,)
        for number in range(-1, num_stages):
            method = "stem" if number < 0 else "stage"
            at = () if number < 0 else (number,)
            method += "_with_tokens" if has_tokens else ""
            state, stats = network.apply(
                params, stats, *at, *state, train=train, present=None, method=method
            )
            state = state if has_tokens else (state,)
        return state[0], stats

    forward = jax.jit(
        lambda params, stats, x: last_features(params, stats, x, False)[0],
        compiler_options=compiler_options(),
    )
    optimizer = make_optimizer(learning_rate=1e-3)

    def step(params, stats, memory, x):
        def loss(params):
            y, after = last_features(params, stats, x, True)
            return jnp.mean(jnp.square(y)), after

        gradients, after = jax.grad(loss, has_aux=True)(params)
        updates, memory = optimizer.update(gradients, memory, params)
        return optax.apply_updates(params, updates), after, memory

    state = [*jax.tree.map(jnp.copy, (params, stats)), optimizer.init(params)]
    step = jax.jit(step, donate_argnums=(0, 1, 2), compiler_options=training_options(params))
    step = step.lower(*state, pixels).compile()
    planned = step.memory_analysis().temp_size_in_bytes
    kept = KeptMemory(planned)

    def run_step():
        state[:] = kept.run(step, *state, pixels)
        jax.block_until_ready(state)

    return (
        sum(leaf.size for leaf in jax.tree.leaves(params)),
        planned,
        {
            ("forward", "JAX"): lambda: jax.block_until_ready(forward(params, stats, pixels)),
            ("step", "JAX"): run_step,
        },
    )


def reference(name: str, size: int):
    """The same network in PyTorch, called with `[b, c, h, w]`; it returns its last features."""
    import transformers

    if name.startswith(SLICES):
        return slices_reference(reference(name.removeprefix(SLICES), size))

    from drifa_jax.models.backbones.convnext import CONVNEXT_PLANS
    from drifa_jax.models.backbones.densenet import DENSENET_PLANS
    from drifa_jax.models.backbones.swin import SWIN_PLANS
    from drifa_jax.models.backbones.vit import VIT_PLANS

    family = name.rsplit("_", 1)[0]
    if name.startswith("resnet"):
        deep = name == "resnet50"
        widths = [64, 128, 256, 512]
        config = transformers.ResNetConfig(
            embedding_size=64,
            depths={"resnet10": [1, 1, 1, 1], "resnet18": [2, 2, 2, 2]}.get(name, [3, 4, 6, 3]),
            hidden_sizes=[4 * width for width in widths] if deep else widths,
            layer_type="bottleneck" if deep else "basic",
        )
        return transformers.ResNetModel(config)
    if name in CONVNEXT_PLANS:
        plan = CONVNEXT_PLANS[name]
        kind = "ConvNextV2" if plan.version == 2 else "ConvNext"
        config = getattr(transformers, f"{kind}Config")(
            depths=list(plan.depths), hidden_sizes=list(plan.widths), drop_path_rate=0.0
        )
        return getattr(transformers, f"{kind}Model")(config)
    if name in DENSENET_PLANS:
        return densenet_reference().Reference(DENSENET_PLANS[name])
    if family == "efficientnet" and "lite" in name:
        from efficientnet_lite_pytorch import EfficientNet

        model = EfficientNet.from_name(name.replace("_", "-"), image_size=size)
        model._global_params = model._global_params._replace(drop_connect_rate=0.0)
        return model
    if family == "efficientnet":
        width, depth = {"b0": (1.0, 1.0), "b1": (1.0, 1.1), "b2": (1.1, 1.2)}[name[-2:]]
        config = transformers.EfficientNetConfig(
            width_coefficient=width,
            depth_coefficient=depth,
            hidden_dim=int(1280 * width),
            drop_connect_rate=0.0,
        )
        return transformers.EfficientNetModel(config)
    if name in SWIN_PLANS:
        return transformers.SwinModel(
            transformers.SwinConfig(drop_path_rate=0.0, attn_implementation="sdpa")
        )
    plan = VIT_PLANS[name]
    kind = {
        "vit": "ViT",
        "deit": "DeiT",
        "dinov2": "Dinov2",
        "dinov2_registers": "Dinov2WithRegisters",
        "dinov3": "DINOv3ViT",
    }[family]
    registers = {"num_register_tokens": plan.num_registers} if plan.num_registers else {}
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=plan.width,
        num_hidden_layers=plan.depth,
        num_attention_heads=plan.num_heads,
        intermediate_size=4 * plan.width,
        patch_size=plan.patch,
        image_size=size,
        attn_implementation="sdpa",
        **registers,
    )
    return getattr(transformers, f"{kind}Model")(config)


def slices_reference(model):
    """The same with attention over slices, called with `[b, d, c, h, w]`."""
    import torch
    from torch import nn

    class Slices(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model
            self.value, self.gate = nn.LazyLinear(128), nn.LazyLinear(128)
            self.weight = nn.Parameter(torch.zeros(128))

        def forward(self, volumes):
            maps = last_features_of(self.model, volumes.flatten(0, 1))
            maps = maps.unflatten(0, volumes.shape[:2])
            pooled = maps.flatten(3).mean(-1)
            inside = torch.tanh(self.value(pooled)) * torch.sigmoid(self.gate(pooled))
            weights = torch.softmax(inside @ self.weight, 1) * volumes.shape[1]
            return [maps * weights[..., None, None, None]]

    return Slices()


def densenet_reference():
    """The module `tests/reference/densenet.py`."""
    file = Path(__file__).resolve().parents[1] / "tests" / "reference" / "densenet.py"
    spec = importlib.util.spec_from_file_location("densenet_reference", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def last_features_of(model, pixels):
    """Before a head, of whatever kind of reference."""
    if hasattr(model, "extract_features"):
        return model.extract_features(pixels)
    found = model(pixels)
    return found[-1] if isinstance(found, list) else found.last_hidden_state


def torch_contenders(model, images: np.ndarray) -> Contenders:
    import torch

    pixels = channels_first(images)
    with torch.no_grad():
        last_features_of(model, pixels)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)

    def forward():
        model.eval()
        with torch.no_grad():
            last_features_of(model, pixels)

    def step():
        model.train()
        adam.zero_grad()
        last_features_of(model, pixels).square().mean().backward()
        adam.step()

    return {("forward", "eager"): forward, ("step", "eager"): step}


def channels_first(images: np.ndarray):
    """`[b, ..., h, w, c]` as a tensor `[b, ..., c, h, w]`."""
    import torch

    return torch.from_numpy(np.moveaxis(images, -1, -3).copy())


def compiled_contender(model, images: np.ndarray, limit: int) -> Contenders:
    """The forward pass by `torch.compile`; nothing where it does not finish within the limit."""
    import torch

    pixels = channels_first(images)
    call = torch.compile(lambda x: last_features_of(model, x))

    def forward():
        model.eval()
        with torch.no_grad():
            call(pixels)

    try:
        with time_limit(limit):
            forward()
    except Exception as error:  # no C++ compiler, or no time
        print(f"torch.compile: {type(error).__name__}", flush=True)
        return {}
    return {("forward", "compiled"): forward}


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def measure(
    contenders: Contenders, rounds: int, clock: Callable[[], float]
) -> dict[tuple[str, str], float]:
    """Median seconds of each contender, which run in turns."""
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in contenders}
    for number in range(rounds + WARM_UPS):
        for name, run in contenders.items():
            start = clock()
            run()
            if number >= WARM_UPS:
                seconds[name].append(clock() - start)
    return {name: statistics.median(of) for name, of in seconds.items()}


def peak_bytes(run: Callable[[], None]) -> float:
    """What the process holds more, at the most, while it runs; nan where Linux does not say."""
    from drifa_jax.compilation import give_back_freed_memory

    try:
        gc.collect()
        give_back_freed_memory()
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        run()
        return _status("VmHWM") - before
    except OSError:
        return math.nan


def _status(field: str) -> int:
    for entry in Path("/proc/self/status").read_text().splitlines():
        if entry.startswith(field + ":"):
            return 1024 * int(entry.split()[1])
    raise OSError(field)


def flops(name: str) -> int:
    """Of one record of 224 pixels, a multiply-add counting as two, as PyTorch counts."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = reference(name, FLOPS_SIZE).eval()
    depth = (NUM_SLICES,) * name.startswith(SLICES)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        last_features_of(model, torch.zeros(1, *depth, 3, FLOPS_SIZE, FLOPS_SIZE))
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
