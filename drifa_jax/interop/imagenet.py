"""ImageNet ResNets into every branch: convolutions and batch norms from the file, the rest fresh.

State dicts of torchvision, timm and Hugging Face `transformers` are read; their names differ,
their ResNet-18, -34 and -50 do not. Our convolutions carry a bias, which starts at zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from drifa_jax.errors import UserError
from drifa_jax.interop.network_files import shapes
from drifa_jax.interop.tensors import Slot, Tensors, read_slots
from drifa_jax.interop.torch_weights import load_state_dict
from drifa_jax.models.backbones.resnet import BOTTLENECK_BACKBONES, RESNET_PLANS
from drifa_jax.models.description import NetworkDescription

_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_LAYERS = {
    "conv1": "conv1",
    "norm1": "bn1",
    "conv2": "conv2",
    "norm2": "bn2",
    "conv3": "conv3",
    "norm3": "bn3",
    "projection": "downsample.0",
    "projection_norm": "downsample.1",
}
_HUGGING_FACE = (
    (r"embedder\.embedder\.convolution", "conv1"),
    (r"embedder\.embedder\.normalization", "bn1"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.convolution", "layer{}.{}.downsample.0"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.normalization", "layer{}.{}.downsample.1"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.convolution", "layer{}.{}.conv{}"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.normalization", "layer{}.{}.bn{}"),
)


def read_imagenet(path: str | Path, network: NetworkDescription) -> Tensors:
    """Path -> array for the convolutions and batch norms of every branch.

    Complete it with `assemble(network, tensors, key)`.

    Args:
      path: a state dict, `.pth` or `.safetensors`.
      network: the plan of the file's ResNet (18, 34 or 50), with the padding and epsilon of
        PyTorch's ResNets.

    Raises:
      UserError: for other layer constants, another architecture, or a damaged file.
    """
    return from_imagenet(load_state_dict(path), network, str(path))


def from_imagenet(
    state: Mapping[str, np.ndarray], network: NetworkDescription, source: str = "the state dict"
) -> Tensors:
    """The same from a state dict as arrays."""
    options = network.options
    for field, value, needed in (
        ("padding", options.padding, "symmetric"),
        ("batch_norm_epsilon", options.batch_norm_epsilon, 1e-5),
    ):
        if value != needed:
            raise UserError(
                f"{source}: ImageNet ResNets were trained in PyTorch with {field} {needed!r}, but "
                f"the network has {value!r}, which gives other features. Set options.{field} to "
                f"{needed!r}."
            )
    state = torchvision_names(state)
    backbone = network.options.backbone
    is_bottleneck = any(".conv3." in name for name in state)
    if is_bottleneck != (backbone in BOTTLENECK_BACKBONES) and "conv1.weight" in state:
        blocks = {True: "bottleneck blocks (ResNet-50 and deeper)", False: "basic blocks"}
        raise UserError(
            f"{source} is a ResNet of {blocks[is_bottleneck]}, but options.backbone is "
            f"{backbone!r}. The backbones with bottleneck blocks are "
            f"{sorted(BOTTLENECK_BACKBONES)}."
        )
    if "conv1.weight" not in state:
        raise UserError(
            f"{source} is no ResNet that torchvision, timm or transformers wrote: it has no first "
            f"convolution; its tensors begin with {sorted(state)[:3]}."
        )
    tensors: Tensors = {}
    for modality, num_channels in network.channels.items():
        adapted = dict(state)
        adapted["conv1.weight"] = adapt_channels(state["conv1.weight"], num_channels)
        slots = _branch_slots(network, modality)
        tensors |= read_slots(adapted, slots, f"{source} (branch {modality})")
        for path, shape in shapes(network).items():
            if path.startswith(f"branches/{modality}/") and re.search(
                r"(/conv|/conv1|/conv2|/conv3|/projection)/bias$", path
            ):
                if "/mfa" not in path:
                    tensors[path] = np.zeros(shape, np.float32)
    return tensors


def adapt_channels(kernel: np.ndarray, num_channels: int) -> np.ndarray:
    """A first kernel `[out, 3, h, w]` for images with another number of channels.

    Grey images take the sum over colours, so that a grey image repeated three times and the
    grey image itself give the same features. More channels repeat the colours in turn, scaled
    so that the response to a constant image stays.
    """
    num_colours = kernel.shape[1]
    if num_channels == num_colours:
        return kernel
    if num_channels == 1:
        return kernel.sum(axis=1, keepdims=True)
    repeated = kernel[:, np.arange(num_channels) % num_colours]
    return repeated * np.asarray(num_colours / num_channels, kernel.dtype)


def torchvision_names(state: Mapping[str, np.ndarray]) -> Tensors:
    """The state dict under torchvision's names, without the classifier."""
    renamed = {}
    for name, array in state.items():
        name = name.removeprefix("resnet.")
        for pattern, layer in _HUGGING_FACE:
            if match := re.match(pattern, name):
                # Stages and convolutions are counted from 0 there and from 1 here.
                numbers = [int(n) for n in match.groups()]
                numbers = [n if i == 1 else n + 1 for i, n in enumerate(numbers)]
                name = layer.format(*numbers) + name[match.end() :]
                break
        if not name.startswith(("fc.", "classifier.")):
            renamed[name] = array
    return renamed


def _branch_slots(network: NetworkDescription, modality: str) -> list[Slot]:
    """Slots of one branch under torchvision's names."""
    places = {}
    stage = 0
    for resolution, num_blocks in enumerate(RESNET_PLANS[network.options.backbone], start=1):
        for block in range(num_blocks):
            for ours, theirs in _LAYERS.items():
                places[f"stages/stage_{stage}/{ours}"] = f"layer{resolution}.{block}.{theirs}"
            stage += 1
    places |= {"stem/conv": "conv1", "stem/norm": "bn1"}
    slots = []
    for path, shape in shapes(network).items():
        layer, _, leaf = path.removeprefix(f"branches/{modality}/").rpartition("/")
        if not path.startswith(f"branches/{modality}/") or layer not in places:
            continue
        if leaf == "kernel":
            file_shape = (shape[3], shape[2], shape[0], shape[1])
            slots.append(Slot(path, f"{places[layer]}.weight", file_shape, shape, (2, 3, 1, 0)))
        elif "norm" in layer:
            slots.append(Slot(path, f"{places[layer]}.{_NORM[leaf]}", shape, shape, (0,)))
    return slots
