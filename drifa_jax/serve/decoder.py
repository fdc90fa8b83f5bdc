"""The process that decodes what strangers send: `python -m drifa_jax.serve.decoder DESCRIPTOR`.

It forks once for each case. The child may take so much memory and time and write no file; it
answers and ends, so that nothing of one case is there when the next one comes, and a file that
brings it down brings down nobody else. This process itself never reads a file.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from drifa_jax.data.record import described_spec
from drifa_jax.errors import UserError
from drifa_jax.predict.reading import Reading
from drifa_jax.serve.messages import Gone, receive, send
from drifa_jax.serve.reading_case import Read, parse_json, read_array, read_files
from drifa_jax.serve.study_case import by_modality, sources_json

MOST = 2**24
"""Bytes of a question; files come beside it."""


def main() -> None:
    """Answers until the server leaves."""
    # The terminal's Ctrl-C is the server's to hear: it lets open cases end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link = socket.socket(fileno=int(sys.argv[1]))
    cv2.setNumThreads(0)
    setup, _, _ = receive(link, MOST)
    folder = Path(setup["folder"])
    described = {
        name: (described_spec(spec), Reading.from_json(reading))
        for name, (spec, reading) in setup["modalities"].items()
    }
    _import_readers()
    send(link, {"ready": True})
    number = 0
    while True:
        try:
            job, _, files = receive(link, MOST)
        except (Gone, OSError):
            shutil.rmtree(folder, ignore_errors=True)
            return
        number += 1
        own = folder / str(number)
        child = os.fork()
        if not child:
            _answer(link, job, files, described, own, setup)
        for file in files:
            os.close(file)
        _, status = os.waitpid(child, 0)
        shutil.rmtree(own, ignore_errors=True)
        if status:
            send(link, {"died": status})


def _import_readers() -> None:
    """Before the first case, so that no child has to; those that lack are told of when needed."""
    for name in ("pydicom", "pydicom.pixels", "nibabel", "PIL.Image"):
        try:
            __import__(name)
        except ImportError:
            continue
    from PIL import Image

    Image.init()


def _answer(link, job, files, described, folder: Path, setup: dict[str, Any]) -> None:
    """Runs in the child, and ends it."""
    code = 1
    try:
        _limit(setup["seconds"], setup["bytes"])
        folder.mkdir(mode=0o700)
        try:
            said, content = _decoded(job, files, described, folder, setup["side"])
        except UserError as error:
            # Files have names that this program gave them; where they lie means nothing.
            lies = re.compile(re.escape(f"{folder}/") + r"[^/]+/")
            said, content = {"error": lies.sub("", str(error))}, b""
        except MemoryError:
            said, content = {"died": 0}, b""
        send(link, said, content)
        code = 0
    finally:
        # Not even a traceback: it may quote what the file holds.
        os._exit(code)


def _limit(seconds: float, size: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime)
    for name, value in (
        ("RLIMIT_AS", size),
        ("RLIMIT_CPU", spent + int(seconds) + 1),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_CORE", 0),
    ):
        resource.setrlimit(getattr(resource, name), (value, value))


def _decoded(job, files, described, folder: Path, side: int) -> tuple[dict[str, Any], bytes]:
    rest: dict[str, Any] = {}
    read: dict[str, Read] = {}
    if job.get("json"):
        with os.fdopen(files[0], "rb") as file:
            file.seek(0)
            specs = {name: spec for name, (spec, _) in described.items()}
            arrays, rest = parse_json(file.read(), specs)
        for name, value in arrays.items():
            read[name] = read_array(value, *described[name], side)
    for item in _items(job, files, described, folder):
        name = item["name"]
        spec, reading = described[name]
        paths = _linked(folder / name, name, [(files[k], suffix) for k, suffix in item["files"]])
        read[name] = read_files(paths, spec, reading, item["number"], side)
        if job.get("study"):
            frame = read[name].facts.get("slice")
            rest.setdefault("sources", {})[name] = sources_json(paths, frame)
    found, parts = {}, []
    for name, image in read.items():
        pixels = np.ascontiguousarray(image.pixels).tobytes()
        found[name] = {"facts": image.facts, "pixels": len(pixels), "picture": len(image.picture)}
        parts += [pixels, image.picture]
    return {"modalities": found, "rest": rest}, b"".join(parts)


def _items(job, files, described, folder: Path) -> list[dict[str, Any]]:
    """Which file is which modality, as the client says it or, of a study, the files do."""
    if not job.get("study"):
        return job["modalities"]
    all_of_them = [(file, ".dcm") for file in files]
    paths = _linked(folder / "a study", "study", all_of_them)
    specs = {name: spec for name, (spec, _) in described.items()}
    found = by_modality(paths, specs)
    return [
        {"name": name, "files": [(paths.index(p), ".dcm") for p in several], "number": None}
        for name, several in found.items()
    ]


def _linked(folder: Path, name: str, files: list[tuple[int, str]]) -> list[Path]:
    """Links with proper names to files in memory."""
    folder.mkdir(mode=0o700)
    paths = []
    for number, (file, suffix) in enumerate(files):
        many = f" {number + 1}" if len(files) > 1 else ""
        path = folder / f"{name}{many}{suffix}"
        path.symlink_to(f"/proc/self/fd/{file}")
        paths.append(path)
    return paths


if __name__ == "__main__":
    main()
