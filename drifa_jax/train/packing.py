"""A tree of thousands of arrays as a few, for storage: large ones alone, small ones end to end.

Each array costs orbax milliseconds. What is stored does not depend on the devices, so that a run
can go on with others; with several processes each stores what only it holds.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from drifa_jax.sharding import ENSEMBLE_AXIS, is_large, put

BLOCK = 4096
"""Words that checksums weigh together."""

Packed = dict[str, dict[str, Any]]
"""`large`: name -> array; `small`: dtype -> the small arrays of that dtype, `[n]` or `[e, n]`."""


class Entry(NamedTuple):
    """One array of a packed tree; their order is that of the small ones.

    Attributes:
      name: path in the tree.
      shape: with the leading axis `e` of an ensemble.
      dtype: by name.
      alone: whether it is stored on its own.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    alone: bool

    @classmethod
    def from_json(cls, values: list[Any]) -> Entry:
        name, shape, dtype, alone = values
        return cls(str(name), tuple(int(n) for n in shape), str(dtype), bool(alone))


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, in its order."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def entries(tree: Any, lead: int) -> list[Entry]:
    """What `packed` makes of a tree of arrays or of their shapes.

    Args:
      tree: float32 and int32 arrays.
      lead: 1 where every array has a leading axis of members, otherwise 0.
    """
    return [
        Entry(name, tuple(leaf.shape), np.dtype(leaf.dtype).name, is_large(leaf.shape[lead:]))
        for name, leaf in named(tree).items()
    ]


def packed(tree: Any, lead: int) -> Packed:
    """Copies of all arrays of a tree, which may be donated at once. Members stay apart."""
    large, small = {}, {}
    leaves = named(tree)
    for entry in entries(tree, lead):
        leaf = leaves[entry.name]
        if entry.alone:
            large[entry.name] = _detached(leaf)
        else:
            small.setdefault(entry.dtype, []).append(leaf)
    return {"large": large, "small": {dtype: _end_to_end(v, lead) for dtype, v in small.items()}}


def target(stored: list[Entry], template: Any, lead: int) -> Packed:
    """What to restore into: large arrays where the template has them, small ones on the host.

    Args:
      stored: entries of the checkpoint.
      template: tree of the same names, with shardings or without.
      lead: as in `packed`.
    """
    wanted = named(template)
    large, sizes, members = {}, {}, ()
    for entry in stored:
        members = entry.shape[:lead]
        if entry.alone:
            like = wanted[entry.name]
            placed = getattr(like, "sharding", None) is not None
            large[entry.name] = like if placed else np.empty(entry.shape, entry.dtype)
        else:
            size = math.prod(entry.shape[lead:])
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + size
    small = {dtype: np.empty((*members, size), dtype) for dtype, size in sizes.items()}
    return {"large": large, "small": small}


def unpacked(read: Packed, stored: list[Entry], template: Any, lead: int) -> Any:
    """The tree that `packed` stored; on the host where the template names no sharding."""
    start = dict.fromkeys(read["small"], 0)
    arrays = {}
    for entry in stored:
        if entry.alone:
            arrays[entry.name] = read["large"][entry.name]
            continue
        size = math.prod(entry.shape[lead:])
        first = start[entry.dtype]
        start[entry.dtype] = first + size
        values = read["small"][entry.dtype][..., first : first + size]
        arrays[entry.name] = values.reshape(entry.shape)
    leaves = [_placed(arrays[name], like) for name, like in named(template).items()]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def checksums(stored: Packed) -> dict[str, int]:
    """A 32-bit sum of each stored array, in which any flipped bit shows.

    The words of an array are added modulo 2^32, each weighted by an odd number that its place
    along the last axis gives. That is as fast as memory is, and pieces of an array add up to the
    sum of the whole, so that every process reads only its own.
    """
    leaves = named(stored)
    sums = np.array([_sum_of_pieces(leaf) for leaf in leaves.values()], np.uint32)
    spread = np.array([not _is_whole(leaf) for leaf in leaves.values()])
    if spread.any():
        gathered = np.asarray(multihost_utils.process_allgather(sums))
        sums = np.where(spread, gathered.sum(0, dtype=np.uint32), sums)
    return {name: int(value) for name, value in zip(leaves, sums, strict=True)}


def _sum_of_pieces(leaf: Any) -> int:
    if _is_whole(leaf):
        return _sum(np.asarray(leaf), 0)
    own = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
    return sum(_sum(np.asarray(s.data), s.index[-1].start or 0) for s in own) % 2**32


def _sum(array: np.ndarray, first_column: int) -> int:
    rows = np.ascontiguousarray(array).reshape(-1, *array.shape[-1:] or (1,)).view(np.uint32)
    columns = rows[0] if len(rows) == 1 else _added(rows)
    # The weight of a column, 2 place + 1, is that within its block and that of the block: products
    # of long arrays take many times as long as sums.
    end = len(columns) // BLOCK * BLOCK
    blocks, rest = columns[:end].reshape(-1, BLOCK), columns[end:]
    weights = 2 * np.arange(BLOCK, dtype=np.uint32) + 1
    of_blocks = np.add.reduce(blocks, axis=1, dtype=np.uint32)
    starts = np.arange(len(blocks), dtype=np.uint32) * (2 * BLOCK)
    total = int(_added(_added(blocks) * weights)) + int(_added(of_blocks * starts))
    total += int(_added(rest * (weights[: len(rest)] + 2 * end)))
    all_columns = int(_added(of_blocks)) + int(_added(rest))
    return (total + 2 * first_column * all_columns) % 2**32


def _added(values: np.ndarray) -> np.ndarray:
    return np.add.reduce(values, axis=0, dtype=np.uint32)


def _is_whole(leaf: Any) -> bool:
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable


def _detached(leaf: Any) -> Any:
    """An array that stays as it is when the leaf is donated."""
    if _is_whole(leaf):
        return np.array(leaf)
    # Orbax copies from a device to the host before it returns, but reads a CPU's array in place.
    if leaf.sharding.mesh.devices.flat[0].platform != "cpu":
        return leaf
    pieces = [jax.device_put(np.array(s.data), s.device) for s in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, pieces)


def _end_to_end(leaves: list[Any], lead: int) -> Any:
    """Small arrays as one, `[n]` or `[e, n]`; a global array where no process has all members."""
    local = [_local_members(leaf) for leaf in leaves]
    joined = np.concatenate([x.reshape(*x.shape[:lead], -1) for x in local], axis=-1)
    first = leaves[0]
    if not lead or joined.shape[0] == first.shape[0]:
        return joined
    over_members = NamedSharding(first.sharding.mesh, PartitionSpec(ENSEMBLE_AXIS))
    return jax.make_array_from_process_local_data(
        over_members, joined, (first.shape[0], joined.shape[1])
    )


def _local_members(leaf: Any) -> np.ndarray:
    """A small array as far as this process holds its members."""
    if _is_whole(leaf):
        return np.asarray(leaf)
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    pieces = {shard.index[0].start or 0: shard.data for shard in leaf.addressable_shards}
    return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])


def _placed(leaf: Any, like: Any) -> Any:
    sharding = getattr(like, "sharding", None)
    return leaf if sharding is None or isinstance(leaf, jax.Array) else put(leaf, sharding)
