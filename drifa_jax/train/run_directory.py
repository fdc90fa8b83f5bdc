"""The directory of a run: one configuration, one writer, and files that are whole or absent."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

from drifa_jax.config import Config, from_mapping
from drifa_jax.errors import UserError
from drifa_jax.processes import LAST_WORDS, is_first, on_first, undone
from drifa_jax.sealed_files import read_sealed, write_sealed
from drifa_jax.whole_files import UNWRITABLE, only_one, remove, written_whole

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "metrics.json"
SPLITS_FOLDER = "splits"

DISK_FULL = os.strerror(errno.ENOSPC)


def write_whole(path: Path, text: str) -> None:
    """Writes a text file so that readers never see half of it."""
    with written_whole(path) as partial:
        partial.write_text(text)


@contextmanager
def opened(workdir: Path, config: Config) -> Iterator[None]:
    """Claims a run directory for these processes: fresh, or one that holds the same configuration.

    How a run is spread over machines may change from one start to the next; what it computes may
    not (`Config.essence`). The first process claims it for all, and holds the lock. Nothing is
    written but the lock; `begun` writes the rest. Where an error ends the block and there is no
    run, neither the lock nor a folder made for it stays.

    Raises:
      UserError: when it cannot be written, another process is writing it, or it holds another
        configuration; nothing in it has changed then.
    """
    with ExitStack() as held:
        on_first(lambda: _claim(workdir, config, held))
        try:
            yield
        except Exception as error:
            if not workdir.is_dir() and not isinstance(error, UserError):
                raise UserError(
                    f"--workdir {workdir} was deleted or moved while the run wrote to it. Put it "
                    "back, and the same command goes on from the last checkpoint."
                ) from error
            # Orbax and TensorStore wrap the system's error in kinds of their own.
            if DISK_FULL not in str(error) and getattr(error, "errno", None) not in UNWRITABLE:
                raise
            reason = DISK_FULL if DISK_FULL in str(error) else error.strerror
            raise UserError(
                f"--workdir {workdir} cannot be written any more: {reason}. Free some space "
                "there; the same command then goes on from the last checkpoint."
            ) from error


@contextmanager
def begun(workdir: Path, config: Config) -> Iterator[None]:
    """Writes configuration and environment; the block trains.

    An error before the first step is done takes away again all that was written since, so that a
    run that never began leaves nothing but, of several processes, what they say of the error.
    """
    before = set(workdir.glob("*"))

    def undo() -> None:
        if is_first() and not _has_steps(workdir):
            for path in set(workdir.glob("*")) - before:
                if not path.match(LAST_WORDS):
                    remove(path)

    def write() -> None:
        _forget(workdir)
        write_identity(workdir, config)

    on_first(write)
    with undone(undo):
        yield


def write_identity(workdir: Path, config: Config) -> None:
    """Configuration and environment into a claimed directory.

    Raises:
      UserError: where it cannot be written.
    """
    try:
        write_sealed(workdir / CONFIG_FILE, json.loads(config.to_json()))
        write_sealed(workdir / "environment.json", environment())
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be written: {error.strerror}.") from error


def saved_config(workdir: Path) -> Config:
    """The configuration of an existing run.

    Raises:
      UserError: when the directory holds no run, or a configuration that was changed.
    """
    path = workdir / CONFIG_FILE
    if not path.exists():
        raise UserError(f"{workdir} is not a run directory: it has no {CONFIG_FILE}.")
    values = read_sealed(path, "Copy it again from where the run was made.")
    try:
        return from_mapping(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def runs_in(path: str | Path) -> list[Path]:
    """The run at a path, or the folds of a cross-validation below it; none where it is neither."""
    path = Path(path)
    if (path / CONFIG_FILE).is_file():
        return [path]
    folds = [fold for fold in path.glob("fold-*") if (fold / CONFIG_FILE).is_file()]
    return sorted(folds, key=lambda fold: int(fold.name.removeprefix("fold-")))


def resumed_config(workdir: Path) -> Config | None:
    """The configuration of a run that has saved something to go on from; None of any other."""
    return saved_config(workdir) if _has_checkpoint(workdir) else None


def _claim(workdir: Path, config: Config, held: ExitStack) -> None:
    """Locks the directory until `held` closes, and checks what it holds."""
    lock = workdir / ".lock"
    made = [path for path in (lock, workdir, *workdir.parents) if not path.exists()]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        taken = f"--workdir {workdir} is in use by another process; wait for it or choose another."
        held.enter_context(only_one(lock, taken))
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} cannot be written ({error.strerror}); choose another."
        ) from error
    if jax.process_count() == 1:
        held.push(lambda kind, *_: _unmake(made, workdir) if kind else None)
    _check_identity(workdir, config)


def _unmake(made: Sequence[Path], workdir: Path) -> None:
    """Removes the lock and the folders that were made for it, unless there is a run in them."""
    if made and not (workdir / CONFIG_FILE).exists():
        made[0].unlink(missing_ok=True)
        for folder in made[1:]:
            with suppress(OSError):
                folder.rmdir()


def _forget(workdir: Path) -> None:
    """Removes what processes of earlier starts said that this start does not have."""
    count = jax.process_count()
    for path in workdir.glob(LAST_WORDS):
        number = path.stem.rpartition("-")[2]
        if count == 1 or (number.isdecimal() and int(number) >= count):
            path.unlink(missing_ok=True)


def _check_identity(workdir: Path, config: Config) -> None:
    """Refuses a directory that holds anything but a run of this configuration."""
    if not (workdir / CONFIG_FILE).exists():
        # A killed process may have left a hidden file behind, and the lock is one.
        seen = [path for path in workdir.iterdir() if not path.name.startswith(".")]
        if not all(path.match(LAST_WORDS) for path in seen):
            raise UserError(
                f"--workdir {workdir} holds files but no run; choose an empty or a new directory."
            )
    elif (
        _has_checkpoint(workdir) and (saved := saved_config(workdir)).essence() != config.essence()
    ):
        listed = "\n".join(
            differences(
                json.loads(saved.essence().to_json()), json.loads(config.essence().to_json())
            )
        )
        raise UserError(
            f"--workdir {workdir} holds a run with another configuration:\n{listed}\n"
            "To resume that run, give the configuration that it was started with; "
            "for this configuration, choose another --workdir."
        )


def _has_steps(workdir: Path) -> bool:
    """Whether a step of the run was ever done."""
    metrics = workdir / METRICS_FILE
    return _has_checkpoint(workdir) or (metrics.is_file() and metrics.stat().st_size > 0)


def _has_checkpoint(workdir: Path) -> bool:
    """A run that has saved nothing yet, say for want of data, may start anew in another way."""
    folder = workdir / "checkpoints"
    return folder.is_dir() and any(path.name.isdecimal() for path in folder.iterdir())


def differences(saved: Any, asked: Any, where: str = "") -> Iterator[str]:
    """One line for each field in which two configurations, as plain values, differ."""
    if isinstance(saved, Mapping) and isinstance(asked, Mapping):
        for key in sorted(set(saved) | set(asked)):
            yield from differences(saved.get(key), asked.get(key), f"{where}.{key}".lstrip("."))
    elif saved != asked:
        yield f"  {where}: the run has {saved!r}, this configuration {asked!r}"


def environment() -> dict[str, Any]:
    """What a reader needs to repeat the run: command, code, versions, devices."""
    packages = ("drifa-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    devices = jax.devices()
    return {
        "command": sys.argv,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "devices": [str(device) for device in devices],
        "device_kind": devices[0].device_kind,
        "num_processes": jax.process_count(),
    }


def _git_commit() -> str | None:
    """Commit of the code, with "+changes" when the tree differs from it; None outside git."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
