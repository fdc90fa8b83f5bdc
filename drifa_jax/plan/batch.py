"""How many records a training step takes, by their number and by the memory of the device."""

from __future__ import annotations

from dataclasses import dataclass

from drifa_jax.errors import UserError
from drifa_jax.train.step_cost import StepCost

SHARE = {"cpu": 0.5, "gpu": 0.9, "tpu": 0.9}
"""Of the memory, for the step; a CPU holds the data and all else beside it."""
GIB = 2**30


@dataclass(frozen=True)
class Room:
    """What a training step may take and takes.

    Attributes:
      device: cpu, gpu or tpu.
      available: bytes.
      step: as it was measured.
    """

    device: str
    available: int
    step: StepCost


def batch_for(records: int, room: Room | None) -> tuple[int, str]:
    """The batch size, and why.

    Args:
      records: of the largest modality.
      room: None where nothing was measured.

    Raises:
      UserError: where not even one record fits.
    """
    wished = next((size for size in (32, 16) if records >= 16 * size), 8)
    if room is None:
        return wished, f"{records} records; its memory was not measured"
    largest = room.step.largest_batch(int(SHARE[room.device] * room.available))
    has = f"{_size(room.available)} of this {room.device.upper()}"
    if largest < 1:
        raise UserError(
            f"this device is too small for any batch: one record takes "
            f"{_size(room.step.of(1))} in a training step, and a step may take "
            f"{SHARE[room.device]:.0%} of the {has}. Free memory, choose another "
            "device, or plan with --no-measure and lower height and width, or model.width of a "
            "ResNet, in the config file."
        )
    batch = wished
    while batch > largest:
        batch //= 2
    told = (
        f"{records} records; a step of {batch} takes {room.step.of(batch) / GIB:.2f} of the {has}"
    )
    return batch, f"{told}, measured by compiling it; {largest} would fit"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.0f} MiB"
