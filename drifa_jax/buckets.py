"""Folders in buckets, `gs://` and `s3://`: what they hold, brought here, and sent there.

pyarrow speaks both protocols, with the credentials that the machine has: for `gs://` those of
`gcloud auth application-default login` or of the service account, for `s3://` the variables
`AWS_*`, `~/.aws` or the role of the machine. `CLOUD_STORAGE_EMULATOR_ENDPOINT` and
`AWS_ENDPOINT_URL` name another server.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from drifa_jax.errors import UserError
from drifa_jax.whole_files import cache_folder, only_one

AT_ONCE = 16
"""Files that are brought or sent at once."""
PATIENCE = datetime.timedelta(seconds=20)
"""After which `gs://` says why it does not answer; by itself it tries for a quarter of an hour."""

BROUGHT = ".brought.json"
"""Beside a copy: the names of the files that came from the bucket."""

# A `Path` swallows one of the two slashes.
_URL = re.compile(r"(gs|s3):/+(.*?)/*")
_REASONS = {
    r"ACCESS_DENIED|HTTP status 403|PERMISSION_DENIED|Permission|denied": (
        "the credentials of this machine have no right to it"
    ),
    r"NO_SUCH_BUCKET|bucket does not exist|HTTP status 404|NOT_FOUND": "there is no such bucket",
    r"INVALID_ACCESS_KEY|SIGNATURE|INVALID_CLIENT_TOKEN|UNAUTHENTICATED|status 401": (
        "the credentials of this machine are not accepted"
    ),
    r"NETWORK_CONNECTION|[Cc]ould not (connect|resolve)|UNAVAILABLE|curlCode": (
        "its server cannot be reached, or this machine has no credentials"
    ),
}
"""What the libraries say -> what it means."""


class Held(NamedTuple):
    """A file in a bucket: its bytes, and when it was written there, in nanoseconds."""

    size: int
    written: int


def url_of(path: str | Path) -> str | None:
    """`gs://bucket/folder` or `s3://bucket/folder` where a path names one, else None."""
    found = _URL.fullmatch(str(path))
    return f"{found[1]}://{found[2]}" if found else None


class BucketFolder:
    """A folder in a bucket.

    Every method raises a `UserError` that names the folder, and what is wrong, where the bucket
    cannot be read or written.

    Args:
      url: `gs://bucket/folder` or `s3://bucket/folder`.
    """

    def __init__(self, url: str):
        self.url = url
        scheme, _, self._path = url.partition("://")
        self._bucket = self._path.partition("/")[0]
        if not self._bucket:
            raise UserError(f"{url} names no bucket; it looks like {scheme}://BUCKET/FOLDER.")
        with self._told("read"):
            self._system = _file_system(scheme, self._bucket)

    def files(self) -> dict[str, Held]:
        """Name below the folder -> what is there; empty where there is no such folder."""
        from pyarrow import fs

        with self._told("read"):
            everywhere = fs.FileSelector(self._path, recursive=True, allow_not_found=True)
            found = {
                info.path.removeprefix(f"{self._path}/"): Held(info.size, info.mtime_ns or 0)
                for info in self._system.get_file_info(everywhere)
                if info.type == fs.FileType.File and info.path.startswith(f"{self._path}/")
            }
            # To list what is not there succeeds, also in a bucket that is not there.
            if not found and not self._has_bucket():
                raise OSError("NO_SUCH_BUCKET")
            return found

    def _has_bucket(self) -> bool:
        from pyarrow import fs

        try:
            return self._system.get_file_info(self._bucket).type != fs.FileType.NotFound
        except OSError:
            return True  # Who may read the objects need not be allowed to look at the bucket.

    def is_file(self) -> bool:
        """Whether it is one file and no folder."""
        from pyarrow import fs

        with self._told("read"):
            return self._system.get_file_info(self._path).type == fs.FileType.File

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""
        from pyarrow import fs

        with self._told("read"):
            if self._system.get_file_info(self._at(name)).type != fs.FileType.File:
                return None
            with self._system.open_input_stream(self._at(name)) as stream:
                return stream.read()

    def write(self, name: str, content: bytes) -> None:
        """A file with this content, whole or absent."""
        with self._told("written"), self._system.open_output_stream(self._at(name)) as stream:
            stream.write(content)

    def bring(self, names: Iterable[str], folder: Path) -> None:
        """Writes files below a local folder, under the same names, each whole or absent."""

        def transfer(name: str) -> None:
            target = folder / name if name else folder
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.part")
            with partial.open("wb") as copy, self._told("read"):
                with self._system.open_input_stream(self._at(name)) as stream:
                    shutil.copyfileobj(stream, copy, 1 << 20)
            os.replace(partial, target)

        _at_once(transfer, names)

    def send(self, names: Iterable[str], folder: Path) -> None:
        """Writes files of a local folder into the bucket, under the same names.

        Raises:
          FileNotFoundError: where one is gone from the local folder.
        """

        def transfer(name: str) -> None:
            with (folder / name).open("rb") as original, self._told("written"):
                with self._system.open_output_stream(self._at(name)) as stream:
                    shutil.copyfileobj(original, stream, 1 << 20)

        _at_once(transfer, names)

    def delete(self, names: Iterable[str]) -> None:
        """Deletes files."""

        def transfer(name: str) -> None:
            with self._told("written"):
                self._system.delete_file(self._at(name))

        _at_once(transfer, names)

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}" if name else self._path

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            said = str(error)
            reason = next((r for words, r in _REASONS.items() if re.search(words, said)), said)
            raise UserError(
                f"{self.url} cannot be {what}: {reason}. Look at the name of the bucket, and at "
                "the credentials and rights of this machine."
            ) from error


def local_folder(url: str) -> Path:
    """Where a copy of a folder in a bucket lies on this machine."""
    scheme, _, path = url.partition("://")
    return cache_folder() / "buckets" / scheme / path


def local_copy(url: str) -> Path:
    """A copy on this machine of a file or a folder in a bucket; only what changed is fetched.

    Raises:
      UserError: where nothing is there, or the bucket cannot be read.
    """
    there, copy = BucketFolder(url), local_folder(url)
    if there.is_file():
        there.bring([""], copy)
        return copy
    held = there.files()
    if not held:
        raise UserError(f"{url} holds nothing; look at its name.")
    copy.mkdir(parents=True, exist_ok=True)
    with only_one(
        copy.with_name(f".{copy.name}.lock"), f"{url} is being copied by another process; wait."
    ):
        kept = {name for name, facts in held.items() if _held_here(copy / name) == facts}
        there.bring(held.keys() - kept, copy)
        for name in held.keys() - kept:
            os.utime(copy / name, ns=(held[name].written, held[name].written))
        # What commands wrote beside the copy stays.
        listed = copy / BROUGHT
        for name in json.loads(listed.read_text()) if listed.is_file() else ():
            if name not in held:
                (copy / name).unlink(missing_ok=True)
        listed.write_text(json.dumps(sorted(held)))
    return copy


def here(path: str | Path) -> str:
    """A path that can be opened: the local copy of what lies in a bucket, any other as it is."""
    url = url_of(path)
    return str(path) if url is None else str(local_copy(url))


def _held_here(path: Path) -> Held | None:
    if not path.is_file():
        return None
    found = path.stat()
    return Held(found.st_size, found.st_mtime_ns)


def _at_once(transfer: Callable[[str], None], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(transfer, names):
            pass


def _file_system(scheme: str, bucket: str) -> Any:
    from pyarrow import fs

    if scheme == "s3":
        # A small file is one request then, instead of three.
        return fs.FileSystem.from_uri(f"s3://{bucket}?allow_delayed_open=true")[0]
    emulated = "CLOUD_STORAGE_EMULATOR_ENDPOINT" in os.environ
    return fs.GcsFileSystem(anonymous=emulated, retry_time_limit=PATIENCE)
