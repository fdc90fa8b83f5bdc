"""Between the server and the process that decodes: JSON, bytes and files over one socket."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Sequence
from typing import Any

FILES_A_MESSAGE = 200
"""The system hands on 253 at once."""
HEAD = struct.Struct("<IQI")


class Gone(Exception):
    """The other side has left, or says what it cannot mean."""


def send(link: socket.socket, said: Any, content: bytes = b"", files: Sequence[int] = ()) -> None:
    """Sends plain JSON values, then bytes, then open files."""
    words = json.dumps(said).encode()
    link.sendall(HEAD.pack(len(words), len(content), len(files)) + words)
    link.sendall(content)
    for start in range(0, len(files), FILES_A_MESSAGE):
        socket.send_fds(link, [b"f"], list(files[start : start + FILES_A_MESSAGE]))


def receive(link: socket.socket, most: int) -> tuple[Any, bytes, list[int]]:
    """What the other side sent; the caller closes the files.

    Args:
      link: connected.
      most: bytes that are believed.

    Raises:
      Gone: the other side has left, sends more, or no JSON.
      TimeoutError: where the socket has a timeout.
    """
    words, content, count = HEAD.unpack(_exactly(link, HEAD.size))
    if words + content > most or count > 10_000:
        raise Gone("too much")
    try:
        said = json.loads(_exactly(link, words))
    except ValueError as error:
        raise Gone("no JSON") from error
    body = _exactly(link, content)
    files: list[int] = []
    while len(files) < count:
        mark, found, _, _ = socket.recv_fds(link, 1, FILES_A_MESSAGE)
        if not mark:
            raise Gone
        files += found
    return said, body, files


def _exactly(link: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        block = link.recv(min(count - len(received), 2**20))
        if not block:
            raise Gone
        received += block
    return bytes(received)
