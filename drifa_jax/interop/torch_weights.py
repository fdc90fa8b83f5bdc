"""Weights between our tree and the PyTorch twin, in state dicts and safetensors files.

    params, statistics = assemble(network, from_torch(twin.state_dict(), network))
    twin.load_state_dict(to_torch(network, params, statistics))

Kernels change their axes, `[h, w, in, out]` here and `[out, in, h, w]` there; nothing else
does. Padding is no part of a state dict: a network trained in PyTorch with symmetric padding
needs `NetworkOptions(padding="symmetric")`, one built by `TorchDRIFANet` its `padding` argument.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from drifa_jax.data.readers import containers
from drifa_jax.errors import UserError
from drifa_jax.extras import optional
from drifa_jax.interop.network_files import (
    native_slots,
    read_safetensors,
    refuse_existing,
    shapes,
)
from drifa_jax.interop.tensors import Slot, Tensors, flatten, read_slots, write_slots
from drifa_jax.models.description import NetworkDescription
from drifa_jax.models.functional import BatchStatistics, Parameters
from drifa_jax.network_options import PAPER
from drifa_jax.whole_files import written_whole

TWIN_READOUTS = ("concatenate", "average")

BATCH_COUNTER = "num_batches_tracked"
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_LINEAR_LAYERS = ("dense",)


def torch_slots(network: NetworkDescription) -> list[Slot]:
    """Slots of the state dict of `TorchDRIFANet`."""
    return [_slot(path, shape) for path, shape in shapes(network).items()]


def _slot(path: str, our_shape: tuple[int, ...]) -> Slot:
    parts = path.split("/")
    name = ".".join([*parts[:-1], _LEAVES.get(parts[-1], parts[-1])])
    if parts[-1] != "kernel":
        return Slot(path, name, our_shape, our_shape, tuple(range(len(our_shape))))
    # Averaged heads name their layers after modalities, which may be called anything.
    if parts[0] == "heads" or parts[-2] in _LINEAR_LAYERS:
        return Slot(path, name, our_shape[::-1], our_shape, (1, 0))
    height, width, num_in, num_out = (1,) * (4 - len(our_shape)) + our_shape
    return Slot(path, name, (num_out, num_in, height, width), our_shape, (2, 3, 1, 0))


def from_torch(
    state: Mapping[str, Any],
    network: NetworkDescription,
    source: str = "the state dict",
    fresh_heads: Collection[str] = (),
) -> Tensors:
    """Path -> array from a state dict of the twin (torch tensors or arrays), strictly."""
    return read_slots(_plain_names(state), torch_slots(network), source, fresh_heads)


def to_torch(
    network: NetworkDescription, params: Parameters, statistics: BatchStatistics
) -> dict[str, Any]:
    """The twin's state dict, batch counters included."""
    import torch

    named = write_slots(flatten(params) | flatten(statistics), torch_slots(network))
    state = {name: torch.from_numpy(array.copy()) for name, array in named.items()}
    for name in named:
        if name.endswith(".running_mean"):
            state[name.replace("running_mean", BATCH_COUNTER)] = torch.tensor(0)
    return state


def torch_twin(network: NetworkDescription) -> Any:
    """The twin of a described network, with weights of its own, in inference mode."""
    from drifa_jax.interop.torch_drifa_net import BLOCKS_PER_RESOLUTION, TorchDRIFANet

    options = network.options
    backbones = sorted({network.backbone_of(m) for m in network.modalities})
    if len(backbones) > 1 or backbones[0] not in BLOCKS_PER_RESOLUTION:
        raise UserError(
            f"The PyTorch twin has one backbone for all modalities, of "
            f"{sorted(BLOCKS_PER_RESOLUTION)}; the network has {backbones}."
        )
    if options.fuse_at != PAPER.fuse_at:
        raise UserError(
            f"The PyTorch twin fuses after every block; model.fuse_at is {list(options.fuse_at)}."
        )
    if options.fusion != "drifa" or options.readout not in TWIN_READOUTS:
        raise UserError(
            f"The PyTorch twin has the fusion 'drifa' and the readouts {list(TWIN_READOUTS)}, not "
            f"{options.fusion!r} and {options.readout!r}."
        )
    if options.read_stages != PAPER.read_stages:
        raise UserError(
            f"The heads of the PyTorch twin read the last stage; model.read_stages is "
            f"{options.read_stages!r}."
        )
    return TorchDRIFANet(
        network.channels,
        network.tasks,
        width=options.width,
        backbone=backbones[0],
        dropout_rate=options.dropout_rate,
        mfa_parts=options.mfa_parts,
        stage_mfa_parts=options.stage_mfa_parts,
        mifa_parts=options.mifa_parts,
        readout=options.readout,
        padding=options.padding,
        batch_norm_epsilon=options.batch_norm_epsilon,
        batch_norm_momentum=options.batch_norm_momentum,
    ).eval()


def load_state_dict(path: str | Path) -> Tensors:
    """Tensors of a `.pth` or `.safetensors` file by name, without running code in it.

    A training checkpoint that keeps its weights under "state_dict", "model" or
    "model_state_dict" is opened, and "module." before every name, of data-parallel training,
    is dropped.

    Raises:
      UserError: if the file is unreadable, truncated, or a pickle that would run code.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _plain_names(read_safetensors(path))
    optional("torch", f"Reading {path}", "interop")
    loaded = containers.read_torch(path)
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(hasattr(t, "detach") for t in loaded.values()):
        raise UserError(f"{path} holds no state dict (names and tensors).")
    return _plain_names(loaded)


def read_torch(
    path: str | Path, network: NetworkDescription, fresh_heads: Collection[str] = ()
) -> Tensors:
    """Path -> array from a `.pth` or `.safetensors` file of the twin's names, or of ours."""
    state = load_state_dict(path)
    if any("/" in name for name in state):
        return read_slots(state, native_slots(network), str(path), fresh_heads)
    if not any(name.startswith("branches.") for name in state) and any(
        name.endswith("conv1.weight") for name in state
    ):
        raise UserError(
            f"{path}: names no branch of DRIFA-Net ({', '.join(sorted(state)[:3])}, ...); the "
            "weights of a backbone alone, as of torchvision, are read by --from pretrained."
        )
    return from_torch(state, network, str(path), fresh_heads)


def write_torch(
    path: str | Path,
    network: NetworkDescription,
    params: Parameters,
    statistics: BatchStatistics,
    *,
    safetensors: bool | None = None,
) -> None:
    """Writes the twin's state dict, as safetensors if asked or (None) if the suffix says so."""
    path = Path(path).absolute()
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = to_torch(network, params, statistics)
    with written_whole(path) as partial:
        if path.suffix == ".safetensors" if safetensors is None else safetensors:
            from safetensors.torch import save_file

            save_file(state, partial)
        else:
            import torch

            torch.save(state, partial)


def _plain_names(state: Mapping[str, Any]) -> Tensors:
    """Arrays without data-parallel prefixes and batch counters."""
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {
        name: _array(tensor)
        for name, tensor in state.items()
        if name.rsplit(".", 1)[-1] != BATCH_COUNTER
    }


def _array(tensor: Any) -> np.ndarray:
    if not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.element_size() < 4:
        tensor = tensor.float()
    return tensor.numpy()
