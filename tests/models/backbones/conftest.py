"""Backbones against independent PyTorch networks that hold the same random weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax.interop.checkpoint_names import checkpoint_slots
from drifa_jax.interop.tensors import flatten, read_slots, unflatten
from drifa_jax.models.backbones.contract import TokenBackbone
from drifa_jax.models.functional import Functional
from drifa_jax.network_options import NetworkOptions

# Features are sums of a few hundred products, in a few dozen layers: rounding of 6e-8 (1e-16 in
# float64) grows to about a hundred times itself.
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-10}


@pytest.fixture
def drawn():
    """Fills a PyTorch network with random weights, so that no zero or one hides a mistake."""
    torch = pytest.importorskip("torch")

    def fill(model, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if not tensor.is_floating_point():
                    continue
                spread = 1.0 if tensor.ndim < 2 else (3 / tensor[0].numel()) ** 0.5
                tensor.copy_(spread * (2 * torch.rand(tensor.shape, generator=generator) - 1))
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.5)
        return model.eval()

    return fill


@pytest.fixture
def features_of():
    """Features of our backbone at the stem and every stage, with the weights of a state dict.

    Those of a transformer are whole sequences `[b, n, c]`, tokens without a place first.
    """

    def run(build, rules, state, images, dtype, **layers):
        with jax.enable_x64(dtype is np.float64):
            options = NetworkOptions(compute_dtype=np.dtype(dtype).name, **layers)
            stages, has_tokens = [], []

            def make(rngs):
                module = build(images.shape[-1], options=options, rngs=rngs)
                stages[:] = module.plan
                has_tokens[:] = [isinstance(module, TokenBackbone)]
                return module

            backbone = Functional(make)
            params, statistics = load(backbone, rules, state, dtype)

            def method(name, *args):
                return backbone.apply(params, statistics, *args, train=False, method=name)[0]

            def features(params, statistics, images):
                maps = [method("stem", images)]
                for number in range(len(stages)):
                    maps.append(method("stage", number, maps[-1]))
                return maps

            def tokens(params, statistics, images):
                states = [method("stem_with_tokens", images)]
                for number in range(len(stages)):
                    states.append(method("stage_with_tokens", number, *states[-1]))
                return [
                    jnp.concatenate([t, x.reshape(len(x), -1, x.shape[-1])], 1) for x, t in states
                ]

            call = tokens if has_tokens[0] else features
            return [np.asarray(x) for x in jax.jit(call)(params, statistics, images.astype(dtype))]

    return run


def load(backbone: Functional, rules, state, dtype):
    """Parameters and statistics from a PyTorch state dict, every tensor of which must fit."""
    shapes = {
        path: leaf.shape
        for path, leaf in flatten(
            merged(backbone.abstract_params, backbone.abstract_statistics)
        ).items()
    }
    arrays = {
        name: tensor.detach().cpu().numpy().astype(dtype)
        for name, tensor in state.items()
        if tensor.is_floating_point()
    }
    tensors = read_slots(arrays, checkpoint_slots(shapes, rules, arrays), "the state dict")
    statistics = set(flatten(backbone.abstract_statistics))
    return tuple(
        unflatten({path: x for path, x in tensors.items() if (path in statistics) == held})
        for held in (False, True)
    )


def merged(a, b):
    return unflatten(flatten(a) | flatten(b))


@pytest.fixture
def assert_equal_features():
    """Each of our maps `[b, *space, c]` against a PyTorch map `[b, c, *space]`."""

    def check(ours, theirs, dtype):
        assert len(ours) == len(theirs)
        for x, y in zip(ours, theirs, strict=True):
            y = np.moveaxis(y.detach().numpy(), 1, -1)
            assert x.dtype == dtype and x.shape == y.shape
            np.testing.assert_allclose(x, y, rtol=0, atol=TOLERANCE[dtype] * np.abs(y).max())

    return check


@pytest.fixture
def num_parameters():
    """Parameters of a whole backbone, of which nothing is computed."""

    def count(build):
        options = NetworkOptions()
        backbone = Functional(lambda rngs: build(3, options=options, rngs=rngs))
        return sum(leaf.size for leaf in jax.tree.leaves(backbone.abstract_params))

    return count
