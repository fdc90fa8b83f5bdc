"""The layer graph inside a `.keras` archive, and the walk that finds the authors' parts in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from drifa_jax.errors import UserError

Tensor = tuple[str, int]
"""A layer's name and the number of its output."""


@dataclass(frozen=True)
class KerasLayer:
    """One layer: its class, settings and the tensors it reads."""

    kind: str
    config: Mapping[str, Any]
    inputs: tuple[Tensor, ...]


class KerasGraph:
    """Layers of a functional model in file order, with who reads what.

    Raises:
      UserError: if the config is no functional model.
    """

    def __init__(self, config: Any, source: str):
        self.source = source
        try:
            graph = config["config"]
            # Registered classes carry a package before ">".
            self.layers = {
                layer.get("name") or layer["config"]["name"]: KerasLayer(
                    layer["class_name"].split(">")[-1],
                    layer["config"],
                    tuple(_inputs(layer["inbound_nodes"])),
                )
                for layer in graph["layers"]
            }
            self.inputs = [_tensor(entry) for entry in _several(graph["input_layers"])]
            self.outputs = [_tensor(entry) for entry in _several(graph["output_layers"])]
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(
                f"{source}: config.json describes no functional Keras model ({error!r})."
            ) from error
        self._readers: dict[Tensor, list[str]] = {}
        for name, layer in self.layers.items():
            for tensor in layer.inputs:
                self._readers.setdefault(tensor, []).append(name)

    def readers(self, tensor: Tensor, kind: str) -> list[str]:
        """Layers of a class that read a tensor."""
        return [name for name in self._readers.get(tensor, ()) if self.layers[name].kind == kind]

    def next(self, tensor: Tensor, kind: str) -> str:
        """The one layer of a class that reads a tensor."""
        found = self.readers(tensor, kind)
        if len(found) != 1:
            readers = [f"{n} ({self.layers[n].kind})" for n in self._readers.get(tensor, ())]
            raise self.foreign(
                f"after {tensor[0]} there should be one {kind}, but there are {readers}"
            )
        return found[0]

    def foreign(self, reason: str) -> UserError:
        """The error for a graph of another network."""
        return UserError(f"{self.source} is not the authors' DRIFA-Net: {reason}.")


def place_layers(graph: KerasGraph, num_modalities: int) -> dict[str, str]:
    """The authors' place (`branch_0/rra_2/conv1`) -> name of the layer in the graph."""
    if len(graph.inputs) != num_modalities:
        raise UserError(
            f"{graph.source} has {len(graph.inputs)} inputs, the network {num_modalities} "
            "modalities."
        )
    places: dict[str, str] = {}
    tensors = []
    for m, tensor in enumerate(graph.inputs):
        conv = graph.next(tensor, "Conv2D")
        mfa = graph.next((conv, 0), "DeeperAttentionLayer1")
        norm = graph.next((mfa, 0), "BatchNormalization")
        places |= {f"branch_{m}/stem/{p}": n for p, n in _named(conv=conv, mfa=mfa, bn=norm)}
        relu = graph.next((norm, 0), "Activation")
        tensors.append((graph.next((relu, 0), "MaxPooling2D"), 0))
    block = 0
    while graph.readers(tensors[0], "Conv2D"):
        tensors = _place_block(graph, block, tensors, places)
        block += 1
    joined = graph.next(tensors[0], "Concatenate")
    if list(graph.layers[joined].inputs) != tensors:
        raise graph.foreign(f"{joined} joins the modalities in another order than the inputs'")
    for number, (head, _) in enumerate(graph.outputs):
        if graph.layers[head].kind != "Dense":
            raise graph.foreign(f"its output {head} is no Dense layer")
        places[f"head_{number}"] = head
    return places


def _place_block(
    graph: KerasGraph, block: int, tensors: list[Tensor], places: dict[str, str]
) -> list[Tensor]:
    """Places one RRA block of each branch, the MFAs after it and the MIFA; returns its outputs."""
    after = []
    for m, tensor in enumerate(tensors):
        convs = graph.readers(tensor, "Conv2D")
        projections = [n for n in convs if list(graph.layers[n].config["kernel_size"]) == [1, 1]]
        main = [name for name in convs if name not in projections]
        if len(main) != 1 or len(projections) > 1:
            raise graph.foreign(f"{convs} read {tensor[0]}, which is no residual block")
        found = {"conv1": main[0]}
        found["mfa1"] = graph.next((main[0], 0), "DeeperAttentionLayer1")
        found["bn1"] = graph.next((found["mfa1"], 0), "BatchNormalization")
        relu = graph.next((found["bn1"], 0), "Activation")
        found["conv2"] = graph.next((relu, 0), "Conv2D")
        found["mfa2"] = graph.next((found["conv2"], 0), "DeeperAttentionLayer1")
        found["bn2"] = graph.next((found["mfa2"], 0), "BatchNormalization")
        if projections:
            found["proj"] = projections[0]
            found["proj_bn"] = graph.next((projections[0], 0), "BatchNormalization")
        places |= {f"branch_{m}/rra_{block}/{part}": name for part, name in found.items()}
        total = graph.next((found["bn2"], 0), "Add")
        x = (graph.next((total, 0), "Activation"), 0)
        for dropout in graph.readers(x, "Dropout"):
            x = (dropout, 0)
        for mfa in graph.readers(x, "DeeperAttentionLayer1"):
            places[f"branch_{m}/mfa_{block}"] = mfa
            x = (mfa, 0)
        after.append(x)
    mifa = graph.next(after[0], "DeeperAttentionLayer")
    if list(graph.layers[mifa].inputs) != after:
        raise graph.foreign(f"{mifa} reads the modalities in another order than the inputs'")
    places[f"mifa_{block}"] = mifa
    return [(mifa, m) for m in range(len(tensors))]


def _named(**names: str) -> Iterator[tuple[str, str]]:
    return iter(names.items())


def _several(entries: Any) -> list[Any]:
    """Keras writes a single input or output without the outer list."""
    return [entries] if entries and isinstance(entries[0], str) else list(entries)


def _tensor(entry: Any) -> Tensor:
    name, _, number = entry[:3]
    return str(name), int(number)


def _inputs(nodes: Any) -> Iterator[Tensor]:
    """Tensors that a layer reads, in order: Keras 2 lists them, Keras 3 nests their history."""
    if isinstance(nodes, Mapping):
        if "keras_history" in nodes:
            yield _tensor(nodes["keras_history"])
            return
        for value in nodes.values():
            yield from _inputs(value)
    elif isinstance(nodes, list):
        if len(nodes) in (3, 4) and isinstance(nodes[0], str) and isinstance(nodes[1], int):
            yield _tensor(nodes)
            return
        for value in nodes:
            yield from _inputs(value)
