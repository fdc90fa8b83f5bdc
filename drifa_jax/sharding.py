"""Where arrays live: batches split over all devices, parameters on each of them.

One device is the trivial case. Statistics of batch norm are those of the whole batch, because
the step is one program over the mesh and the compiler adds the sums across devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def data_mesh() -> Mesh:
    """All devices of all processes on one axis."""
    return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_data(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the data axis."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def place_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Global arrays from this process's part of a batch, split over the data axis."""
    sharding = over_data(mesh)
    return jax.tree.map(
        lambda local: jax.make_array_from_process_local_data(sharding, np.asarray(local)),
        dict(batch),
    )
