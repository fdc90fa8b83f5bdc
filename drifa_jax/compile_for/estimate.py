"""What a compiled program will cost on its slice: memory of a chip, and the bound of each resource.

A bound is the time that a resource alone would need at its peak: the step takes at least the
longest of them, and more where they do not overlap.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from drifa_jax.compile_for.program_text import parse
from drifa_jax.compile_for.slices import Slices
from drifa_jax.compile_for.work import Collective, Work, work_of
from drifa_jax.errors import UserError
from drifa_jax.train.program import planned_bytes

GIB = 2**30
HOP_SECONDS = 1e-6
"""That a message takes from chip to chip."""

_TOO_LARGE = re.compile(
    r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"
    r"|\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}


@dataclass(frozen=True)
class Memory:
    """Bytes of one chip.

    Attributes:
      kinds: what they hold -> bytes, where the program was compiled.
      total: that it needs.
      limit: that a program may use; None where the compiler did not say.
    """

    kinds: Mapping[str, int]
    total: int
    limit: int | None = None

    @property
    def fits(self) -> bool:
        """Whether the compiler found room."""
        return self.limit is None


@dataclass(frozen=True)
class Estimate:
    """One program on one slice.

    Attributes:
      name: of the program.
      num_records: in its batch.
      seconds: that tracing and compiling took.
      memory: of one chip.
      bounds: resource -> seconds at its peak; empty where it does not fit.
      work: on one chip; None where it does not fit.
      program_bytes: of its code.
    """

    name: str
    num_records: int
    seconds: float
    memory: Memory
    bounds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    work: Work | None = None
    program_bytes: int = 0

    @property
    def bottleneck(self) -> str:
        """The resource with the longest bound."""
        return max(self.bounds, key=self.bounds.__getitem__) if self.bounds else ""

    def to_json(self) -> dict[str, Any]:
        """Plain values; bytes and FLOPs of one chip, seconds."""
        plain: dict[str, Any] = {
            "program": self.name,
            "records": self.num_records,
            "compile_seconds": round(self.seconds, 1),
            "fits": self.memory.fits,
            "memory_bytes": {"total": self.memory.total, **self.memory.kinds},
        }
        if self.memory.limit is not None:
            plain["memory_limit_bytes"] = self.memory.limit
        if self.work is None:
            return plain
        return plain | {
            "program_bytes": self.program_bytes,
            "flops": self.work.flops,
            "hbm_bytes": self.work.hbm_bytes,
            "vmem_bytes": self.work.vmem_bytes,
            "fusions": self.work.num_fusions,
            "compiler_cycles": self.work.cycles,
            "collectives": collective_sums(self.work),
            "bound_seconds": dict(self.bounds),
            "bottleneck": self.bottleneck,
        }


def estimate(
    name: str,
    lower: Any,
    num_records: int,
    slices: Slices,
    num_devices: int,
    held: Mapping[str, int] | None = None,
) -> Estimate:
    """Lowers, compiles and reads one program.

    Args:
      name: of the program, for people.
      lower: a function without arguments that lowers it.
      num_records: in its batch.
      slices: that it is compiled for.
      num_devices: that it runs on.
      held: kind -> bytes of its arguments on one device, of those worth telling apart.

    Raises:
      UserError: where the compiler refuses the program for another reason than its size.
    """
    began = time.perf_counter()
    try:
        compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        seconds = time.perf_counter() - began
        if (told := used_and_limit(str(error))) is None:
            raise UserError(
                f"the TPU compiler refuses the {name}: {str(error).splitlines()[0]}"
            ) from error
        return Estimate(name, num_records, seconds, Memory(dict(held or {}), *told))
    seconds = time.perf_counter() - began
    work = work_of(parse(compiled.as_text()), num_devices)
    code = compiled.memory_analysis().generated_code_size_in_bytes
    memory = _memory(planned_bytes(compiled), held or {}, code)
    return Estimate(name, num_records, seconds, memory, bounds(work, slices), work, code)


def used_and_limit(message: str) -> tuple[int, int] | None:
    """Bytes that a program needs and those that there are, as the compiler's refusal says."""
    found = _TOO_LARGE.search(message)
    if found is None:
        return None
    used, used_unit, limit, limit_unit = (part for part in found.groups() if part is not None)
    return int(float(used) * _UNITS[used_unit]), int(float(limit) * _UNITS[limit_unit])


def _memory(planned: Mapping[str, int], held: Mapping[str, int], code: int) -> Memory:
    other = planned["arguments"] - sum(held.values())
    kinds = dict(held) | {
        "other arguments": max(other, 0),
        "activations and temporary": planned["temporary"],
        "results": max(planned["outputs_not_donated"], 0),
        "program": code,
    }
    return Memory(kinds, sum(kinds.values()))


def bounds(work: Work, slices: Slices) -> dict[str, float]:
    """Resource -> seconds that it alone needs, of one chip."""
    tpu = slices.tpu
    own = [c for c in work.collectives if c.kind != "dcn"]
    across = [c for c in work.collectives if c.kind == "dcn"]
    found = {
        "MXU": work.flops / tpu.peak_flops,
        "HBM": work.hbm_bytes / tpu.memory_bandwidth,
    }
    if own:
        found["ICI"] = sum(_ici_seconds(c, slices) for c in own)
    if across:
        share = 2 * (slices.count - 1) / slices.count
        found["DCN"] = sum(share * c.num_bytes * c.times for c in across) / tpu.network_bandwidth
    return found


def _ici_seconds(collective: Collective, slices: Slices) -> float:
    """Of a ring over all links that the slice has, and the way through it."""
    tpu, size = slices.tpu, collective.group_size
    if size < 2:
        return 0.0
    links = hops = 0
    for along in slices.shape:
        wraps = along >= tpu.wraps_from
        links += 0 if along == 1 else 2 if wraps else 1
        hops += along // 2 if wraps else along - 1
    rounds = {"all-reduce": 2, "collective-permute": size / (size - 1)}.get(collective.kind, 1)
    sent = rounds * (size - 1) / size * collective.num_bytes
    turns = 2 if collective.kind == "all-reduce" else 1
    way = min(hops, size - 1) * HOP_SECONDS * turns
    return collective.times * (sent / (max(links, 1) * tpu.link_bandwidth) + way)


def collective_sums(work: Work) -> dict[str, dict[str, int]]:
    """Kind -> how often it runs, and bytes of its arrays together."""
    sums: dict[str, dict[str, int]] = {}
    for collective in work.collectives:
        of_kind = sums.setdefault(collective.kind, {"count": 0, "bytes": 0})
        of_kind["count"] += collective.times
        of_kind["bytes"] += collective.times * collective.num_bytes
    return sums


def bytes_on_a_device(tree: Any) -> int:
    """Of arrays described by shapes and shardings."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        total += math.prod(shape) * leaf.dtype.itemsize
    return total
