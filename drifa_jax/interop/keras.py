"""The authors' Keras files as data: `.keras` archives and `.weights.h5`, without Keras.

A `.keras` file is a zip with the layer graph (`config.json`) and the numbers
(`model.weights.h5`). HDF5 groups are numbered per class of layer in the order of the graph's
layers (`conv2d`, `conv2d_1`, ...), whatever the layers' own names; which layer is which follows
from walking the graph from its inputs. A `.weights.h5` file has no graph: there the order is
the one that Keras gives the authors' network. Keras 2.15 and 3.3 write both alike. Optimiser
slots and seeds in the file are ignored, and nothing in it is ever executed.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from drifa_jax.data.problems import reading
from drifa_jax.data.readers.containers import DAMAGED, check_zip, read_hdf5
from drifa_jax.errors import UserError
from drifa_jax.interop.author_names import author_slots
from drifa_jax.interop.keras_graph import KerasGraph, place_layers
from drifa_jax.interop.tensors import Tensors, read_slots
from drifa_jax.models.backbones.resnet import BOTTLENECK_BACKBONES, RESNET_PLANS
from drifa_jax.models.description import NetworkDescription

GROUPS = {
    "Conv2D": "conv2d",
    "BatchNormalization": "batch_normalization",
    "DeeperAttentionLayer1": "deeper_attention_layer1",
    "DeeperAttentionLayer": "deeper_attention_layer",
    "Dense": "dense",
}
"""Class of layer with weights -> name of its HDF5 groups."""

_INNER = "deeper_global_local_attention"
_KERNEL_BIAS = ("kernel", "bias")
_SCALES = {f"{_INNER}/vars/0": "global_scale", f"{_INNER}/vars/1": "local_scale"}


def read_keras(
    path: str | Path, network: NetworkDescription, fresh_heads: Collection[str] = ()
) -> Tensors:
    """Path -> array from a `.keras` or `.weights.h5` file of the authors' network.

    Args:
      path: the file.
      network: what it must hold; its modalities and tasks in the order of the file's inputs
        and outputs.
      fresh_heads: tasks whose head is not taken from the file.

    Raises:
      UserError: for a damaged or foreign file, other layer constants, or tensors that do not
        fit, by name.
    """
    path = Path(path)
    if network.options.padding != "same":
        raise UserError(
            f"{path}: Keras pads strided convolutions at the end; weights from it need "
            'options.padding "same", but the network says '
            f"{network.options.padding!r}."
        )
    if network.options.backbone in BOTTLENECK_BACKBONES:
        raise UserError(
            f"{path}: the authors' Keras network has blocks of two convolutions, the backbone "
            f"{network.options.backbone!r} has bottleneck blocks; set options.backbone."
        )
    if zipfile.is_zipfile(path):
        config, weights = _open_archive(path)
        with reading(path, "holds a graph of layers that is damaged or no network of the authors'"):
            graph = KerasGraph(config, str(path))
            _check_constants(graph, network, str(path))
            places = place_layers(graph, len(network.modalities))
            groups = _groups_of_graph(graph)
            places = {place: groups[layer] for place, layer in places.items()}
    else:
        weights = path
        places = _canonical_places(network)
    datasets = _read_datasets(weights, path)
    found = {}
    for place, group in places.items():
        for inside, leaf in _variables(place, len(network.modalities)).items():
            name = f"layers/{group}/{inside}"
            if name in datasets:
                found[f"{place}/{leaf}"] = datasets.pop(name)
    # What belongs to no layer of the network stays under its own name, and fails the match.
    return read_slots(found | datasets, author_slots(network), str(path), fresh_heads)


def _open_archive(path: Path) -> tuple[dict[str, Any], io.BytesIO]:
    missing = {"config.json", "model.weights.h5"} - set(check_zip(path))
    if missing:
        raise UserError(f"{path} is no Keras archive: it holds no {' and no '.join(missing)}.")
    with reading(path, DAMAGED), zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
        return config, io.BytesIO(archive.read("model.weights.h5"))


def _read_datasets(file: Any, path: Path) -> Tensors:
    """Every dataset of layers by its full name."""
    try:
        return read_hdf5(path, file, "layers", without="seed_generator")
    except KeyError as error:
        raise UserError(
            f"{path} holds no group 'layers'; it has {error.args[0]}. Only native Keras files are "
            "read: save with model.save('F.keras') or model.save_weights('F.weights.h5')."
        ) from error


def _groups_of_graph(graph: KerasGraph) -> dict[str, str]:
    """Layer name -> HDF5 group, numbered per class in the order of the layers."""
    counts: dict[str, int] = {}
    groups = {}
    for name, layer in graph.layers.items():
        if layer.kind in GROUPS:
            number = counts.get(layer.kind, 0)
            counts[layer.kind] = number + 1
            groups[name] = GROUPS[layer.kind] + (f"_{number}" if number else "")
    return groups


def _canonical_places(network: NetworkDescription) -> dict[str, str]:
    """Place -> HDF5 group as Keras numbers the authors' network, modalities interleaved."""
    counts: dict[str, int] = {}
    places = {}
    for kind, place in _layers_in_keras_order(network):
        number = counts.get(kind, 0)
        counts[kind] = number + 1
        places[place] = GROUPS[kind] + (f"_{number}" if number else "")
    return places


