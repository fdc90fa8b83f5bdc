"""Uploads through processes with limits: who asks, who waits, and who is started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from drifa_jax.data.record import Spec
from drifa_jax.predict.described import Description
from drifa_jax.serve.messages import Gone, receive, send
from drifa_jax.serve.options import Limits, Refused
from drifa_jax.serve.uploads import Form

START_SECONDS = 60.0
MOST_HEADERS = 2**20


@dataclass(frozen=True)
class Decoded:
    """A case as it came out of the process that decoded it.

    Attributes:
      pixels: modality -> array shaped and typed as its spec; tables are not among them.
      pictures: modality -> PNG.
      facts: modality -> what is known of its file, see `reading_case.Read`.
      rest: of a request in JSON, what beside arrays it holds.
    """

    pixels: dict[str, np.ndarray]
    pictures: dict[str, bytes]
    facts: dict[str, dict[str, Any]]
    rest: dict[str, Any]


class Decoders:
    """Some processes, each of which decodes one case at a time.

    Args:
      description: of what the network reads.
      limits: of each process, and how many there are.
      on_restart: called whenever one had to be started again.
    """

    def __init__(self, description: Description, limits: Limits, on_restart: Callable[[], None]):
        self._specs = {spec.name: spec for spec in description.modalities}
        self._limits, self._on_restart = limits, on_restart
        modalities = {
            name: [asdict(spec), asdict(description.readings[name])]
            for name, spec in self._specs.items()
        }
        self._setup = {
            "modalities": modalities,
            "seconds": limits.decode_seconds,
            "bytes": limits.decode_bytes,
            "side": limits.preview_side,
        }
        self._idle: queue.SimpleQueue[_Process | None] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(limits.decoders, thread_name_prefix="decode")
        for process in [_Process(self._setup) for _ in range(limits.decoders)]:
            self._idle.put(process)

    async def decode(self, form: Form, numbers: Mapping[str, int]) -> Decoded:
        """What the files of a form hold.

        Args:
          form: read from a request; its files are closed afterwards by the caller.
          numbers: modality -> slice or frame to read.

        Raises:
          Refused: 422 with what is wrong; 503 where no process can be started.
        """
        loop = asyncio.get_running_loop()
        # A client that leaves does not take the files away from under the process.
        return await asyncio.shield(
            loop.run_in_executor(self._threads, self._decode, form, dict(numbers))
        )

    def close(self) -> None:
        """Ends the processes, with whatever they are doing."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        while not self._idle.empty():
            if (process := self._idle.get()) is not None:
                process.close()

    def _decode(self, form: Form, numbers: dict[str, int]) -> Decoded:
        process = self._idle.get()
        try:
            if process is None or not process.alive:
                process = self._restarted(process)
            job, files = _job(form, numbers)
            said, content = process.ask(job, files, self._limits)
            return self._checked(said, content)
        except (OSError, Gone) as error:
            process = self._restarted(process)
            if isinstance(error, TimeoutError):
                raise _beyond_limits(self._limits) from None
            raise Refused(
                503, "The process that decodes was lost; try again.", "decoder", 1
            ) from None
        finally:
            self._idle.put(process)

    def _restarted(self, process: _Process | None) -> _Process | None:
        if process is not None:
            process.close()
        self._on_restart()
        try:
            return _Process(self._setup)
        except (OSError, Gone):
            return None

    def _checked(self, said: Any, content: bytes) -> Decoded:
        """The answer of a process that a file may have taken over: only shapes are believed."""
        if "error" in said:
            raise Refused(422, str(said["error"])[:2000], "unreadable")
        if "died" in said:
            self._on_restart()
            raise _beyond_limits(self._limits)
        pixels, pictures, facts, place = {}, {}, {}, 0
        for name, image in said["modalities"].items():
            spec: Spec = self._specs[name]
            count, shown = int(image["pixels"]), int(image["picture"])
            if count != int(np.prod(spec.shape)) * spec.dtype.itemsize:
                raise Gone("another size")
            array = np.frombuffer(content, spec.dtype, count // spec.dtype.itemsize, place)
            pixels[name] = array.reshape(spec.shape)
            pictures[name] = content[place + count : place + count + shown]
            facts[name] = dict(image["facts"])
            place += count + shown
        return Decoded(pixels, pictures, facts, dict(said["rest"]))


def _beyond_limits(limits: Limits) -> Refused:
    return Refused(
        422,
        f"The case could not be decoded within {limits.decode_seconds:g} s and "
        f"{limits.decode_bytes / 2**30:g} GiB of memory, or a file is made to break its reader.",
        "beyond_limits",
    )


def _job(form: Form, numbers: Mapping[str, int]) -> tuple[dict[str, Any], list[int]]:
    if form.json is not None:
        return {"json": True, "modalities": []}, [form.json.fileno()]
    if form.study:
        return {"study": True, "modalities": []}, [upload.file.fileno() for upload in form.study]
    files: list[int] = []
    modalities = []
    for name, uploads in form.files.items():
        held = []
        for upload in uploads:
            held.append((len(files), upload.suffix))
            files.append(upload.file.fileno())
        modalities.append({"name": name, "files": held, "number": numbers.get(name)})
    return {"modalities": modalities}, files


class _Process:
    """One process with limits, and the folder of its links."""

    def __init__(self, setup: dict[str, Any]):
        ours, theirs = socket.socketpair()
        self._folder = tempfile.mkdtemp(prefix="drifa-serve-")
        self._link = ours
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "drifa_jax.serve.decoder", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,
            )
        ours.settimeout(START_SECONDS)
        try:
            send(ours, setup | {"folder": self._folder})
            receive(ours, MOST_HEADERS)
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, job: dict[str, Any], files: list[int], limits: Limits) -> tuple[Any, bytes]:
        """Raises TimeoutError, OSError or Gone; the process is of no use then."""
        self._link.settimeout(limits.decode_seconds + 1)
        send(self._link, job, files=files)
        said, content, more = receive(self._link, limits.upload_bytes * 2)
        if more or not isinstance(said, dict):
            raise Gone("more than was asked for")
        return said, content

    def close(self) -> None:
        self._link.close()
        if self.alive:
            # The children of this process are of its session, and die with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def _environment() -> dict[str, str]:
    """Little memory set aside, and one thread: a fork takes no other along."""
    names = ("PATH", "PYTHONPATH", "LANG", "HOME", "VIRTUAL_ENV")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
