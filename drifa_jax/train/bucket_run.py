"""A run directory in a bucket: worked on in a local folder, brought before and sent while it runs.

A bucket knows no renaming and no locks, so the run itself lies on the disk of the machine. What
matters is in the bucket half a minute after it was written: every complete checkpoint, then
`checkpoints.json`, which lists those that are whole there, then the other files. Whoever starts the
run last owns it: `owner.json` holds its mark, and a process that finds another's there stops and
sends nothing more.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from drifa_jax.buckets import BucketFolder, local_folder
from drifa_jax.console import say
from drifa_jax.errors import UserError
from drifa_jax.processes import SaidByAll
from drifa_jax.train.checkpoint import DELETION_SECONDS
from drifa_jax.whole_files import only_one

OWNER, WHOLE = "owner.json", "checkpoints.json"
OWN_MARK = ".owner.json"
CHECKPOINTS = "checkpoints"
ASIDE = ".sending"
ATTEMPTS = 20
EVERY = 30.0
"""Seconds from one look for something to send to the next."""


class TakenOver(UserError):
    """Another process started the same run later."""


@contextmanager
def kept_in_bucket(url: str) -> Iterator[Path]:
    """A local folder to train in, which becomes the run directory `url` and goes on with it.

    Raises:
      UserError: where the bucket cannot be read or written, another process took the run over, or
        several processes train together.
    """
    if jax.process_count() > 1:
        raise SaidByAll(
            f"--workdir {url}: several processes write one checkpoint together, into a folder that "
            "all of them see. Mount the bucket (gcsfuse, mount-s3) and name the folder."
        )
    folder = local_folder(url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--workdir {url} is worked on in {folder}, which cannot be written "
            f"({error.strerror}); name another place by XDG_CACHE_HOME."
        ) from error
    taken = f"--workdir {url} is in use by another process of this machine."
    with only_one(folder.with_name(f".{folder.name}.lock"), taken):
        run = BucketRun(url, folder)
        run.bring()
        with run.sent_meanwhile():
            yield folder


class BucketRun:
    """One run, in a bucket and in a local folder."""

    def __init__(self, url: str, folder: Path):
        self._bucket, self._folder = BucketFolder(url), folder
        self._mark = json.dumps({"owner": uuid.uuid4().hex, "host": platform.node()}).encode()
        self._sent: dict[str, tuple[int, int]] = {}
        self._done = threading.Event()

    def bring(self) -> None:
        """Makes the local folder what the bucket holds, unless this folder was sent there last."""
        held = self._bucket.files()
        mark = self._folder / OWN_MARK
        ours = mark.is_file() and mark.read_bytes() == self._bucket.read(OWNER)
        if not ours:
            shutil.rmtree(self._folder)
            self._folder.mkdir()
            whole = {str(step) for step in json.loads(self._bucket.read(WHOLE) or b"[]")}
            self._bucket.bring(
                [
                    name
                    for name in held
                    if name not in (OWNER, WHOLE) and (_step(name) or "-") in whole | {"-"}
                ],
                self._folder,
            )
        self._bucket.write(OWNER, self._mark)
        mark.write_bytes(self._mark)

    @contextmanager
    def sent_meanwhile(self) -> Iterator[None]:
        """Sends what is new while the block runs, and all of it at its end."""
        sender = threading.Thread(target=self._send_again_and_again, daemon=True)
        sender.start()
        problem = None
        try:
            yield
        except BaseException as error:
            problem = error
            raise
        finally:
            self._done.set()
            sender.join()
            try:
                self.send()
            except UserError as error:
                # What ended the block is what the user has to know.
                if problem is None:
                    raise
                say(f"{error} What was not sent is in {self._folder}.")

    def _send_again_and_again(self) -> None:
        log = logging.getLogger(__name__)
        while not self._done.wait(EVERY):
            try:
                self.send()
            except TakenOver:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            except (UserError, OSError) as error:
                log.warning("not sent yet, tried again in %.0f s: %s", EVERY, error)

    def send(self) -> None:
        """Sends what the bucket lacks: checkpoints first, and their list before all else.

        Raises:
          UserError: where the bucket cannot be written; what was sent before is whole.
          TakenOver: where another process owns the run by now.
        """
        if self._bucket.read(OWNER) != self._mark:
            raise TakenOver(
                f"--workdir {self._bucket.url} was started again elsewhere, and goes on there. "
                f"What this process wrote since then is in {self._folder} only."
            )
        steps = self._set_aside()
        if steps is not None:
            aside = self._folder / ASIDE
            for step in sorted(steps, key=int):
                self._send(_files(aside / CHECKPOINTS / step, Path(CHECKPOINTS, step)), aside)
            self._bucket.write(WHOLE, json.dumps(sorted(map(int, steps))).encode())
        others = [name for name in _files(self._folder) if name.split("/")[0] != CHECKPOINTS]
        others = [name for name in others if not any(p[:1] == "." for p in name.split("/"))]
        for name in others:
            try:
                self._send([name], self._folder)
            except FileNotFoundError:
                continue
        if steps is not None:
            kept = {OWNER, WHOLE, *others}
            there = self._bucket.files()
            gone = [name for name in there if name not in kept and _step(name) not in steps]
            self._bucket.delete(gone)
            for name in gone:
                self._sent.pop(name, None)

    def _set_aside(self) -> set[str] | None:
        """Steps of whole checkpoints, linked into a folder where the run deletes nothing.

        None where the run deletes each faster than it can be linked.
        """
        for _ in range(ATTEMPTS):
            shutil.rmtree(self._folder / ASIDE, ignore_errors=True)
            steps = _whole_steps(self._folder)
            linked = {step for step in steps if self._linked(f"{CHECKPOINTS}/{step}")}
            time.sleep(DELETION_SECONDS)
            # Of one that is deleted by now, files may have been gone before.
            linked &= _whole_steps(self._folder)
            if linked or not steps:
                return linked
        return None

    def _linked(self, name: str) -> bool:
        try:
            shutil.copytree(self._folder / name, self._folder / ASIDE / name, copy_function=os.link)
        except (FileNotFoundError, shutil.Error):
            return False
        return True

    def _send(self, names: Iterable[str], folder: Path) -> None:
        states = {name: (folder / name).stat() for name in names}
        changed = {
            name: (state.st_size, state.st_mtime_ns)
            for name, state in states.items()
            if self._sent.get(name) != (state.st_size, state.st_mtime_ns)
        }
        self._bucket.send(changed, folder)
        self._sent |= changed


def _files(folder: Path, below: Path = Path()) -> list[str]:
    """Names of the files in a folder, with the names of what the folder is in before them."""
    return [
        (below / path.relative_to(folder)).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
    ]


def _step(name: str) -> str | None:
    """The folder of a checkpoint that a file is in, `12`; None of any other file."""
    parts = name.split("/")
    return parts[1] if parts[0] == CHECKPOINTS and len(parts) > 2 else None


def _whole_steps(folder: Path) -> set[str]:
    checkpoints = folder / CHECKPOINTS
    if not checkpoints.is_dir():
        return set()
    return {path.name for path in checkpoints.iterdir() if path.name.isdecimal()}
