"""Writes `twin_float64.npz`: numbers of the PyTorch twin in float64, for tests without it.

    python tests/interop/golden/make_golden.py

The twin itself equals the authors' code (test_torch_drifa_net.py, with the authors' numbers at
hand). Weights, images and labels are not stored: `formula` makes them from their names.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("twin_float64.npz")
MODALITIES = {"mri": 1, "ct": 3}
TASKS = {"tumour": 3, "grade": 4}
SIZES = {"mri": (32, 40), "ct": (33, 32)}
LABELS = {"tumour": [0, 2, 1], "grade": [3, 1, 0]}
WIDTH = 4
BACKBONE = "resnet10"
SEEN = ("stage_0/rra/mri", "stage_1/mifa/gate", "stage_2/mfa/ct/gate", "stage_3/mifa/mri", "pooled")


def formula(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1) from an integer hash of name and position, rounded to float32."""
    h = np.arange(np.prod(shape, dtype=np.int64), dtype=np.uint32) * np.uint32(2654435761)
    h += np.uint32(zlib.crc32(name.encode()))
    for shift, factor in ((15, 2246822519), (13, 3266489917)):
        h ^= h >> np.uint32(shift)
        h *= np.uint32(factor)
    h ^= h >> np.uint32(16)
    return (h / 2.0**31 - 1).reshape(shape).astype(np.float32)


def weight(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor of our tree: kernels scaled to keep the variance, nothing left at 0 or 1."""
    v = formula(path, shape)
    leaf = path.rsplit("/", 1)[-1]
    if leaf == "kernel":
        return v * np.float32(np.sqrt(6 / np.prod(shape[:-1])))
    if leaf in ("var", "scale") or "alpha" in path:
        return 1 + np.float32(0.3) * v
    return np.float32(0.3) * v


def images() -> dict[str, np.ndarray]:
    """Modality -> `[3, h, w, c]` float32."""
    return {m: formula(f"image {m}", (3, *SIZES[m], c)) for m, c in MODALITIES.items()}


def main() -> None:
    import torch

    from drifa_jax.interop.torch_weights import torch_slots, torch_twin
    from drifa_jax.models.description import NetworkDescription
    from drifa_jax.network_options import NetworkOptions

    network = NetworkDescription(MODALITIES, TASKS, NetworkOptions(width=WIDTH, backbone=BACKBONE))
    twin = torch_twin(network).double()
    slots = torch_slots(network)
    state = {s.name: torch.from_numpy(s.to_file(weight(s.path, s.our_shape))) for s in slots}
    twin.load_state_dict(state, strict=False)
    inputs = {m: torch.from_numpy(x.transpose(0, 3, 1, 2)).double() for m, x in images().items()}

    numbers = {}
    with torch.no_grad():
        logits, seen = twin(inputs)
    for name in SEEN:
        x = seen[name]
        numbers[name] = (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy()
    numbers |= {f"logits/{task}": x.numpy() for task, x in logits.items()}

    twin.train()
    logits, _ = twin(inputs)
    cross_entropy = torch.nn.functional.cross_entropy
    loss = sum(cross_entropy(logits[t], torch.tensor(y)) for t, y in LABELS.items())
    loss.backward()
    numbers["loss"] = loss.item()
    by_name = {s.name: s for s in slots}
    for name, parameter in twin.named_parameters():
        numbers[f"gradient/{by_name[name].path}"] = by_name[name].to_ours(parameter.grad.numpy())
    after = twin.state_dict()
    for slot in slots:
        if slot.path.rsplit("/", 1)[-1] in ("mean", "var"):
            numbers[f"after/{slot.path}"] = after[slot.name].numpy()
    # Largest tensors by their norm alone, to stay small.
    for name in [n for n, x in numbers.items() if n.startswith("gradient/") and np.size(x) > 64]:
        numbers[name.replace("gradient/", "norm/")] = np.linalg.norm(numbers.pop(name))
    np.savez_compressed(FILE, **numbers)


if __name__ == "__main__":
    main()
