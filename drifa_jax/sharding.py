"""Where arrays live: a mesh of devices with the axes `ensemble`, `data` and `model`.

Batches are split over `data`, and so are large parameters and their moments, so that each device
updates a piece of them; members of an ensemble are split over `ensemble`. One device is the trivial
case. Statistics of batch norm are those of the whole batch, because the step is one program over
the mesh and the compiler adds the sums across devices.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from drifa_jax.config import Config
from drifa_jax.errors import UserError

ENSEMBLE_AXIS, DATA_AXIS, MODEL_AXIS = AXES = ("ensemble", "data", "model")
LARGE = 2**18
"""Elements from which an array is worth cutting into pieces, or storing and updating on its own."""


def is_large(shape: Sequence[int]) -> bool:
    """Whether an array of one member is handled on its own rather than with the small ones."""
    return math.prod(shape) >= LARGE


def device_mesh(
    *, ensemble: int = 1, data: int = 0, model: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Devices as a grid `[ensemble, data, model]`.

    Where they are of several slices of TPUs, which only the data center's network joins, members
    of an ensemble are spread over the slices, so that nothing crosses it; else the records are.

    Args:
      ensemble: devices, or rows of devices, that members are spread over.
      data: devices that a batch is spread over; 0 takes all that are left.
      model: devices that a wide layer is spread over.
      devices: None for all of all processes.

    Raises:
      UserError: when the grid does not use every device exactly once, or slices do not divide it.
    """
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    across = data or max(count // (ensemble * model), 1)
    if ensemble * across * model != count:
        raise UserError(
            f"config: the mesh ensemble x data x model = {ensemble} x {across} x {model} does not "
            f"fit the {count} device{'s' * (count > 1)}; the product must be {count}. Set "
            "mesh.ensemble and mesh.model to divisors of it and leave mesh.data at 0."
        )
    slices: dict[int, list[Any]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    shape = [ensemble, across, model]
    over = next((axis for axis in (0, 1) if shape[axis] % len(slices) == 0), None)
    if over is None:
        raise UserError(
            f"config: the mesh ensemble x data x model = {ensemble} x {across} x {model} does not "
            f"divide over {len(slices)} slices; make mesh.ensemble or mesh.data a multiple of that."
        )
    shape[over] //= len(slices)
    grids = [_grid(shape, of_slice) for of_slice in slices.values()]
    return Mesh(np.concatenate(grids, over), AXES, axis_types=(AxisType.Auto,) * 3)


def _grid(shape: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """Devices of one slice in the order of their links, but those of a process side by side.

    A process reads one part of each batch, for which its devices must lie next to each other.
    """
    ordered = list(jax.make_mesh(tuple(shape), AXES, devices=devices).devices.flat)
    processes = list(dict.fromkeys(device.process_index for device in ordered))
    ordered.sort(key=lambda device: processes.index(device.process_index))
    return np.array(ordered, object).reshape(shape)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put(value: Any, sharding: NamedSharding) -> jax.Array:
    """A global array from a host array that every process holds whole; nothing is sent."""
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


@dataclass(frozen=True)
class HostPart:
    """The part of a global batch that this process reads.

    Attributes:
      members: of the ensemble.
      index, count: the batch is cut into `count` equal parts, of which this is number `index`.
    """

    members: range
    index: int
    count: int


@dataclass(frozen=True)
class Layout:
    """How the arrays of one run lie on its devices.

    Attributes:
      mesh: with the axes `AXES`.
      num_members: of the ensemble; one member has no leading axis `e`.
      shard_state: whether large parameters and their moments are cut over `data`; where several
        slices of TPUs share a batch they are not, because the network between them would carry
        the pieces.
    """

    mesh: Mesh
    num_members: int = 1
    shard_state: bool = True

    @property
    def is_ensemble(self) -> bool:
        return self.num_members > 1

    @property
    def platform(self) -> str:
        """What its devices are: cpu, gpu or tpu."""
        return self.mesh.devices.flat[0].platform

    @property
    def _lead(self) -> tuple[str, ...]:
        return (ENSEMBLE_AXIS,) if self.is_ensemble else ()

    def _sharding(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    @functools.cached_property
    def cuts_state(self) -> bool:
        """Whether large arrays of the state lie in pieces over `data`."""
        if not self.shard_state or self.mesh.shape[DATA_AXIS] == 1:
            return False
        of_member, *_ = self.mesh.devices
        return len({getattr(device, "slice_index", 0) for device in of_member.flat}) == 1

    def state(self, template: Any, is_whole: Callable[[Any], bool] = lambda path: False) -> Any:
        """Shapes, dtypes and shardings of a train state with those shapes and dtypes.

        Args:
          template: a tree of arrays or of their shapes.
          is_whole: whether the array at a path of the tree is not cut over `data`, be it large.
        """

        def described(path, leaf):
            sharding = (self._whole if is_whole(path) else self._of_leaf)(leaf.shape)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map_with_path(described, template)

    def _of_leaf(self, shape: tuple[int, ...]) -> NamedSharding:
        """Members over `ensemble`; of a large array the last axis over `model`, the longest
        other one over `data`, as far as they divide.
        """
        axes: list[str | None] = [*self._lead, *[None] * (len(shape) - len(self._lead))]
        own = range(len(self._lead), len(shape))
        if is_large(shape[len(self._lead) :]):
            model, data = self.mesh.shape[MODEL_AXIS], self.mesh.shape[DATA_AXIS]
            if model > 1 and shape[-1] % model == 0:
                axes[-1] = MODEL_AXIS
            fits = [i for i in own if axes[i] is None and shape[i] % data == 0]
            if self.cuts_state and fits:
                axes[max(fits, key=lambda i: shape[i])] = DATA_AXIS
        return self._sharding(*axes)

    def of_members(self, of_one: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
        """A function of one member's arrays as one of all members', which lie as they do here."""
        if not self.is_ensemble:
            return of_one
        return jax.vmap(of_one, in_axes, spmd_axis_name=ENSEMBLE_AXIS)

    def gathered(self, params: Any) -> Any:
        """Parameters of one member put together from their pieces over `data`, in a compiled step.

        A layer then computes on whole kernels and its own records.
        """
        return self._constrained(params, Layout._whole)

    def reduced(self, gradients: Any) -> Any:
        """Gradients of one member, summed over `data` before each device takes the piece that it
        updates, in a compiled step.

        Left to itself the compiler cuts each product that gives a gradient into pieces that go
        round the devices, a thousand of them (docs/performance.md).
        """
        whole = self._constrained(gradients, Layout._whole)
        return self._constrained(whole, Layout._of_leaf)

    def _constrained(self, tree: Any, sharding_of: Callable[..., NamedSharding]) -> Any:
        if not self.cuts_state:
            return tree
        member = dataclasses.replace(self, num_members=1)

        def constrained(leaf):
            return jax.lax.with_sharding_constraint(leaf, sharding_of(member, leaf.shape))

        return jax.tree.map(constrained, tree)

    def _whole(self, shape: tuple[int, ...]) -> NamedSharding:
        """As `_of_leaf`, but not over `data`."""
        spec = self._of_leaf(shape).spec
        return self._sharding(*[None if axis == DATA_AXIS else axis for axis in spec])

    @functools.cached_property
    def host_part(self) -> HostPart:
        """Which members and which part of each batch the devices of this process hold.

        Raises:
          UserError: when they hold no rectangle of members and rows.
        """
        shape = (self.num_members, self.mesh.shape[DATA_AXIS])
        blocks = self._sharding(ENSEMBLE_AXIS, DATA_AXIS).addressable_devices_indices_map(shape)
        spans = {
            tuple(_bounds(s, n) for s, n in zip(i, shape, strict=True)) for i in blocks.values()
        }
        members = _joined({span[0] for span in spans})
        rows = _joined({span[1] for span in spans})
        held = sum((m[1] - m[0]) * (r[1] - r[0]) for m, r in spans)
        if members is None or rows is None or held != len(members) * len(rows):
            raise UserError(self._ragged())
        if shape[1] % len(rows) or rows.start % len(rows):
            raise UserError(self._ragged())
        return HostPart(members, rows.start // len(rows), shape[1] // len(rows))

    def _ragged(self) -> str:
        return (
            f"config: the mesh {dict(self.mesh.shape)} does not divide over {jax.process_count()} "
            f"processes with {jax.local_device_count()} devices each; choose mesh.ensemble so "
            "that a process holds whole members or an equal part of one."
        )

    def place_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Global arrays from this process's part of a batch, `[e, b, ...]` for an ensemble."""
        return self._placed(batch, self._lead)

    def place_shared_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The same for a batch `[b, ...]` that all members see."""
        return self._placed(batch, ())

    def batch_shapes(
        self, batch: Mapping[str, Any], num_records: int, *, shared: bool = False
    ) -> dict[str, Any]:
        """Shapes, dtypes and shardings of a global batch, from which a step can be compiled.

        Args:
          batch: of any number of records, on the host.
          num_records: of the global batch.
          shared: whether all members see it.
        """
        lead = () if shared else self._lead
        members = (self.num_members,) * len(lead)

        def shape(leaf):
            return jax.ShapeDtypeStruct(
                (*members, num_records, *np.shape(leaf)[1:]),
                leaf.dtype,
                sharding=self._sharding(*lead, DATA_AXIS),
            )

        return jax.tree.map(shape, dict(batch))

    def _placed(self, batch: Mapping[str, Any], lead: tuple[str, ...]) -> dict[str, Any]:
        sharding = self._sharding(*lead, DATA_AXIS)
        row = len(lead)

        def place(local):
            local = np.asarray(local)
            rows = local.shape[row] * self.host_part.count
            shape = ((self.num_members,) if lead else ()) + (rows, *local.shape[row + 1 :])
            return jax.make_array_from_process_local_data(sharding, local, shape)

        return jax.tree.map(place, dict(batch))


def layout_of(
    config: Config,
    devices: Sequence[Any] | None = None,
    batches: Sequence[str] = ("train", "eval"),
) -> Layout:
    """The layout that a configuration asks for.

    Args:
      config: its mesh, members and batches.
      devices: None for all that there are.
      batches: groups of the configuration whose batches the devices share.

    Raises:
      UserError: when mesh, members or batches do not divide over the devices.
    """
    mesh = config.mesh
    layout = Layout(
        device_mesh(ensemble=mesh.ensemble, data=mesh.data, model=mesh.model, devices=devices),
        config.ensemble.num_members,
        mesh.shard_state,
    )
    if layout.num_members % mesh.ensemble:
        raise UserError(
            f"config: ensemble.num_members is {layout.num_members}, which the mesh.ensemble of "
            f"{mesh.ensemble} does not divide."
        )
    num_devices = layout.mesh.shape[DATA_AXIS]
    parts = math.lcm(num_devices, layout.host_part.count)
    for group in batches:
        size = getattr(config, group).batch_size
        if size % parts:
            raise UserError(
                f"config: {group}.batch_size is {size}, which {num_devices} devices cannot share "
                f"evenly; use a multiple of {parts}."
            )
    return layout


def _bounds(piece: slice, size: int) -> tuple[int, int]:
    start, stop, _ = piece.indices(size)
    return start, stop


def _joined(spans: set[tuple[int, int]]) -> range | None:
    """The range that spans cover together; None where they leave a gap or overlap."""
    ordered = sorted(spans)
    for (_, end), (start, _) in itertools.pairwise(ordered):
        if start != end:
            return None
    return range(ordered[0][0], ordered[-1][1])
