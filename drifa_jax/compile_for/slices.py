"""Slices of TPUs by the names that clouds give them, and their devices without having one.

libtpu, the compiler and runtime of TPUs, describes every slice it knows on any machine. Called
before JAX starts, `prepare_environment` keeps it from looking for a TPU.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from drifa_jax.chips import TPU, TPUS
from drifa_jax.errors import UserError

SHAPES = {
    2: {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8)}
    | {128: (8, 16), 256: (16, 16)},
    3: {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4)}
    | {128: (4, 4, 8), 256: (4, 8, 8), 512: (8, 8, 8), 1024: (8, 8, 16)},
}
"""Axes of the torus -> chips -> chips along each axis, as the clouds offer them."""

SAME = {"v5litepod": "v5e"}
"""What the cloud calls a generation -> what libtpu calls it."""

QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing here touches a TPU
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class Slices:
    """One slice of TPUs, or several equal ones joined by the data center's network.

    Attributes:
      name: as it was asked for.
      generation: a key of `chips.TPUS`.
      shape: chips along each axis of one slice.
      count: of slices.
    """

    name: str
    generation: str
    shape: tuple[int, ...]
    count: int = 1

    @property
    def tpu(self) -> TPU:
        """What one of its devices can do."""
        return TPUS[self.generation]

    def devices(self) -> list[Any]:
        """Its devices, to compile for and not to run on.

        Raises:
          UserError: where libtpu is missing, of another version, or does not know the slice.
        """
        check_libtpu()
        import jax
        from jax.experimental import topologies

        options: dict[str, Any] = {"num_slices": self.count} if self.count > 1 else {}
        if self.generation == "v4":
            options["chip_config_name"] = "megacore"  # both cores of a chip are one device
        if self.shape == (1, 1):
            options["chips_per_host_bounds"] = (1, 1, 1)
        name = f"{self.generation}:{'x'.join(map(str, self.shape))}"
        try:
            with _quiet():
                described = topologies.get_topology_desc(
                    platform="tpu", topology_name=name, **options
                )
            return list(described.devices)
        except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"--topology {self.name}: this libtpu cannot describe it ({reason}). It knows "
                f"{known()}."
            ) from error


def slices_named(name: str, count: int = 1) -> Slices:
    """The slices of a name: v5e-16, v5litepod-16, v4-32 (16 chips), v6e-8, or v5e:4x4.

    Raises:
      UserError: listing the names that are known.
    """
    if count < 1:
        raise UserError(f"--slices {count}: there must be at least 1.")
    found = re.fullmatch(r"([a-z0-9]+?)(-|:)(\d+(?:x\d+)*)", name.strip().lower())
    generation = SAME.get(found[1], found[1]) if found else ""
    if found and generation in TPUS:
        tpu = TPUS[generation]
        if found[2] == ":":
            shape = tuple(int(size) for size in found[3].split("x"))
            if shape in SHAPES[tpu.num_axes].values():
                return Slices(name, generation, shape, count)
        elif found[3].isdigit():
            chips = int(found[3]) / (2 if tpu.counts_cores else 1)
            if chips in SHAPES[tpu.num_axes]:
                return Slices(name, generation, SHAPES[tpu.num_axes][int(chips)], count)
    raise UserError(f"--topology {name}: there is no such slice. Known are {known()}.")


def known() -> str:
    """All names, in words."""
    lists = []
    for generation, tpu in TPUS.items():
        each = 2 if tpu.counts_cores else 1
        counts = [str(each * chips) for chips in SHAPES[tpu.num_axes]]
        lists.append(f"{generation}-{', '.join(counts)}")
    return "; ".join(lists)


def prepare_environment() -> None:
    """Lets libtpu compile on a machine without a TPU, and quietly; before JAX is imported."""
    os.environ.update(QUIET)
    os.environ["JAX_PLATFORMS"] = "cpu"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what libtpu complains of where there is no TPU, straight to the terminal."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def wanted_libtpu() -> str:
    """The versions of libtpu that this JAX pins, e.g. 0.0.42.*."""
    for requirement in importlib.metadata.requires("jax") or ():
        if found := re.match(r"libtpu\s*==\s*([\w.*]+)\s*;\s*extra == .tpu", requirement):
            return found[1]
    return "*"


def check_libtpu() -> None:
    """Refuses to go on without the libtpu that this JAX pins.

    Raises:
      UserError: with the command that installs it.
    """
    wanted = wanted_libtpu()
    package = "libtpu" if wanted == "*" else f"libtpu=={wanted}"
    command = shlex.join([sys.executable, "-m", "pip", "install", package])
    try:
        version = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"compiling for TPUs needs libtpu, 205 MB, and no TPU: {command}") from None
    if not fnmatch.fnmatch(version, wanted):
        jax = importlib.metadata.version("jax")
        raise UserError(f"libtpu is {version}, and jax {jax} works with {wanted}: {command}")
