"""What each fusion and readout costs a record, beside concatenation: forward, and a training step.

    python benchmarks/fusion.py          # small: resnet18, width 16, 64 px
    python benchmarks/fusion.py --backbone efficientnet_lite0 --side 160

All variants are compiled first and then run in turns, so that what else the machine does meets all
alike; printed are medians, and medians of the ratio to concatenation within a turn. Blocks inside
branches are plain in all of them: only what lies between and after the stages differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from drifa_jax.models.building import build_network
from drifa_jax.models.description import NetworkDescription
from drifa_jax.network_options import NetworkOptions
from drifa_jax.train.losses import TaskLoss
from drifa_jax.train.optimizer import make_optimizer
from drifa_jax.train.state import initial_state
from drifa_jax.train.step import make_train_step

APART = {"mfa_parts": (), "stage_mfa_parts": (), "mifa_parts": ()}
BOTH = ("hifa", "clia")
VARIANTS = {
    "concatenation": APART,
    "MFA and MIFA (drifa)": {"mfa_parts": (), "stage_mfa_parts": BOTH},
    "MIFA alone": {"mfa_parts": (), "stage_mfa_parts": ()},
    "identity gates": {**APART, "fusion": "identity_gates"},
    "experts": {**APART, "readout": "experts"},
    "identity gates, experts": {**APART, "fusion": "identity_gates", "readout": "experts"},
}
MODALITIES, CLASSES = {"mri": 3, "ct": 3}, 7


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=7)
    args = parser.parse_args()
    programs = {name: compiled(args, options) for name, options in VARIANTS.items()}
    spent = {name: {"forward": [], "step": []} for name in programs}
    for _ in range(args.turns):
        for name, (_, *both) in programs.items():
            for kind, run in zip(("forward", "step"), both, strict=True):
                started = time.perf_counter()
                jax.block_until_ready(run())
                spent[name][kind].append((time.perf_counter() - started) * 1e3 / args.batch)
    print(f"{args.backbone}, {args.side} px, batch {args.batch}, {jax.devices()[0].device_kind}")
    print("| variant | parameters | forward, ms a record | ratio | step, ms a record | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    reference = spent["concatenation"]
    for name, kinds in spent.items():
        cells = [name, f"{programs[name][0]:,}"]
        for kind, values in kinds.items():
            ratios = np.divide(values, reference[kind])
            cells += [f"{statistics.median(values):.2f}", f"{statistics.median(ratios):.2f}"]
        print("| " + " | ".join(cells) + " |")


def compiled(args, options):
    """Number of parameters, and calls that run forward and one training step."""
    own = NetworkOptions(width=args.width, backbone=args.backbone, **options)
    network = build_network(NetworkDescription(MODALITIES, {"task": CLASSES}, own))
    params, statistics_ = network.init(jax.random.key(0))
    draw = np.random.default_rng(0)
    shape = (args.batch, args.side, args.side, 3)
    images = {m: jnp.asarray(draw.random(shape), jnp.float32) for m in MODALITIES}
    labels = {"task": jnp.asarray(draw.integers(0, CLASSES, args.batch), jnp.int32)}
    forward = jax.jit(lambda p, s, x: network.apply(p, s, x, train=False)[0][0])
    optimizer = make_optimizer(learning_rate=1e-3)
    loss = TaskLoss()
    experts = network.abstract_params["heads"]["task"].get("log_temperatures", {})
    loss = dataclasses.replace(loss, expert_weights=tuple((e, 1 / len(experts)) for e in experts))
    step = jax.jit(make_train_step(network, optimizer, {"task": loss}))
    state = initial_state(params, statistics_, optimizer)
    batch = {"images": images, "labels": labels, "present": None}
    key = jax.random.key(1)

    def run_forward():
        return forward(params, statistics_, images)

    def run_step():
        return step(state, batch, key)[1]

    jax.block_until_ready((run_forward(), run_step()))
    return int(optax.tree.size(params)), run_forward, run_step


if __name__ == "__main__":
    main()