def _layers_in_keras_order(network: NetworkDescription) -> Iterator[tuple[str, str]]:
    """Layers with weights by depth in the graph: class and place."""
    branches = [f"branch_{m}" for m in range(len(network.modalities))]
    norm, mfa = "BatchNormalization", "DeeperAttentionLayer1"

    def row(kind: str, place: str) -> Iterator[tuple[str, str]]:
        return ((kind, f"{branch}/{place}") for branch in branches)

    yield from row("Conv2D", "stem/conv")
    yield from row(mfa, "stem/mfa")
    yield from row(norm, "stem/bn")
    plan = RESNET_PLANS[network.options.backbone]
    last = sum(plan) - 1
    block = 0
    for resolution, num_blocks in enumerate(plan):
        for position in range(num_blocks):
            reshapes = resolution > 0 and position == 0
            yield from row("Conv2D", f"rra_{block}/conv1")
            yield from row(mfa, f"rra_{block}/mfa1")
            yield from row(norm, f"rra_{block}/bn1")
            yield from row("Conv2D", f"rra_{block}/conv2")
            yield from row(mfa, f"rra_{block}/mfa2")
            if reshapes:
                yield from row("Conv2D", f"rra_{block}/proj")
            for branch in branches:
                yield norm, f"{branch}/rra_{block}/bn2"
                if reshapes:
                    yield norm, f"{branch}/rra_{block}/proj_bn"
            if block < last:
                yield from row(mfa, f"mfa_{block}")
            yield "DeeperAttentionLayer", f"mifa_{block}"
            block += 1
    for head in range(len(network.tasks)):
        yield "Dense", f"head_{head}"


def _variables(place: str, num_modalities: int) -> dict[str, str]:
    """Inside a layer's HDF5 group -> the authors' name inside its place."""
    part = place.rsplit("/", 1)[-1]
    if part.startswith("mifa"):
        variables = dict(_SCALES)
        sublayers = {"global_attention": "mgifa/dense"}
        for m in range(num_modalities):
            sublayers[f"local_conv{m + 1}"] = f"mlifa/conv_{m}"
            variables[f"vars/{m}"] = f"alpha_{m}"
    elif part.startswith("mfa"):
        variables = {"vars/0": "alpha", **_SCALES}
        sublayers = {"global_attention": "hifa/dense"}
        sublayers |= {f"global_conv{i}": f"hifa/conv{i}" for i in (1, 2, 3, 4)}
        sublayers |= {f"local_conv{i}": f"clia/conv{i}" for i in (1, 2)}
    elif "bn" in part:
        leaves = ("gamma", "beta", "moving_mean", "moving_variance")
        return {f"vars/{i}": leaf for i, leaf in enumerate(leaves)}
    else:
        return {f"vars/{i}": leaf for i, leaf in enumerate(_KERNEL_BIAS)}
    for sublayer, name in sublayers.items():
        variables |= {
            f"{_INNER}/{sublayer}/vars/{i}": f"{name}/{leaf}" for i, leaf in enumerate(_KERNEL_BIAS)
        }
    return variables


def _check_constants(graph: KerasGraph, network: NetworkDescription, source: str) -> None:
    """Constants that are no weights but change the features."""
    options = network.options
    for name, layer in graph.layers.items():
        if layer.kind == "Conv2D" and layer.config.get("padding") != "same":
            raise UserError(
                f"{source}: layer {name} has padding {layer.config.get('padding')!r}; only "
                "'same' is the authors' network."
            )
        for theirs, ours, value in (
            ("epsilon", "batch_norm_epsilon", options.batch_norm_epsilon),
            ("momentum", "batch_norm_momentum", options.batch_norm_momentum),
        ):
            found = layer.config.get(theirs)
            if layer.kind == "BatchNormalization" and found != value:
                raise UserError(
                    f"{source}: layer {name} has {theirs} {found}, the network {value}; set "
                    f"options.{ours} to {found}."
                )
