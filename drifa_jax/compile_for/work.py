"""What a compiled program does on one chip: FLOPs, traffic of its memories and of the network.

Traffic is what instructions read and write at the top level of the program, with loops counted as
often as they run; inside of a fused instruction values stay in registers. XLA's own
`cost_analysis` counts traffic within the chip as well, and loops once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from drifa_jax.compile_for.program_text import (
    HBM,
    VMEM,
    Array,
    Computation,
    Instruction,
    Program,
    convolution_flops,
    walk,
)

FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "domain", "add-dependency"),
}
"""Instructions that move nothing."""
FREE_CALLS = {"ConcatBitcast", "AllocateBuffer", "Sharding"}
COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"),
    *("ragged-all-to-all", "collective-broadcast"),
)
SLICES = {"dynamic-slice", "slice", "gather"}
PARTS = {"dynamic-update-slice"}


@dataclass(frozen=True)
class Access:
    """What one instruction moves, all its runs together.

    Attributes:
      name, opcode: of the instruction.
      source: where in the traced program it comes from.
      times: that it runs.
      hbm_bytes, vmem_bytes: read and written.
      cycles: that the compiler expects.
    """

    name: str
    opcode: str
    source: str
    times: int
    hbm_bytes: int
    vmem_bytes: int
    cycles: int


@dataclass(frozen=True)
class Collective:
    """One exchange between chips.

    Attributes:
      kind: its opcode; "dcn" over the data center's network.
      num_bytes: of the whole array, on one chip.
      group_size: chips that take part together.
      times: that it runs.
    """

    kind: str
    num_bytes: int
    group_size: int
    times: int


@dataclass(frozen=True)
class Work:
    """All that a program does on one chip.

    Attributes:
      flops: of products and convolutions.
      accesses: of the memories, most of HBM first.
      collectives: in the order of the program.
      num_fusions: fused instructions, those in loops once.
    """

    flops: int
    accesses: tuple[Access, ...]
    collectives: tuple[Collective, ...]
    num_fusions: int

    @property
    def hbm_bytes(self) -> int:
        """Read from and written to HBM."""
        return sum(access.hbm_bytes for access in self.accesses)

    @property
    def vmem_bytes(self) -> int:
        """Read from and written to the memory beside the units."""
        return sum(access.vmem_bytes for access in self.accesses)

    @property
    def cycles(self) -> int:
        """That the compiler expects, one instruction after the other."""
        return sum(access.cycles for access in self.accesses)


def work_of(program: Program, num_devices: int) -> Work:
    """The work of a parsed program.

    Args:
      program: from `program_text.parse`.
      num_devices: that it runs on.
    """
    flops, num_fusions = 0, 0
    accesses, collectives = [], []
    for instruction, computation, times in walk(program):
        flops += times * _flops(program, instruction, computation)
        num_fusions += instruction.opcode == "fusion"
        moved = list(_moved(program, instruction, computation))
        of_space = {HBM: 0, VMEM: 0}
        for num_bytes, space in moved:
            if space in of_space:
                of_space[space] += times * num_bytes
        accesses.append(
            Access(
                instruction.name,
                instruction.opcode,
                instruction.source,
                times,
                of_space[HBM],
                of_space[VMEM],
                times * instruction.cycles,
            )
        )
        if found := _collective(program, instruction, computation, times, num_devices):
            collectives.append(found)
    accesses.sort(key=lambda access: -access.hbm_bytes)
    return Work(flops, tuple(accesses), tuple(collectives), num_fusions)


def _flops(program: Program, instruction: Instruction, computation: Computation) -> int:
    if instruction.opcode in ("convolution", "dot"):
        return convolution_flops(instruction, computation)
    if instruction.opcode != "fusion":
        return 0
    fused = program.computations[instruction.called["calls"]]
    return sum(_flops(program, inner, fused) for inner in fused.values())


def _moved(
    program: Program, instruction: Instruction, computation: Computation
) -> Iterator[tuple[int, int]]:
    """Bytes and memory space of each read and write."""
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith("-done"):
        return
    if opcode == "custom-call" and any(
        f'"{name}"' in instruction.attributes for name in FREE_CALLS
    ):
        return
    operands = [_array_of(computation, name) for name in instruction.operands]
    if opcode in ("copy-start", "slice-start"):
        yield from _started(opcode, instruction.arrays)
        return
    if opcode == "fusion":
        yield from _of_fusion(program, instruction.called["calls"], operands, instruction.arrays)
        return
    written = instruction.arrays
    if opcode in PARTS:
        operands, written = operands[1:2], (_in(instruction.arrays[0].space, operands[1]),)
    elif opcode in SLICES:
        operands = [_in(operands[0].space, instruction.arrays[0])]
    elif opcode in ("send", "recv"):
        written = instruction.arrays[:1] if opcode == "recv" else ()
    elif opcode.endswith("-start"):
        written = instruction.arrays[-1:]
    for array in (*operands, *written):
        yield array.num_bytes, array.space


def _started(opcode: str, arrays: Sequence[Array]) -> Iterator[tuple[int, int]]:
    """Of a copy that goes on beside other work: a part or the whole, from one place to another."""
    to, source = arrays[:2] if opcode == "copy-start" else arrays[1::-1]
    yield to.num_bytes, source.space
    yield to.num_bytes, to.space


def _of_fusion(
    program: Program, name: str, operands: Sequence[Array], written: Sequence[Array]
) -> Iterator[tuple[int, int]]:
    """Operands of which only slices are read, and results of which parts are written, count so."""
    for number, operand in enumerate(operands):
        yield (
            min(_read_of(program, name, number, operand.num_bytes), operand.num_bytes),
            operand.space,
        )
    for result, array in zip(_results(program, name), written, strict=False):
        yield array.num_bytes if result is None else result, array.space


def _read_of(program: Program, name: str, number: int, whole: int) -> int:
    """Bytes that a fused computation reads of one of its parameters."""
    fused = program.computations[name]
    parameters = [i for i in fused.values() if i.opcode == "parameter" and i.number == number]
    waiting, read = [i.name for i in parameters], 0
    while waiting:
        used = waiting.pop()
        for user in fused.values():
            if used not in user.operands:
                continue
            first = user.operands[0] == used
            if user.opcode == "bitcast":
                waiting.append(user.name)
            elif user.opcode == "fusion":
                inner = user.called["calls"]
                for place, operand in enumerate(user.operands):
                    if operand == used:
                        read += _read_of(program, inner, place, whole)
            elif user.opcode in SLICES and first:
                read += sum(array.num_bytes for array in user.arrays)
            elif not (user.opcode in PARTS and first):
                return whole
    return read


def _results(program: Program, name: str) -> list[int | None]:
    """Of each result of a fused computation the bytes that are written where it is a part of an
    array that is there already; None where all of it is written.
    """
    fused = program.computations[name]
    (root,) = [inner for inner in fused.values() if inner.is_root]
    found = []
    for result in (
        [fused[operand] for operand in root.operands] if root.opcode == "tuple" else [root]
    ):
        while result.opcode == "bitcast":
            result = fused[result.operands[0]]
        if result.opcode in PARTS:
            found.append(fused[result.operands[1]].arrays[0].num_bytes)
        elif result.opcode == "fusion":
            found += _results(program, result.called["calls"])
        else:
            found.append(None)
    return found


def _collective(
    program: Program,
    instruction: Instruction,
    computation: Computation,
    times: int,
    num_devices: int,
) -> Collective | None:
    if instruction.opcode == "fusion":
        return _fused_collective(program, instruction, times, num_devices)
    if instruction.opcode == "send":
        array = _array_of(computation, instruction.operands[0])
        return Collective("dcn", array.num_bytes, 2, times)
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES or instruction.opcode.endswith("-done"):
        return None
    num_bytes = _exchanged(instruction, computation)
    return Collective(kind, num_bytes, _group_size(instruction.attributes, num_devices), times)


def _exchanged(instruction: Instruction, computation: Computation) -> int:
    """Bytes of the whole array, which a gather writes and everything else reads."""
    if not instruction.opcode.startswith("all-gather"):
        return sum(_array_of(computation, name).num_bytes for name in instruction.operands)
    written = instruction.arrays
    if instruction.opcode.endswith("-start"):
        return written[-1].num_bytes
    return sum(array.num_bytes for array in written)


def _fused_collective(
    program: Program, instruction: Instruction, times: int, num_devices: int
) -> Collective | None:
    """An exchange within a fused instruction: a sum of which each chip keeps a part, or one that
    goes on beside other work, which counts where it begins and not in those that carry it on.
    """
    called = instruction.called["calls"]
    is_scattered = called.startswith("all-reduce-scatter")
    if not (is_scattered or instruction.name.startswith("async-collective-start")):
        return None
    fused = program.computations[called]
    for inner in fused.values():
        if inner.opcode in COLLECTIVES:
            kind = "reduce-scatter" if is_scattered else inner.opcode
            size = _group_size(inner.attributes, num_devices)
            return Collective(kind, _exchanged(inner, fused), size, times)
    return None


def _group_size(attributes: str, num_devices: int) -> int:
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(found[1].split(","))
    return num_devices


def _array_of(computation: Computation, name: str) -> Array:
    arrays = computation[name].arrays
    if len(arrays) == 1:
        return arrays[0]
    return Array("tuple", (), sum(array.num_bytes for array in arrays), arrays[0].space)


def _in(space: int, array: Array) -> Array:
    return Array(array.dtype, array.shape, array.num_bytes, space)
