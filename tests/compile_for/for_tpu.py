"""Compiles for TPUs what `test_tpu_compiler.py` looks at, and prints it as one JSON object.

A process of its own: libtpu breaks down under the flags that the tests give XLA on CPUs.
"""

from __future__ import annotations

import json
import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from drifa_jax import sharding
from drifa_jax.compile_for.program_text import parse
from drifa_jax.compile_for.report import compile_for, in_words
from drifa_jax.compile_for.slices import QUIET, slices_named
from drifa_jax.compile_for.stand_in import open_or_stand_in
from drifa_jax.compile_for.work import work_of
from drifa_jax.config import from_mapping, modality
from drifa_jax.models import kernels
from drifa_jax.models.mfa import MFA

PLAIN = {
    "backbone": "resnet10",
    "width": 4,
    **{parts: () for parts in ("mfa_parts", "stage_mfa_parts", "mifa_parts")},
}
"""The attention is compiled by itself; here it would only take time."""

TOO_MANY = 2**16


def compiled(count=1, only=("step",), records=64, size=32, model=PLAIN, train=None, **groups):
    pictures = modality(height=size, width=size, root="/nowhere", task="tumour")
    config = from_mapping(
        {
            "data": {"source": "files", "modalities": {"mri": pictures}},
            "model": model,
            "train": {"batch_size": 16} | (train or {}),
            "eval": {"batch_size": 16},
            "uncertainty": {"num_mc_samples": 4},
            **groups,
        }
    )
    dataset, _ = open_or_stand_in(config.data, records)
    report = compile_for(config, dataset, slices_named("v5e-4", count), only=only, search=False)
    return report.to_json() | {"words": in_words(report)}


def attention_megabytes(*shape):
    """Through HBM, of an MFA with its gradient on one chip."""
    mesh = Mesh(slices_named("v5e-4").devices()[:1], ("data",), axis_types=(AxisType.Auto,))
    on_chip = NamedSharding(mesh, PartitionSpec())
    definition, weights = nnx.split(
        MFA(shape[-1], dtype=jnp.bfloat16, rngs=nnx.Rngs(params=jax.random.key(0)))
    )

    def with_gradient(weights, x, cotangent):
        y, back = jax.vjp(lambda weights, x: nnx.merge(definition, weights)(x), weights, x)
        return y, back(cotangent)

    def described(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_chip)

    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=on_chip)
    with kernels.batch_over(1, "tpu"):
        lowered = jax.jit(with_gradient).lower(jax.tree.map(described, weights), x, x)
    return work_of(parse(lowered.compile().as_text()), 1).hbm_bytes / 1e6


def main() -> None:
    os.environ.update(QUIET)
    found = {
        "all": compiled(only=("step", "evaluation", "sampler")),
        "ensemble": compiled(ensemble={"num_members": 4}, mesh={"ensemble": 4}),
        "two slices": compiled(count=2),
        "bfloat16": compiled(model=PLAIN | {"compute_dtype": "bfloat16"}),
        "too large": compiled(records=TOO_MANY, size=256, train={"batch_size": TOO_MANY}),
        "mfa of the stem": attention_megabytes(64, 64, 64, 64),
        "mfa of the first stage": attention_megabytes(64, 32, 32, 64),
    }
    sharding.LARGE = 64
    found["in pieces"] = compiled()
    found["two in pieces"] = compiled(count=2)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
