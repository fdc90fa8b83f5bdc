"""What accelerators can do, as their vendors say: one table, read by reports and estimates.

Source: Google's pages on the architecture of each TPU (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e,
tpu7x), and the data sheets of NVIDIA's cards. A link's speed is the chip's bidirectional bandwidth
over both directions of its links; of v4 it is the all-reduce bandwidth of a pod over its chips.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TPU:
    """One generation; figures are of what JAX calls a device, which is a chip on all but TPU7x.

    Attributes:
      device_kinds: beginnings of what JAX calls it.
      peak_flops: FLOP/s of products of bfloat16, in which TPUs multiply float32 too.
      memory_gib: of HBM.
      memory_bandwidth: bytes/s of HBM.
      num_axes: of its torus; each has two links.
      link_bandwidth: bytes/s of a link in one direction.
      wraps_from: devices along an axis from which its ends are joined.
      network_bandwidth: bytes/s to other slices, of the data center's network.
      devices_per_chip: of which figures are equal shares.
      counts_cores: whether the number in the name of a slice counts cores, two a chip.
    """

    device_kinds: tuple[str, ...]
    peak_flops: float
    memory_gib: float
    memory_bandwidth: float
    num_axes: int
    link_bandwidth: float
    wraps_from: int
    network_bandwidth: float
    devices_per_chip: int = 1
    counts_cores: bool = False


TPUS = {
    # The pages name no network of v4; taken is that of v5e.
    "v4": TPU(("TPU v4",), 275e12, 32, 1200e9, 3, 45e9, 4, 3.1e9, counts_cores=True),
    "v5e": TPU(("TPU v5 lite", "TPU v5e"), 197e12, 16, 819e9, 2, 50e9, 16, 3.1e9),
    "v5p": TPU(("TPU v5",), 459e12, 95, 2765e9, 3, 100e9, 4, 6.25e9, counts_cores=True),
    "v6e": TPU(("TPU v6",), 918e12, 32, 1640e9, 2, 100e9, 16, 12.5e9),
    "tpu7x": TPU(("TPU7x",), 1153e12, 96, 3690e9, 3, 50e9, 4, 6.25e9, 2, counts_cores=True),
}
"""Generation -> figures, the longer name of a device before its beginning."""

PEAK_FLOPS: dict[str, dict[str, float]] = {
    kind: {"bfloat16": tpu.peak_flops} for tpu in TPUS.values() for kind in tpu.device_kinds
} | {
    "V100": {"float32": 15.7e12},
    "A100": {"float32": 19.5e12, "tensorfloat32": 156e12, "bfloat16": 312e12},
    "H100 PCIe": {"float32": 51e12, "tensorfloat32": 378e12, "bfloat16": 756e12},
    "H100": {"float32": 67e12, "tensorfloat32": 495e12, "bfloat16": 989e12},
    "H200": {"float32": 67e12, "tensorfloat32": 495e12, "bfloat16": 989e12},
    "L4": {"float32": 30.3e12, "tensorfloat32": 60e12, "bfloat16": 121e12},
}
"""Part of a device's name -> dtype -> FLOP/s of one device, dense."""

MEMORY_BANDWIDTH = {
    kind: tpu.memory_bandwidth for tpu in TPUS.values() for kind in tpu.device_kinds
} | {
    "V100": 900e9,
    "A100-SXM4-80GB": 2039e9,
    "A100": 1555e9,
    "H100 PCIe": 2000e9,
    "H100": 3350e9,
    "H200": 4800e9,
    "L4": 300e9,
}
"""Part of a device's name -> bytes/s of its memory."""


def memory_bandwidth(device_kind: str) -> float | None:
    """Bytes/s of a device's memory; None where it is not in the table."""
    return next(
        (bandwidth for name, bandwidth in MEMORY_BANDWIDTH.items() if name in device_kind), None
    )
