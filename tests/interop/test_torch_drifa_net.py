"""The JAX network and its PyTorch twin: equal values, gradients and steps from equal weights."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

from drifa_jax.interop import torch_drifa_net
from drifa_jax.interop.author_names import author_slots
from drifa_jax.interop.network_files import assemble
from drifa_jax.interop.tensors import flatten, read_slots
from drifa_jax.interop.torch_drifa_net import BLOCKS_PER_RESOLUTION
from drifa_jax.interop.torch_weights import (
    from_torch,
    load_state_dict,
    read_torch,
    to_torch,
    torch_slots,
    torch_twin,
    write_torch,
)
from drifa_jax.models.backbones.resnet import BOTTLENECK_BACKBONES, RESNET_PLANS, ResNet
from drifa_jax.models.building import build_network
from drifa_jax.models.description import NetworkDescription
from drifa_jax.models.registry import BACKBONES
from drifa_jax.network_options import NetworkOptions


def random_images(network, sizes, dtype):
    rng = np.random.default_rng(0)
    return {
        m: rng.standard_normal((2, *sizes[m], channels)).astype(dtype)
        for m, channels in network.channels.items()
    }


def to_nchw(images):
    return {m: torch.from_numpy(x.transpose(0, 3, 1, 2).copy()) for m, x in images.items()}


def as_nhwc(tensor):
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def random_twin(network, dtype=None):
    """A twin with random weights everywhere: no ones or zeros that a wrong name would survive."""
    torch.manual_seed(0)
    twin = torch_twin(network)
    with torch.no_grad():
        for name, tensor in twin.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and tensor.ndim < 2:
                tensor.normal_(1.0 if "norm" in name and "weight" in name else 0.2, 0.3)
    return twin.to(dtype) if dtype else twin


def assert_same(found, wanted, tolerance):
    assert set(found) == set(wanted)
    for name in wanted:
        a, b = np.asarray(found[name]), np.asarray(wanted[name])
        assert a.shape == b.shape, name
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max() + 1e-3 * tolerance, name


# A plan of three blocks, which compiles in a third of the time of a ResNet-18.
RESNET_PLANS["three_blocks"] = BLOCKS_PER_RESOLUTION["three_blocks"] = (1, 2)
RESNET_PLANS["three_bottlenecks"] = BLOCKS_PER_RESOLUTION["three_bottlenecks"] = (1, 2)
BOTTLENECK_BACKBONES.add("three_bottlenecks")
BACKBONES["three_blocks"] = functools.partial(ResNet, plan="three_blocks")
BACKBONES["three_bottlenecks"] = functools.partial(ResNet, plan="three_bottlenecks")
torch_drifa_net.BOTTLENECK_BACKBONES.add("three_bottlenecks")

THREE = NetworkDescription(
    {"mri": 1, "ct": 3, "pet": 1},
    {"tumour": 3},
    NetworkOptions(
        width=2,
        backbone="three_blocks",
        mfa_parts=("hifa",),
        stage_mfa_parts=("clia",),
        mifa_parts=("mlifa",),
    ),
)
DEEP = NetworkDescription(
    {"mri": 2},
    {"tumour": 2, "grade": 4},
    NetworkOptions(
        width=2,
        backbone="resnet34",
        mfa_parts=("clia",),
        stage_mfa_parts=(),
        mifa_parts=("mgifa",),
        padding="symmetric",
        batch_norm_epsilon=1e-5,
    ),
)
# A first block that projects without a stride, one that projects with it, one that does neither.
BOTTLENECKS = NetworkDescription(
    {"mri": 1, "ct": 3}, {"tumour": 3}, NetworkOptions(width=2, backbone="three_bottlenecks")
)
# A modality may be called what a layer is called elsewhere.
AVERAGED = NetworkDescription(
    {"mri": 1, "conv1": 3},
    {"tumour": 3, "grade": 2},
    NetworkOptions(width=2, backbone="three_blocks", readout="average"),
)
SIZES = {"conv1": (40, 31), "mri": (32, 32), "ct": (33, 48), "pet": (40, 31)}


@pytest.mark.parametrize(
    "network",
    [THREE, DEEP, BOTTLENECKS, AVERAGED],
    ids=["three-modalities", "resnet34-symmetric", "bottlenecks", "averaged"],
)
def test_logits_and_intermediates_agree_in_float32(network):
    twin = random_twin(network)
    images = random_images(network, SIZES, np.float32)
    with torch.no_grad():
        wanted, wanted_seen = twin(to_nchw(images))
    params, statistics = assemble(network, from_torch(twin.state_dict(), network))
    with jax.default_matmul_precision("highest"):
        (logits, seen), _ = jax.jit(
            lambda p, s, x: build_network(network).apply(p, s, x, train=False)
        )(params, statistics, images)
    # Float32 rounding through 8 or 16 blocks.
    assert_same(logits, {t: x.numpy() for t, x in wanted.items()}, 1e-5)
    assert_same(seen, {name: as_nhwc(x) for name, x in wanted_seen.items()}, 1e-5)


@pytest.fixture(scope="module", params=["three_blocks", "three_bottlenecks"])
def float64_step(request):
    """One training step of Adam in both frameworks, in float64."""
    network = NetworkDescription(
        {"mri": 1, "ct": 3},
        {"tumour": 3, "grade": 4},
        NetworkOptions(
            width=2, backbone=request.param, compute_dtype="float64", batch_norm_unbiased=True
        ),
    )
    labels = {"tumour": np.array([0, 2]), "grade": np.array([3, 1])}
    twin = random_twin(network, torch.float64)
    images = random_images(network, SIZES, np.float64)
    with jax.enable_x64(True):
        params, statistics = assemble(network, from_torch(twin.state_dict(), network))
        optimizer = optax.adam(1e-3, eps=1e-8)

        def loss(params, images):
            (logits, seen), after = build_network(network).apply(
                params, statistics, images, train=True
            )
            total = sum(
                jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits[t], labels[t]))
                for t in labels
            )
            return total, (logits, seen, after)

        gradients, (logits, seen, after) = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(
            params, images
        )
        # Adam works element by element, and compiles faster on one vector than on many arrays.
        leaves, structure = jax.tree.flatten(params)
        vector, gradient = (
            jnp.asarray(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]))
            for tree in (params, gradients[0])
        )
        # Optax raises a Python float to an int32 count, which is its own affair.
        with jax.numpy_dtype_promotion("standard"):
            updates, _ = optimizer.update(gradient, optimizer.init(vector))
        ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
        parts = zip(np.split(np.asarray(vector + updates), ends), leaves, strict=True)
        params = jax.tree.unflatten(structure, [part.reshape(leaf.shape) for part, leaf in parts])
        ours = {
            "logits": logits,
            "seen": seen,
            "gradients": flatten(gradients[0]),
            "image gradients": gradients[1],
            "state": flatten(params) | flatten(after),
        }
        ours = jax.tree.map(np.asarray, ours)

    twin.train()
    inputs = {m: x.requires_grad_() for m, x in to_nchw(images).items()}
    logits, seen = twin(inputs)
    total = sum(
        torch.nn.functional.cross_entropy(logits[t], torch.from_numpy(labels[t])) for t in labels
    )
    adam = torch.optim.Adam(twin.parameters(), lr=1e-3)
    total.backward()
    gradients = {name: p.grad for name, p in twin.named_parameters()}
    adam.step()
    slots = {slot.name: slot for slot in torch_slots(network)}
    theirs = {
        "logits": {t: x.detach().numpy() for t, x in logits.items()},
        "seen": {name: as_nhwc(x) for name, x in seen.items()},
        "gradients": {
            slots[name].path: slots[name].to_ours(g.numpy()) for name, g in gradients.items()
        },
        "image gradients": {m: as_nhwc(x.grad) for m, x in inputs.items()},
        "state": from_torch(twin.state_dict(), network),
    }
    return ours, theirs


@pytest.mark.parametrize("what", ["logits", "seen", "image gradients", "state"])
def test_a_training_step_agrees_in_float64(float64_step, what):
    ours, theirs = float64_step
    assert_same(ours[what], theirs[what], 1e-10)


def test_weight_gradients_agree_in_float64(float64_step):
    ours, theirs = (step["gradients"] for step in float64_step)
    assert set(ours) == set(theirs)
    for path, wanted in theirs.items():
        # A bias right before a batch norm has a gradient of zero, up to rounding.
        limit = 1e-10 * np.abs(wanted).max() + 1e-13
        assert np.abs(ours[path] - wanted).max() <= limit, path


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_survive_the_way_to_torch_and_back(suffix, tmp_path):
    twin = random_twin(THREE)
    params, statistics = assemble(THREE, from_torch(twin.state_dict(), THREE))
    other = torch_twin(THREE)
    other.load_state_dict(to_torch(THREE, params, statistics))
    for name, tensor in twin.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    file = tmp_path / f"twin.{suffix}"
    write_torch(file, THREE, params, statistics)
    back = read_torch(file, THREE)
    assert_same(back, flatten(params) | flatten(statistics), 0.0)
    assert not any("num_batches_tracked" in name for name in load_state_dict(file))


def test_twin_draws_dropout_only_when_asked():
    twin = random_twin(THREE)
    images = to_nchw(random_images(THREE, SIZES, np.float32))
    with torch.no_grad():
        plain = [twin(images)[0]["tumour"] for _ in range(2)]
        drawn = [twin(images, dropout=True)[0]["tumour"] for _ in range(2)]
    assert torch.equal(*plain)
    assert not torch.equal(*drawn)


def test_twin_equals_the_authors_in_float64(golden, below, rel, authors_network):
    """Inference and first training step of the twin against the authors' float64 numbers."""
    numbers = golden("net_infer_reduced")
    twin = authors_twin(authors_network(8), below(numbers, "w/"))
    images = {m: numbers[f"x_{i}"].astype(np.float64) for i, m in enumerate("ab")}
    with torch.no_grad():
        logits, seen = twin(to_nchw(images))
    assert rel(seen["pooled"], numbers["f64/pooled"]) < 1e-10
    for i, task in enumerate(logits):
        assert rel(logits[task].softmax(1), numbers[f"f64/probs_{i}"]) < 1e-10

    numbers = golden("net_train_reduced")
    network = authors_network(4)
    twin = authors_twin(network, below(numbers, "w/")).train()
    images = {m: numbers[f"x_{i}"].astype(np.float64) for i, m in enumerate("ab")}
    logits, _ = twin(to_nchw(images))
    total = sum(
        torch.nn.functional.cross_entropy(x, torch.from_numpy(numbers[f"label_{i}"]).double())
        for i, x in enumerate(logits.values())
    )
    (total / 2).backward()
    torch_names = {slot.path: slot.name for slot in torch_slots(network)}
    parameters = dict(twin.named_parameters())
    norms = dict(zip(map(str, numbers["grad_names"]), numbers["f64/grad_norms"], strict=True))
    checked = 0
    for slot in author_slots(network):
        if slot.name in norms and not slot.name.endswith("proj/bias"):
            found = parameters[torch_names[slot.path]].grad.norm().item()
            assert abs(found - norms[slot.name]) <= 1e-9 * norms[slot.name] + 1e-13, slot.name
            checked += 1
    assert checked == len(norms) - 6


def authors_twin(network, weights):
    params, statistics = assemble(network, read_slots(weights, author_slots(network), "golden"))
    twin = torch_twin(network)
    twin.load_state_dict(to_torch(network, params, statistics))
    return twin.double()
