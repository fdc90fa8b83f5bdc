"""Files that lie in memory: what readers of files need, without a case on any disk."""

from __future__ import annotations

import os
import weakref

from drifa_jax.errors import UserError


def check_system() -> None:
    """Raises a UserError where the system has no such files."""
    if not hasattr(os, "memfd_create"):
        raise UserError(
            "drifa serve needs Linux: it keeps what is uploaded in files of memory, which this "
            "system lacks. Run it in a container, or use `drifa predict`."
        )


class MemoryFile:
    """Bytes behind a file descriptor; closed with the last reference, or by `close`.

    Attributes:
      size: bytes written.
    """

    def __init__(self):
        self._descriptor = os.memfd_create("upload", os.MFD_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        self.size = 0

    def write(self, data: bytes) -> None:
        """Appends."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self.size += len(data)

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        """Gives the memory back; may be called twice."""
        self._close()
