"""Memory that compiled programs use and free again, where the C library is glibc.

XLA asks for a program's temporary memory anew each time that the program runs. What is larger
than 32 MiB glibc takes from the system and returns to it at once, so that every run touches new
pages; the system clears each of them first. That was a quarter of the processor time of a
training step at the paper's width.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Callable
from typing import Any

import jax

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Names of `mallopt`, from malloc.h."""

_NEVER = -1
_LARGEST_MMAP_THRESHOLD = 2**25
"""Bytes up to which glibc may come to keep allocations by itself."""

_RETURNED_AT_ONCE = 2**20
"""Bytes from which all but the kept memory goes back when freed, copies for checkpoints first."""

_USUAL_MMAP_MAX = 65536

_ALIGNMENT, _SPARE = 64, 256
"""Bytes: of XLA's allocations, and of what they need for a moment beside their size."""

_HEADER = 8
"""Bytes before each allocation, beside those that it shares with the one before."""

_FRONT = 2**23
"""Bytes before the memory that is lent: each run takes `_SPARE` of them."""

_SMALL = 2**24
"""Bytes for all that is allocated beside the program's memory and outlives the run."""


def run_programs_in_the_calling_thread() -> None:
    """Lets `KeptMemory` work; to be called before JAX finds its devices.

    glibc keeps memory of this size for the main thread alone, and JAX hands programs for CPU to
    another one otherwise. Nothing changes on accelerators.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def give_back_freed_memory() -> None:
    """Returns to the system what the C library keeps of freed memory, where it is glibc.

    Compiling a training step leaves about a gigabyte that nobody uses and that counts as the
    process' own until something asks for it.
    """
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


class KeptMemory:
    """The temporary memory of one program, kept from each run to the next.

        memory = KeptMemory(compiled.memory_analysis().temp_size_in_bytes)
        while training:
            state = memory.run(compiled, state, batch)
        memory.give_back()

    An allocation of its own holds the place between runs. For a run it shrinks to its front, so
    that the program's allocation finds the rest free, and grows back over it afterwards. Should
    something else lie there, the program gets new pages, as it would without; the place is given
    up, and the next run begins another.

    Does nothing on accelerators, where the C library is not glibc or keeps memory of this size by
    itself, and where programs run in another thread (`run_programs_in_the_calling_thread`).

    Args:
      num_bytes: the program's temporary memory.
    """

    def __init__(self, num_bytes: int):
        helps = jax.default_backend() == "cpu" and not _dispatches_to_another_thread()
        self._libc = _glibc() if helps and num_bytes > _LARGEST_MMAP_THRESHOLD else None
        self._size = num_bytes
        self._front = 0
        self._held: int | None = None
        self._guards: list[int] = []

    def run(self, program: Callable[..., Any], *arguments: Any) -> Any:
        """What `program(*arguments)` returns; ready, where memory is kept at all.

        Args:
          program: compiled, on one device.
          arguments: arrays on that device; to copy others there takes another thread.
        """
        if self._libc is None:
            return program(*arguments)
        # A program that has to wait for its arguments runs in another thread.
        jax.block_until_ready(arguments)
        if self._front < _SPARE:
            self.give_back()
        if self._held is None:
            self._reserve()
        self._front -= _SPARE
        held = self._libc.realloc(self._held, self._front)
        try:
            return jax.block_until_ready(program(*arguments))
        finally:
            self._held = self._libc.realloc(held, self._front + self._size)
            if self._held != held:
                self.give_back()

    def give_back(self) -> None:
        """Returns the memory to the system; the next run gets new pages, and keeps those."""
        if self._held is not None:
            for place in (self._held, *self._guards):
                self._libc.free(place)
            self._libc.malloc_trim(0)
            self._held, self._guards, self._front = None, [], 0

    def _reserve(self) -> None:
        self._libc.mallopt(_MMAP_THRESHOLD, _RETURNED_AT_ONCE)
        self._libc.mallopt(_TRIM_THRESHOLD, _NEVER)
        self._libc.mallopt(_MMAP_MAX, 0)
        size = _FRONT + self._size + _SPARE
        # What is allocated during a run goes to the smallest free place, which is not ours.
        self._held, guard, small, end = (
            self._libc.malloc(num_bytes) for num_bytes in (size, _SMALL, _SMALL, _SMALL)
        )
        # Aligned as it is, the program's allocation leaves nothing before itself.
        self._front = _FRONT - ((self._held or 0) + _FRONT + _HEADER) % _ALIGNMENT
        self._libc.free(small)
        self._guards = [guard, end]
        self._libc.mallopt(_MMAP_MAX, _USUAL_MMAP_MAX)


def _dispatches_to_another_thread() -> bool:
    return jax.config.read("jax_cpu_enable_async_dispatch")


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.realloc.restype = ctypes.c_void_p
    libc.realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    return libc
