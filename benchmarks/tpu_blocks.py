"""Single blocks with their gradients, compiled for one TPU chip: where their traffic comes from.

    python benchmarks/tpu_blocks.py mfa stem block              # 64 records, width 64, 128 px
    python benchmarks/tpu_blocks.py stem --traced-for cpu       # with the kernels of other devices
    python benchmarks/tpu_blocks.py block --top 20              # what moves most, by instruction

Needs libtpu and no TPU. Tables: docs/performance.md.
"""

from __future__ import annotations

import argparse
import time

from drifa_jax.compile_for.slices import prepare_environment, slices_named


def blocks():
    """Name -> module and shapes of what it reads and answers."""
    import jax
    from flax import nnx

    from drifa_jax.models.backbones.resnet import Stem
    from drifa_jax.models.mfa import MFA
    from drifa_jax.models.rra import RRABlock
    from drifa_jax.network_options import NetworkOptions

    options = NetworkOptions(compute_dtype="bfloat16")
    rngs = nnx.Rngs(params=jax.random.key(0))
    of_block = {"options": options, "rngs": rngs}
    return {
        "mfa": (MFA(64, dtype=options.dtype, rngs=rngs), (64, 64, 64), (64, 64, 64)),
        "mfa1": (MFA(64, dtype=options.dtype, rngs=rngs), (32, 32, 64), (32, 32, 64)),
        "stem": (Stem(1, **of_block), (128, 128, 1), (32, 32, 64)),
        "block": (RRABlock(64, 64, 1, **of_block), (32, 32, 64), (32, 32, 64)),
        "block2": (RRABlock(64, 128, 2, **of_block), (32, 32, 64), (16, 16, 128)),
        "block4": (RRABlock(512, 512, 1, **of_block), (4, 4, 512), (4, 4, 512)),
    }


def with_gradient(module):
    """`(weights, statistics, x, cotangent)` -> output, statistics, gradients; and the first two."""
    import inspect

    import jax
    from flax import nnx

    definition, weights, statistics = nnx.split(module, nnx.Param, nnx.BatchStat)
    options = (
        {"train": True} if "train" in inspect.signature(type(module).__call__).parameters else {}
    )

    def function(weights, statistics, x, cotangent):
        def forward(weights, x):
            copy = nnx.merge(definition, weights, statistics, copy=True)
            return copy(x, **options), nnx.state(copy, nnx.BatchStat)

        y, back, after = jax.vjp(forward, weights, x, has_aux=True)
        return y, after, *back(cotangent)

    return function, weights, statistics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="+")
    parser.add_argument("--topology", default="v5e-4")
    parser.add_argument("--records", type=int, default=64)
    parser.add_argument("--traced-for", default="tpu", choices=("tpu", "cpu"))
    parser.add_argument("--top", type=int, default=0)
    args = parser.parse_args()
    prepare_environment()

    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from drifa_jax.compile_for.program_text import parse
    from drifa_jax.compile_for.work import work_of
    from drifa_jax.models import kernels

    chip = slices_named(args.topology).devices()[:1]
    on_chip = NamedSharding(Mesh(chip, ("data",), axis_types=(AxisType.Auto,)), PartitionSpec())

    def described(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_chip)

    print("| block | HBM, MB | VMEM, MB | cycles expected, M | temporary, MiB | compile, CPU s |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for name in args.names:
        module, *shapes = blocks()[name]
        function, *weights = with_gradient(module)
        maps = [
            jax.ShapeDtypeStruct((args.records, *shape), jnp.bfloat16, sharding=on_chip)
            for shape in shapes
        ]
        began = time.process_time()
        with kernels.batch_over(1, args.traced_for):
            lowered = jax.jit(function).lower(*jax.tree.map(described, weights), *maps)
        compiled = lowered.compile()
        seconds = time.process_time() - began
        work = work_of(parse(compiled.as_text()), 1)
        temporary = compiled.memory_analysis().temp_size_in_bytes
        print(
            f"| {name} | {work.hbm_bytes / 1e6:.0f} | {work.vmem_bytes / 1e6:.0f} | "
            f"{work.cycles / 1e6:.2f} | {temporary / 2**20:.0f} | {seconds:.0f} |",
            flush=True,
        )
        for access in work.accesses[: args.top]:
            print(
                f"{access.hbm_bytes / 1e6:9.1f} MB x{access.times:<3} {access.cycles / 1e3:8.0f}k "
                f"{access.opcode:16} {access.source[-80:]}"
            )


if __name__ == "__main__":
    main()
