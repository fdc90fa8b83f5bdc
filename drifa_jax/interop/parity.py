"""Two computations of one network compared layer by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from drifa_jax.interop.pretrained.branches import stage_maps
from drifa_jax.interop.torch_weights import to_torch, torch_twin
from drifa_jax.models.building import build_network
from drifa_jax.models.description import NetworkDescription
from drifa_jax.models.functional import BatchStatistics, Parameters

Values = dict[str, np.ndarray]
"""Named intermediates in the order of computation, then `logits/<task>`."""


@dataclass(frozen=True)
class Agreement:
    """How far one named array is from its reference.

    Attributes:
      name: of the intermediate.
      max_abs: largest absolute difference.
      max_rel: the same over the largest magnitude of the reference.
      cosine: of the two arrays as vectors; 1 where both are zero.
    """

    name: str
    max_abs: float
    max_rel: float
    cosine: float


def compare(found: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]):
    """Agreement of every array, in the reference's order; the names must be equal."""
    if set(found) != set(reference):
        raise ValueError(f"names differ: {sorted(set(found) ^ set(reference))[:6]}.")
    return [_agreement(name, found[name], reference[name]) for name in reference]


def _agreement(name: str, found: np.ndarray, reference: np.ndarray) -> Agreement:
    a, b = np.asarray(found, np.float64).ravel(), np.asarray(reference, np.float64).ravel()
    if a.shape != b.shape:
        raise ValueError(f"{name} has shape {found.shape}, its reference {reference.shape}.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Agreement(name, float("inf"), float("inf"), float("nan"))
    largest, apart = np.abs(b).max(), np.abs(a - b).max()
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    relative = apart / largest if largest else (float("inf") if apart else 0.0)
    cosine = a @ b / norms if norms else float(apart == 0)
    return Agreement(name, float(apart), float(relative), float(cosine))


def first_divergence(rows: Sequence[Agreement], tolerance: float) -> Agreement | None:
    """The first array in the order of computation that is off by more than the tolerance."""
    return next((row for row in rows if not row.max_rel <= tolerance), None)


def _computing_in(network: NetworkDescription, precision: str) -> NetworkDescription:
    """The network with the compute dtype of a precision of `jax_values`."""
    if precision != "bfloat16":
        return network
    options = dataclasses.replace(network.options, compute_dtype="bfloat16")
    return dataclasses.replace(network, options=options)


def jax_values(
    network: NetworkDescription,
    params: Parameters,
    statistics: BatchStatistics,
    images: Mapping[str, np.ndarray],
    *,
    precision: str = "highest",
) -> Values:
    """Every named array of the JAX network at inference.

    Args:
      network: what the weights belong to.
      params: its parameters.
      statistics: its batch statistics.
      images: modality -> `[b, h, w, c]` float32.
      precision: "highest" and "default" (of float32 products on the device at hand; TPUs and
        newer GPUs round them), or "bfloat16" compute.
    """
    network = _computing_in(network, precision)
    matmul = "highest" if precision == "highest" else None

    @jax.jit
    def forward(params, statistics, images):
        return build_network(network).apply(params, statistics, images, train=False)[0]

    with jax.default_matmul_precision(matmul):
        logits, seen = forward(params, statistics, dict(images))
    return {name: np.asarray(x, np.float32) for name, x in _in_order(network, logits, seen)}


def branch_values(
    network: NetworkDescription,
    params: Parameters,
    statistics: BatchStatistics,
    images: Mapping[str, np.ndarray],
    *,
    precision: str = "highest",
) -> Values:
    """`<modality>/stem` and `<modality>/stage_<k>` of the backbones alone, without any fusion."""
    network = _computing_in(network, precision)

    seen = {}
    with jax.default_matmul_precision("highest" if precision == "highest" else None):
        for name, pixels in images.items():
            normalised = network.modalities[name].normalisation(pixels)
            trees = params["branches"][name], statistics.get("branches", {}).get(name, {})
            maps = jax.jit(stage_maps, static_argnums=(0, 1))(
                network.backbone_of(name), network.options, *trees, normalised
            )
            seen |= {f"{name}/{place}": np.asarray(x, np.float32) for place, x in maps.items()}
    return seen


def torch_values(
    network: NetworkDescription,
    params: Parameters,
    statistics: BatchStatistics,
    images: Mapping[str, np.ndarray],
) -> Values:
    """Every named array of the PyTorch twin with the same weights, in NHWC."""
    import torch

    twin = torch_twin(network)
    twin.load_state_dict(to_torch(network, params, statistics))
    images = {m: np.asarray(network.modalities[m].normalisation(x)) for m, x in images.items()}
    with torch.no_grad():
        logits, seen = twin(
            {m: torch.from_numpy(x.transpose(0, 3, 1, 2).copy()) for m, x in images.items()}
        )
    return {
        name: x.permute(0, 2, 3, 1).numpy() if x.ndim == 4 else x.numpy()
        for name, x in _in_order(network, logits, seen)
    }


def _in_order(network: NetworkDescription, logits, seen):
    """Intermediates as they are computed (jit returns dicts sorted by name), then logits."""

    def place(name: str) -> tuple[int, int, str]:
        stage, _, rest = name.partition("/")
        if not rest:
            return (10**6, 0, name)
        part = rest.split("/")[0]
        is_gate = rest.endswith("/gate") or rest in ("mifa/mgifa", "mifa/mlifa")
        return (
            int(stage.removeprefix("stage_")),
            2 * ("rra", "mfa", "mifa").index(part) + (not is_gate),
            name,
        )

    yield from ((name, seen[name]) for name in sorted(seen, key=place))
    yield from ((f"logits/{task}", logits[task]) for task in network.tasks)


def draw_agreement(
    path: str | Path, series: Mapping[str, Sequence[Agreement]], tolerance: float
) -> None:
    """A PNG: relative error of every named array, one line per comparison."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for label, rows in series.items():
        # Exact agreement has no logarithm; it is drawn at the foot of the figure.
        axes.plot([max(row.max_rel, 1e-9) for row in rows], marker=".", label=label)
    axes.axhline(tolerance, color="black", linewidth=0.8, linestyle="--", label="tolerance")
    axes.set_yscale("log")
    axes.set_ylabel("max |difference| / max |reference|")
    axes.set_xlabel("named arrays in the order of computation")
    rows = next(iter(series.values()))
    ticks = [i for i, row in enumerate(rows) if "/rra/" in row.name or "/" not in row.name]
    axes.set_xticks(ticks, [rows[i].name for i in ticks], rotation=90, fontsize=6)
    figure.legend(fontsize=8, loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=150)
