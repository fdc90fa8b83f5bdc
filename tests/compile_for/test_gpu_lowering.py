"""Training step and sampler lowered for CUDA, as far as a machine without a GPU can go."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from drifa_jax.models import kernels
from drifa_jax.models.building import build_network
from drifa_jax.models.description import NetworkDescription
from drifa_jax.network_options import NetworkOptions
from drifa_jax.train.losses import TaskLoss
from drifa_jax.train.optimizer import make_optimizer
from drifa_jax.train.state import abstract_state
from drifa_jax.train.step import make_train_step
from drifa_jax.uncertainty.mc_dropout import make_sampler

RECORDS = 2


@pytest.fixture(scope="module")
def network():
    options = NetworkOptions(width=2, backbone="resnet10", compute_dtype="bfloat16")
    return build_network(NetworkDescription({"mri": 1}, {"tumour": 3}, options))


def shapes(tree, *lead):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype), tree)


PIXELS = {"mri": jax.ShapeDtypeStruct((RECORDS, 16, 16, 1), jnp.uint8)}
KEY = jax.eval_shape(lambda: jax.random.key(0))


def lowered(function, *arguments, platform="cuda"):
    with jax.numpy_dtype_promotion("standard"):
        traced = jax.jit(function).trace(*arguments)
        return traced.lower(lowering_platforms=(platform,)).as_text()


def test_training_step_is_lowered_for_cuda_without_what_only_cpus_need(network, monkeypatch):
    """Maps are taken at once, whatever their size; on CPUs the large ones are looped over."""
    monkeypatch.setattr("drifa_jax.models.kernels.record_by_record.LARGE_MAP", 0)
    optimizer = make_optimizer(learning_rate=1e-3)
    step = make_train_step(network, optimizer, {"tumour": TaskLoss(weight=1.0)})
    batch = {"images": PIXELS, "labels": {"tumour": jax.ShapeDtypeStruct((RECORDS,), jnp.int32)}}
    with kernels.batch_over(1, "gpu"):
        text = lowered(step, abstract_state(network, optimizer), batch, KEY)
    assert "stablehlo.convolution" in text and "bf16" in text
    assert "stablehlo.while" not in text


def test_sampler_is_lowered_for_cuda(network):
    sampler = make_sampler(network, num_samples=2, samples_per_pass=2)
    text = lowered(
        sampler,
        shapes(network.abstract_params, 1),
        shapes(network.abstract_statistics, 1),
        PIXELS,
        KEY,
        jax.ShapeDtypeStruct((RECORDS, 2), jnp.uint32),
    )
    assert "stablehlo.convolution" in text
