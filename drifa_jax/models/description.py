"""What a network is: what each branch reads, what the heads answer, and the options between.

A description is plain data. `models.building.build_network` makes the network of it, here and
in every later release, so it is saved beside all weights as `network.json`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drifa_jax.config import Config, ModalityConfig
from drifa_jax.data.record import Spec, TabularSpec, VolumeSpec
from drifa_jax.errors import UserError
from drifa_jax.models.pixels import Normalisation
from drifa_jax.network_options import NetworkOptions
from drifa_jax.plain_values import from_plain, unknown_field
from drifa_jax.sealed_files import read_sealed, write_sealed

NETWORK_FILE = "network.json"
FORMAT = 2
KINDS = {"image": 2, "volume": 3, "table": 0}
"""Kind of modality -> its spatial axes."""


@dataclass(frozen=True)
class ModalityDescription:
    """What the branch of one modality reads.

    Attributes:
      channels: of its images or volumes; of a table, its features.
      kind: a key of `KINDS`.
      size: pixels along each spatial axis; empty where any size is read.
      backbone: a name in `models.registry.BACKBONES`; empty takes the network's.
      mean, std: of each channel of pixels in 0..1, by which images are normalised; or empty.
      slice_attention: of a volume, whether a backbone of pictures reads its slices.
    """

    channels: int
    kind: str = "image"
    size: tuple[int, ...] = ()
    backbone: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    slice_attention: bool = False

    def __post_init__(self):
        Normalisation(self.mean, self.std)
        if self.channels < 1:
            raise ValueError(f"channels is {self.channels}; it must be at least 1.")
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; choose one of {sorted(KINDS)}.")
        if self.size and len(self.size) != KINDS[self.kind]:
            raise ValueError(f"size is {self.size}; a {self.kind} has {KINDS[self.kind]} axes.")
        if len(self.mean) not in (0, self.channels):
            raise ValueError(
                f"mean is {self.mean}; give one value for each of {self.channels} channels."
            )
        if self.slice_attention and self.kind != "volume":
            raise ValueError(f"slice_attention is for volumes, and the kind is {self.kind!r}.")

    @property
    def normalisation(self) -> Normalisation:
        """What its images go through before the backbone."""
        return Normalisation(self.mean, self.std)


@dataclass(frozen=True)
class NetworkDescription:
    """All that is needed to build a network.

    Attributes:
      modalities: modality -> what its branch reads; a number is short for images of so many
        channels. The order matters to files that number modalities.
      tasks: task -> number of classes; the same holds for heads.
      options: width, backbone, fusion, readout and so on.
    """

    modalities: Mapping[str, ModalityDescription]
    tasks: Mapping[str, int]
    options: NetworkOptions = field(default_factory=NetworkOptions)

    def __post_init__(self):
        described = {
            name: ModalityDescription(m) if isinstance(m, int) else m
            for name, m in self.modalities.items()
        }
        object.__setattr__(self, "modalities", described)
        for kind, single in (("modalities", "modality"), ("tasks", "task")):
            names = getattr(self, kind)
            if not names:
                raise ValueError(f"A network needs at least one {single}.")
            if any(not name or set(name) & set("/.") for name in names):
                raise ValueError(f"{kind} are {list(names)}; names need a letter and no '/' or '.'")
        for name, count in self.tasks.items():
            if count < 1:
                raise ValueError(f"tasks.{name} is {count}; it must be at least 1.")

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_json()))

    def __eq__(self, other: object) -> bool:
        # Of mappings the order counts too.
        return isinstance(other, NetworkDescription) and json.dumps(self.to_json()) == json.dumps(
            other.to_json()
        )

    @property
    def channels(self) -> dict[str, int]:
        """Modality -> channels of its images, or features of its table."""
        return {name: modality.channels for name, modality in self.modalities.items()}

    def backbone_of(self, modality: str) -> str:
        """Name of a modality's backbone."""
        return self.modalities[modality].backbone or self.options.backbone

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `network.json`."""
        return {"format": FORMAT, **json.loads(json.dumps(dataclasses.asdict(self)))}

    @classmethod
    def from_json(cls, plain: Any, source: str) -> NetworkDescription:
        """A description from plain values, of this format or the one before.

        Raises:
          UserError: naming the source and every unknown or ill-typed field.
        """
        try:
            return cls._from_json(plain)
        except (UserError, ValueError) as error:
            raise UserError(f"{source}: {error}") from error

    @classmethod
    def _from_json(cls, plain: Any) -> NetworkDescription:
        known = {"format", "modalities", "tasks", "options"}
        if not isinstance(plain, Mapping):
            raise UserError(f"the network must be a JSON object, not {plain!r}.")
        for name in plain:
            if name not in known:
                raise unknown_field(name, dict.fromkeys(sorted(known)))
        if plain.get("format", 1) not in (1, FORMAT):
            raise UserError(
                f"format is {plain['format']!r}; this version reads formats 1 and {FORMAT}."
            )
        for kind in ("modalities", "tasks"):
            if not isinstance(plain.get(kind), Mapping):
                raise UserError(
                    f'{kind} is {plain.get(kind)!r}; write names and counts, as {{"mri": 1}}.'
                )
        for name, count in plain["tasks"].items():
            if type(count) is not int:
                raise UserError(f"tasks.{name} is {count!r}; it must be a number of classes.")
        modalities = {
            name: from_plain(
                ModalityDescription,
                {"channels": values} if not isinstance(values, Mapping) else values,
                f"modalities.{name}",
            )
            for name, values in plain["modalities"].items()
        }
        options = plain.get("options", {})
        if isinstance(options, Mapping) and "layers" in options:  # of format 1
            layers = dict(options["layers"])
            if "dtype" in layers:
                layers["compute_dtype"] = layers.pop("dtype")
            options = {k: v for k, v in options.items() if k != "layers"} | layers
        return cls(modalities, plain["tasks"], from_plain(NetworkOptions, options, "options"))


def describe_network(
    config: Config, modalities: Sequence[Spec], tasks: Mapping[str, int]
) -> NetworkDescription:
    """The network that a configuration asks for over given data.

    Args:
      config: of the run.
      modalities: what its records hold.
      tasks: task -> number of classes.
    """

    def described(spec: Spec) -> ModalityDescription:
        if isinstance(spec, TabularSpec):
            return ModalityDescription(spec.num_features, "table")
        kind = "volume" if isinstance(spec, VolumeSpec) else "image"
        own = config.data.modalities.get(spec.name, ModalityConfig())
        return ModalityDescription(
            spec.channels,
            kind,
            spec.shape[:-1],
            own.backbone,
            own.mean,
            own.std,
            own.slice_attention,
        )

    return NetworkDescription(
        {spec.name: described(spec) for spec in modalities}, dict(tasks), config.model
    )


def save_description(folder: Path, description: NetworkDescription) -> None:
    """Writes `network.json` into a folder, whole or not at all."""
    write_sealed(folder / NETWORK_FILE, description.to_json())


def load_description(path: str | Path) -> NetworkDescription:
    """The description in a JSON file, or in a folder that holds a `network.json`.

    Raises:
      UserError: naming the file and field at fault.
    """
    path = Path(path)
    if path.is_dir():
        path = path / NETWORK_FILE
    plain = read_sealed(path, "Copy it again; where you edited it yourself, delete its digest.")
    return NetworkDescription.from_json(plain, str(path))
