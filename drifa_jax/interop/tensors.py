"""Named tensors: a network's weights as one flat table, matched strictly against a file's.

Every converter describes its file by slots, one per tensor of the network: the path in our
tree, the name and shape in the file, and how axes move. Reading and writing, strictness and
error messages then live here once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drifa_jax.errors import UserError

Tensors = dict[str, np.ndarray]
LONGEST_DIFF = 24


@dataclass(frozen=True)
class Slot:
    """One tensor of a network and its place in a foreign file.

    Attributes:
      path: in our parameter or statistics tree, joined by "/".
      name: in the file.
      shape: in the file.
      our_shape: in our tree.
      axes: permutation from the file's axes to ours, before axes of size one are dropped.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    our_shape: tuple[int, ...]
    axes: tuple[int, ...]

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """The file's array in our layout."""
        return np.ascontiguousarray(array.transpose(self.axes)).reshape(self.our_shape)

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """Our array in the file's layout."""
        moved = np.asarray(array).reshape([self.shape[axis] for axis in self.axes])
        inverse = np.argsort(np.asarray(self.axes, int))
        return np.asarray(moved.transpose(inverse), order="C")


def same_slot(path: str, name: str, our_shape: Sequence[int], shape: Sequence[int]) -> Slot:
    """A slot whose axes keep their order; shapes may differ by axes of size one."""
    return Slot(path, name, tuple(shape), tuple(our_shape), tuple(range(len(shape))))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as path -> leaf, paths joined by "/"."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def read_slots(
    found: Mapping[str, np.ndarray],
    slots: Sequence[Slot],
    source: str,
    fresh_heads: Collection[str] = (),
) -> Tensors:
    """Our path -> array, from a file's tensors; each must fit its slot and none may be left.

    Args:
      found: the file's tensors.
      slots: the network's.
      source: the file's name, for messages.
      fresh_heads: tasks whose head is left out, whatever the file holds under its names.

    Raises:
      UserError: with a -/+ diff of missing, unexpected and misshaped tensors; or naming tensors
        that are not finite or not numbers.
    """
    skipped = {slot.name for slot in slots if _is_head_of(slot.path, fresh_heads)}
    slots = [slot for slot in slots if slot.name not in skipped]
    expected = {slot.name: slot.shape for slot in slots}
    shapes = {name: tuple(a.shape) for name, a in found.items() if name not in skipped}
    if shapes != expected:
        raise UserError(_difference(expected, shapes, source, slots))
    tensors = {slot.path: slot.to_ours(_number(found[slot.name], slot, source)) for slot in slots}
    broken = [slot.name for slot in slots if not np.isfinite(tensors[slot.path]).all()]
    if broken:
        raise UserError(
            f"{source}: {_some(broken)} hold NaN or infinity. The weights are damaged or their "
            "training diverged; use another checkpoint."
        )
    return tensors


def write_slots(tensors: Mapping[str, Any], slots: Sequence[Slot]) -> Tensors:
    """The file's name -> array, from our path -> array."""
    return {slot.name: slot.to_file(np.asarray(tensors[slot.path])) for slot in slots}


def _number(array: np.ndarray, slot: Slot, source: str) -> np.ndarray:
    if array.dtype == np.float64:
        return array
    # bfloat16 comes from ml_dtypes and has the kind of a structure.
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        return array.astype(np.float32)
    raise UserError(
        f"{source}: {slot.name} has dtype {array.dtype}; weights must be floating point."
    )


def _difference(expected, shapes, source: str, slots: Sequence[Slot]) -> str:
    lines = []
    for name in sorted(set(expected) | set(shapes)):
        if expected.get(name) != shapes.get(name):
            lines += [f"- {name} {expected[name]}"] if name in expected else []
            lines += [f"+ {name} {shapes[name]}"] if name in shapes else []
    differing = {line[2:].rsplit(" (", 1)[0] for line in lines}
    shown = lines[:LONGEST_DIFF]
    if len(lines) > len(shown):
        shown.append(f"... and {len(lines) - len(shown)} more lines")
    message = (
        f"{source} does not fit the network: {len(differing)} of {len(expected)} tensors differ "
        "(- the network expects, + the file holds):\n  " + "\n  ".join(shown)
    )
    paths = {slot.path for slot in slots if slot.name in differing}
    if paths and all(path.startswith("heads/") for path in paths):
        tasks = sorted({path.split("/")[1] for path in paths})
        message += (
            "\nOnly heads differ. For other classes than the file's, start these heads afresh: "
            + " ".join(f"--fresh-head {task}" for task in tasks)
        )
    return message


def _is_head_of(path: str, tasks: Collection[str]) -> bool:
    return any(path.startswith(f"heads/{task}/") for task in tasks)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
