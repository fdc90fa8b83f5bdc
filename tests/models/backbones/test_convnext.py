import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from flax import nnx
from transformers import ConvNextConfig, ConvNextModel, ConvNextV2Config, ConvNextV2Model

from drifa_jax.interop.checkpoint_names import CONVNEXT
from drifa_jax.models.backbones.convnext import (
    CONVNEXT_PLANS,
    ConvNeXt,
    ConvNeXtPlan,
    relative_response,
)
from drifa_jax.models.functional import Functional
from drifa_jax.network_options import NetworkOptions

CONFIGS = {1: (ConvNextConfig, ConvNextModel), 2: (ConvNextV2Config, ConvNextV2Model)}


def reference(plan, num_channels=3):
    config, model = CONFIGS[plan.version]
    return model(
        config(
            num_channels=num_channels,
            num_stages=len(plan.depths),
            depths=plan.depths,
            hidden_sizes=plan.widths,
        )
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("version", [1, 2])
def test_features_equal_those_of_transformers(
    version, dtype, drawn, features_of, assert_equal_features
):
    plan = ConvNeXtPlan((2, 1, 2), (6, 10, 16), version)
    model = drawn(reference(plan))
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("layernorm.")}
    # 38 is no multiple of 4, and 9 none of 2: what is left over is not read.
    images = np.random.default_rng(0).normal(size=(2, 38, 48, 3))
    ours = features_of(functools.partial(ConvNeXt, plan=plan), CONVNEXT, state, images, dtype)
    model = model.to(torch.float64 if dtype is np.float64 else torch.float32)
    pixels = torch.from_numpy(images.astype(dtype)).movedim(-1, 1)
    theirs = model(pixels, output_hidden_states=True).hidden_states
    # The first of theirs is that before the first resolution, the stem.
    assert_equal_features(ours, theirs, dtype)


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto", "convnext_tiny"])
def test_parameters_of_a_whole_network_are_those_of_transformers(name, num_parameters):
    plan = CONVNEXT_PLANS[name]
    with torch.device("meta"):
        model = reference(plan)
    # Their layer norm behind the global pool belongs to the classifier.
    expected = sum(p.numel() for p in model.parameters()) - 2 * plan.widths[-1]
    assert num_parameters(functools.partial(ConvNeXt, plan=plan)) == expected


def test_stages_declare_channels_reduction_and_dropout():
    plan = ConvNeXtPlan((1, 1), (4, 8))
    stages = ConvNeXt(1, plan, options=NetworkOptions(), rngs=nnx.Rngs(params=0)).plan
    assert [(s.channels, s.reduction, s.dropout) for s in stages] == [(4, 4, True), (8, 8, False)]


def test_volumes_pass_through_the_same_layers():
    plan = ConvNeXtPlan((1, 1), (4, 6))
    volume = Functional(
        lambda rngs: ConvNeXt(1, plan, num_axes=3, options=NetworkOptions(), rngs=rngs)
    )
    params, statistics = volume.init(jax.random.key(0))

    @jax.jit
    def features(x):
        x, _ = volume.apply(params, statistics, x, train=False, method="stem")
        for number in (0, 1):
            x, _ = volume.apply(params, statistics, number, x, train=False, method="stage")
        return x

    assert features(jnp.ones((1, 8, 8, 16, 1))).shape == (1, 1, 1, 2, 6)


def test_silent_channels_have_a_gradient():
    x = jnp.zeros((1, 2, 2, 3)).at[..., 0].set(1.0)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(relative_response(x))))(x)
    assert np.isfinite(gradient).all()


def test_a_plan_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match=r"depths are \(1, 2\) but widths \(8,\)"):
        ConvNeXtPlan((1, 2), (8,))
