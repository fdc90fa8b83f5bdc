"""A network on disk: `network.json` says what it is, `weights.safetensors` holds its numbers.

Three lines to bring weights along (here from the authors' Keras file):

    network = NetworkDescription({"a": 3, "b": 3}, {"cell": 5, "skin": 7}, NetworkOptions())
    tensors = read_keras("model.keras", network)
    params, statistics = network.assemble(tensors)

A directory that `save_network` wrote holds no code and depends on no framework.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from drifa_jax.errors import UserError
from drifa_jax.interop.tensors import Slot, Tensors, flatten, read_slots, same_slot, unflatten
from drifa_jax.models.convolution import LayerOptions
from drifa_jax.models.drifa_net import NetworkOptions, drifa_net
from drifa_jax.models.functional import BatchStatistics, Functional, Parameters
from drifa_jax.rng import stream
from drifa_jax.whole_files import written_whole

DESCRIPTION_FILE = "network.json"
WEIGHTS_FILE = "weights.safetensors"
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class NetworkDescription:
    """All that is needed to build a DRIFA-Net.

    Attributes:
      modalities: modality -> channels of its images. The order matters to files that number
        modalities.
      tasks: task -> number of classes; the same holds for heads.
      options: width, backbone, padding and so on.
    """

    modalities: Mapping[str, int]
    tasks: Mapping[str, int]
    options: NetworkOptions = field(default_factory=NetworkOptions)

    def __post_init__(self):
        for kind in ("modalities", "tasks"):
            names = getattr(self, kind)
            wrong = [name for name in names if not name or set(name) & set("/.")]
            if wrong or not names:
                raise ValueError(f"{kind} are {list(names)}; names need a letter and no '/' or '.'")

    @cached_property
    def functional(self) -> Functional:
        """`init` and `apply` of this network."""
        return Functional(
            lambda rngs: drifa_net(self.modalities, self.tasks, options=self.options, rngs=rngs)
        )

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Path -> shape of every parameter, then of every batch statistic."""
        return {path: tuple(a.shape) for path, a in flatten(self._abstract).items()}

    @property
    def _abstract(self) -> dict[str, Any]:
        params = flatten(self.functional.abstract_params)
        return params | flatten(self.functional.abstract_statistics)

    def assemble(
        self, tensors: Mapping[str, np.ndarray], key: jax.Array | None = None
    ) -> tuple[Parameters, BatchStatistics]:
        """Parameter and statistics trees from path -> array.

        Args:
          tensors: of every path, or of some when there is a key.
          key: of the initial values of absent tensors; None makes an absent tensor an error.
        """
        absent = [path for path in self.shapes if path not in tensors]
        if absent and key is None:
            raise ValueError(f"no values for {absent[:5]} and no key to initialise them from.")
        tensors = dict(tensors)
        heads = {path.split("/")[1] for path in absent if path.startswith("heads/")}
        if absent and all(path.startswith("heads/") for path in absent):
            # A head alone needs no other part of the network.
            for task in sorted(heads):
                tensors |= _initial_head(self, task, key)
        elif absent:
            params, statistics = self.functional.init(key)
            initial = flatten(params) | flatten(statistics)
            tensors |= {path: initial[path] for path in absent}
        params_paths = flatten(self.functional.abstract_params)
        params = unflatten({path: jnp.asarray(tensors[path]) for path in params_paths})
        statistics_paths = flatten(self.functional.abstract_statistics)
        statistics = unflatten({path: jnp.asarray(tensors[path]) for path in statistics_paths})
        return params, statistics

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `network.json`."""
        options = dataclasses.asdict(self.options)
        options["layers"]["dtype"] = jnp.dtype(self.options.layers.dtype).name
        return {
            "format": 1,
            "modalities": dict(self.modalities),
            "tasks": dict(self.tasks),
            "options": options,
        }


def description_from_json(plain: Any, source: str) -> NetworkDescription:
    """A description from plain values; every unknown or ill-typed field is an error by name."""
    plain = _fields(plain, {"format", "modalities", "tasks", "options"}, source, "the network")
    if plain.get("format", 1) != 1:
        raise UserError(f"{source}: format is {plain['format']!r}; this version reads format 1.")
    counts = {}
    for kind in ("modalities", "tasks"):
        counts[kind] = plain.get(kind)
        if not isinstance(counts[kind], dict) or not all(
            type(n) is int and n > 0 for n in counts[kind].values()
        ):
            raise UserError(
                f'{source}: {kind} is {counts[kind]!r}; write names and counts, as {{"mri": 1}}.'
            )
    known = {f.name for f in dataclasses.fields(NetworkOptions)}
    options = dict(_fields(plain.get("options", {}), known, source, "options"))
    layers = dict(
        _fields(
            options.pop("layers", {}),
            {f.name for f in dataclasses.fields(LayerOptions)},
            source,
            "options.layers",
        )
    )
    dtype = layers.pop("dtype", "float32")
    if dtype not in DTYPES:
        raise UserError(f"{source}: options.layers.dtype is {dtype!r}; choose one of {DTYPES}.")
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    try:
        layer_options = LayerOptions(dtype=jnp.dtype(dtype), **layers)
        return NetworkDescription(
            counts["modalities"], counts["tasks"], NetworkOptions(layers=layer_options, **options)
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"{source}: {error}") from error


def load_description(path: str | Path) -> NetworkDescription:
    """The description in a JSON file, or in a directory that `save_network` wrote."""
    path = Path(path)
    if path.is_dir():
        path = path / DESCRIPTION_FILE
    try:
        plain = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from error
    return description_from_json(plain, str(path))


def native_slots(network: NetworkDescription) -> list[Slot]:
    """Slots of our own weights file, whose names are the paths."""
    return [same_slot(path, path, shape, shape) for path, shape in network.shapes.items()]


def save_network(
    directory: str | Path,
    network: NetworkDescription,
    params: Parameters,
    statistics: BatchStatistics,
) -> None:
    """Writes `network.json` and `weights.safetensors`; nothing appears unless all is written.

    Raises:
      UserError: if the directory exists and holds anything.
    """
    from safetensors.numpy import save_file

    tensors = {
        path: np.asarray(value, order="C")
        for path, value in (flatten(params) | flatten(statistics)).items()
    }
    # The one place where a network is written checks what all converters promise.
    read_slots(tensors, native_slots(network), "the network to save")

    def write(folder: Path) -> None:
        description = json.dumps(network.to_json(), indent=2) + "\n"
        (folder / DESCRIPTION_FILE).write_text(description)
        save_file(tensors, folder / WEIGHTS_FILE)

    write_directory(directory, write)


def load_network(
    directory: str | Path,
) -> tuple[Functional, Parameters, BatchStatistics, NetworkDescription]:
    """A network from a directory that `save_network` wrote."""
    directory = Path(directory)
    network = load_description(directory)
    weights = directory / WEIGHTS_FILE
    tensors = read_slots(read_safetensors(weights), native_slots(network), str(weights))
    params, statistics = network.assemble(tensors)
    return network.functional, params, statistics, network


def read_safetensors(path: str | Path) -> Tensors:
    """Every tensor of a safetensors file, by name; pure data."""
    import ml_dtypes  # noqa: F401  (numpy learns bfloat16 from it)
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}).") from error
    except SafetensorError as error:
        raise UserError(f"{path} is no whole safetensors file: {error}.") from error


def write_directory(directory: str | Path, write) -> None:
    """Lets `write` fill a neighbour of `directory`, then renames it into place."""
    directory = Path(directory).absolute()
    refuse_existing(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(directory) as partial:
        partial.mkdir()
        write(partial)


def refuse_existing(path: str | Path) -> None:
    """An output must not exist yet, but for an empty directory."""
    path = Path(path)
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists():
        raise UserError(f"{path} exists already; choose another output or remove it first.")


def _initial_head(network: NetworkDescription, task: str, key: jax.Array) -> Tensors:
    from drifa_jax.models.heads import AveragedHeads, TaskHead

    kernels = [
        shape
        for path, shape in network.shapes.items()
        if path.startswith(f"heads/{task}/") and path.endswith("/kernel")
    ]
    num_features, num_classes = kernels[0]
    if network.options.readout == "average":
        head = Functional(
            lambda rngs: AveragedHeads(
                tuple(network.modalities), num_features, num_classes, rngs=rngs
            )
        )
    else:
        head = Functional(lambda rngs: TaskHead(num_features, num_classes, rngs=rngs))
    params, _ = head.init(stream(key, "fresh head", task))
    return {f"heads/{task}/{path}": np.asarray(of) for path, of in flatten(params).items()}


def _fields(plain: Any, known: set[str], source: str, what: str) -> Mapping[str, Any]:
    if not isinstance(plain, dict):
        raise UserError(f"{source}: {what} must be a JSON object, not {plain!r}.")
    unknown = sorted(set(plain) - known)
    if unknown:
        raise UserError(f"{source}: {what} has no field {unknown}; it has {sorted(known)}.")
    return plain
