"""Compiled programs as text: their instructions and the arrays that these read and write.

A TPU keeps arrays in HBM, or in the memory beside its units (VMEM), which the text marks `S(1)`,
and pads the last axes of an array to the tiles of its layout: the bytes here are those that lie in
memory, padding included.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

HBM, VMEM = 0, 1
"""Memory spaces of arrays that are worth counting."""

BITS = {"pred": 8, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_LAYOUT = re.compile(r"([\d,]*)(?::(?:T\(([\d,*]+)\))?.*?(?:S\((\d+)\))?)?$")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|body|to_apply|condition)=%([\w.\-]+)")


@dataclass(frozen=True)
class Array:
    """One array of a program: its dtype, logical shape, bytes in memory and memory space."""

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    space: int = HBM


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: of its result.
      opcode: what it does.
      arrays: its result, or the parts of it, in order.
      operands: names of what it reads.
      attributes: the rest of the line.
      is_root: whether the computation returns it.
      number: of a parameter of the computation; the value of a whole constant.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str = ""
    is_root: bool = False
    number: int = 0

    @functools.cached_property
    def called(self) -> dict[str, str]:
        """Role ("calls", "body", ...) -> name of a computation."""
        return {m[0].partition("=")[0]: m[1] for m in _CALLED.finditer(self.attributes)}

    @functools.cached_property
    def branches(self) -> tuple[str, ...]:
        """Names of the computations of a conditional."""
        found = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if found:
            return tuple(_NAME.findall(found[1]))
        return tuple(re.findall(r"(?:true|false)_computation=%([\w.\-]+)", self.attributes))

    @property
    def source(self) -> str:
        """Where in the traced program it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def cycles(self) -> int:
        """That the compiler expects it to take."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else 0


Computation = dict[str, Instruction]


@dataclass(frozen=True)
class Program:
    """The computations of a program by name, and which of them is called first."""

    computations: Mapping[str, Computation]
    entry: str


def parse(text: str) -> Program:
    """The program in the text of a compiled module.

    Raises:
      ValueError: where it has no entry.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        stripped = line.strip()
        if line[:1] in ("%", "E") and stripped.endswith("{") and " -> " in line:
            name = _NAME.search(line)[1]
            current = computations.setdefault(name, {})
            if line.startswith("ENTRY"):
                entry = name
        elif stripped == "}":
            current = None
        elif current is not None and " = " in stripped:
            instruction = _instruction(stripped)
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("the text has no ENTRY computation")
    return Program(computations, entry)


def arrays_of(text: str) -> tuple[Array, ...]:
    """The arrays in the text of a type, those of a tuple in order."""
    return tuple(_array(*found.groups()) for found in _SHAPE.finditer(text))


def _instruction(line: str) -> Instruction:
    is_root = line.startswith("ROOT ")
    name, _, rest = line.removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    return Instruction(
        name.lstrip("%"),
        rest[:opening],
        arrays_of(kind),
        tuple(_NAME.findall(inside)),
        rest[closing + 1 :],
        is_root,
        int(inside) if rest[:opening] in ("parameter", "constant") and inside.isdigit() else 0,
    )


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis that opens at a place is closed."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"an unclosed parenthesis: {text[:80]}")


@functools.lru_cache(maxsize=4096)
def _array(dtype: str, shape: str, layout: str | None) -> Array:
    sizes = tuple(int(size) for size in shape.split(",") if size)
    order, tile, space = _LAYOUT.match(layout or "").groups()
    padded = list(sizes)
    if tile and order:
        minor_first = [int(axis) for axis in order.split(",")]
        tiles = [1 if size == "*" else int(size) for size in tile.split(",")]
        for axis, size in zip(minor_first, reversed(tiles), strict=False):
            padded[axis] = -(-padded[axis] // size) * size
    bits = BITS.get(dtype)
    if bits is None:
        bits = int(re.search(r"\d+", dtype)[0]) if re.search(r"\d+", dtype) else 0
    return Array(dtype, sizes, math.prod(padded) * bits // 8, int(space or HBM))


def walk(program: Program) -> Iterator[tuple[Instruction, Computation, int]]:
    """Every instruction that runs by itself, its computation, and how often it runs.

    What is fused into one instruction is not among them. Of a conditional's branches the longest
    counts.
    """
    yield from _walk(program, program.entry, 1)


def _walk(program: Program, name: str, times: int) -> Iterator:
    computation = program.computations[name]
    for instruction in computation.values():
        if instruction.opcode == "while":
            for role in ("condition", "body"):
                yield from _walk(
                    program, instruction.called[role], times * trip_count(program, instruction)
                )
        elif instruction.opcode == "conditional":
            longest = max(instruction.branches, key=lambda b: len(program.computations[b]))
            yield from _walk(program, longest, times)
        elif instruction.opcode == "call":
            yield from _walk(program, instruction.called["to_apply"], times)
        elif instruction.opcode == "async-start":
            yield from _walk(program, instruction.called["calls"], times)
        else:
            yield instruction, computation, times


def trip_count(program: Program, loop: Instruction) -> int:
    """How often a loop runs, as the compiler notes or its condition says, counting from 0.

    Raises:
      ValueError: where neither does.
    """
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(found[1])
    condition = program.computations[loop.called["condition"]]
    inner = [program.computations[name] for i in condition.values() for name in i.called.values()]
    compared = [
        i
        for computation in (condition, *inner)
        for i in computation.values()
        if i.opcode == "compare"
    ]
    bounds = [i.number for i in condition.values() if i.opcode == "constant" and i.number]
    if len(compared) == 1 and len(bounds) == 1 and "direction=LT" in compared[0].attributes:
        return bounds[0]
    raise ValueError(f"nothing says how often the loop {loop.name} runs")


def convolution_flops(instruction: Instruction, computation: Computation) -> int:
    """FLOPs of a convolution or product, two for each element that meets a weight.

    Padding and the gaps of dilation meet none.
    """
    (output,) = instruction.arrays
    left, right = (computation[name].arrays[0] for name in instruction.operands[:2])
    if instruction.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
        return 2 * math.prod(output.shape) * math.prod(left.shape[axis] for axis in axes)
    of_left, of_right, of_output = re.search(
        r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes
    ).groups()
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(field.split("=") for field in window[1].split()) if window else {}

    def of_axis(name: str, axis: int, default: str) -> str:
        values = fields.get(name, "").split("x")
        return values[axis] if fields.get(name) else default

    flops = 2 * right.shape[of_right.index("i")]
    flops *= output.shape[of_output.index("b")] * output.shape[of_output.index("f")]
    for axis in range(len(of_output) - 2):
        flops *= _meetings(
            left.shape[of_left.index(str(axis))],
            right.shape[of_right.index(str(axis))],
            output.shape[of_output.index(str(axis))],
            int(of_axis("stride", axis, "1")),
            int(of_axis("pad", axis, "0_0").partition("_")[0]),
            int(of_axis("lhs_dilate", axis, "1")),
            int(of_axis("rhs_dilate", axis, "1")),
        )
    return flops


@functools.lru_cache(maxsize=1024)
def _meetings(size, side, places, stride, low, spread, window_spread) -> int:
    """Pairs of an output and a weight, along one axis, that an element of the input meets."""
    at = np.arange(places)[:, None] * stride + np.arange(side)[None] * window_spread - low
    return int(np.count_nonzero((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)))
