"""Compiled programs kept on disk, so that the second start of a run is fast."""

from __future__ import annotations

import functools
import gc
import hashlib
import os
import pickle
import platform
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.experimental.serialize_executable as executables

from drifa_jax.cpu.memory import (
    KeptMemory,
    give_back_freed_memory,
    run_programs_in_the_calling_thread,
)
from drifa_jax.cpu.options import compiler_options, training_options
from drifa_jax.digests import digest
from drifa_jax.whole_files import cache_folder, written_whole

__all__ = [
    "KeptMemory",
    "Program",
    "compiled_beside",
    "compiler_options",
    "give_back_freed_memory",
    "run_programs_in_the_calling_thread",
    "training_options",
    "use_compilation_cache",
    "without_garbage_collection",
]


MOST_KEPT = 64
"""Executables that are kept; the oldest go. One of the quick configuration takes 1 MB."""


def use_compilation_cache() -> Path:
    """Keeps compiled programs in a folder of the user's; returns it.

    `JAX_COMPILATION_CACHE_DIR` chooses another folder. Called by commands, never at import.
    """
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    folder = Path(chosen) if chosen else cache_folder() / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """For tracing, which makes a million objects that stay; looking among them takes a second."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def compiled_beside(lowered: Any) -> Future:
    """A lowered program's executable, compiled or loaded while this thread does something else."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="compile")
    compiled = executor.submit(_compile, lowered)
    executor.shutdown(wait=False)
    return compiled


class Program:
    """A jitted function, whose executables the next start of a command loads without tracing.

    XLA's own cache spares compiling alone: to ask it, a network is traced and lowered first.

    Args:
      function: as `jax.jit` returns it.
      named: plain values that tell its code from any other's, beside the code of this package;
        None keeps nothing. Executables are kept only in a command that uses the compilation
        cache, in its folder: what lies there is run, so it must be the user's own.
    """

    def __init__(self, function: Any, named: Any = None):
        self._function, self._named = function, named
        self._executables: dict[Any, Future] = {}

    def __call__(self, *arguments: Any) -> Any:
        return self.ready(*arguments).result()(*arguments)

    def ready(self, *arguments: Any) -> Future:
        """The executable for arguments of these shapes, loaded or compiled beside this thread."""
        leaves, structure = jax.tree.flatten(arguments)
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
        if (shapes, structure) not in self._executables:
            self._executables[shapes, structure] = self._made(arguments, shapes, str(structure))
        return self._executables[shapes, structure]

    def _made(self, arguments: Any, shapes: Any, structure: str) -> Future:
        path = None
        if self._named is not None and (folder := jax.config.jax_compilation_cache_dir):
            key = digest([self._named, shapes, structure, _machine()])
            path = Path(folder) / "executables" / key
        make: Callable[[], Any]
        if path is not None and path.exists():
            make = functools.partial(self._loaded, path, arguments)
        else:
            make = functools.partial(_compiled_and_kept, self._lowered(arguments), path)
        executor = ThreadPoolExecutor(1, thread_name_prefix="compile")
        made = executor.submit(make)
        executor.shutdown(wait=False)
        return made

    def _lowered(self, arguments: Any) -> Any:
        with without_garbage_collection():
            return self._function.lower(*arguments)

    def _loaded(self, path: Path, arguments: Any) -> Any:
        try:
            content = path.read_bytes()
            if hashlib.sha256(content[32:]).digest() != content[:32]:
                raise ValueError("it is not what was written")
            parts, count = pickle.loads(zlib.decompress(content[32:]))
            return executables.deserialize_and_load(*parts, execution_devices=jax.devices()[:count])
        except Exception:  # whatever XLA says to an executable that it cannot use
            return _compiled_and_kept(self._lowered(arguments), path)


_of_this_thread = threading.local()


@functools.cache
def _listen_for_loads() -> None:
    def note(event: str, **facts: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            _of_this_thread.loaded = True

    jax.monitoring.register_event_listener(note)


def _compiled_and_kept(lowered: Any, path: Path | None) -> Any:
    _listen_for_loads()
    _of_this_thread.loaded = False
    compiled = _compile(lowered)
    # What XLA's cache gave back lacks functions when it is written a second time (jax 0.10.2).
    if path is not None and not _of_this_thread.loaded:
        try:
            count = len(jax.tree.leaves(compiled.output_shardings)[0].device_set)
            parts = executables.serialize(compiled)
            content = zlib.compress(pickle.dumps((parts, count)), 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as partial:
                partial.write_bytes(hashlib.sha256(content).digest() + content)
            kept = sorted(path.parent.glob("[0-9a-f]*"), key=os.path.getmtime)
            for old in kept[:-MOST_KEPT]:
                old.unlink(missing_ok=True)
        except Exception:  # a full disk, or a device whose executables cannot be written
            return compiled
    return compiled


@functools.cache
def _machine() -> Mapping[str, Any]:
    """What an executable depends on beside its function: code, versions, devices and settings."""
    source = hashlib.blake2b(digest_size=16)
    root = Path(__file__).parent
    for file in sorted(root.rglob("*.py")):
        source.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    processor = Path("/proc/cpuinfo")
    lines = processor.read_text().splitlines() if processor.exists() else [platform.processor()]
    kinds = ("flags", "model name", "Features", "CPU part")
    devices = jax.devices()
    flags = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
    return {
        "source": source.hexdigest(),
        "versions": [version(name) for name in ("jax", "jaxlib", "flax")],
        "platform": devices[0].client.platform_version,
        "devices": [device.device_kind for device in devices],
        "processor": sorted({x for x in lines if x.startswith(kinds)}) if len(lines) > 1 else lines,
        "flags": [os.environ.get(name, "") for name in flags],
        "config": {n: str(x) for n, x in jax.config.values.items() if "cache" not in n},
    }


def _compile(lowered: Any) -> Any:
    compiled = lowered.compile()
    give_back_freed_memory()
    return compiled
