"""Every limit of the server, in one place, and the refusals that they lead to."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What one case, and all of them together, may take.

    Attributes:
      upload_bytes: of one request.
      json_bytes: of a request in JSON, whose numbers take more memory than they have letters.
      files: of one request; a DICOM series has one a slice.
      fields: of one request, without its files.
      field_bytes: of one field.
      uploads_in_memory: times `upload_bytes` that all requests may hold together.
      queue: cases that are read, wait or are answered; the next one is told to come back.
      explanations: likewise, that wait to be explained.
      batch: cases that are answered together at most, a power of two.
      decoders: processes that decode uploads.
      decode_seconds: of one case.
      decode_bytes: of memory, address space, for one case.
      preview_side: longest side of a picture as it is shown, in pixels.
      held_cases, held_bytes, held_seconds: how many answered cases are kept in memory for their
        explanation, how large, and for how long.
      answer_seconds: after which a case that still waits is given up.
      header_seconds: that a client may take over the head of a request.
      body_seconds: over all of it.
      reply_seconds: that it may leave an answer unread.
      drain_seconds: that open requests are given when the server stops.
      connections: open at once.
    """

    upload_bytes: int = 128 * MIB
    json_bytes: int = 16 * MIB
    files: int = 600
    fields: int = 256
    field_bytes: int = 4096
    uploads_in_memory: int = 4
    queue: int = 64
    explanations: int = 16
    batch: int = 8
    decoders: int = 2
    decode_seconds: float = 20.0
    decode_bytes: int = 3 * 2**30
    preview_side: int = 640
    held_cases: int = 64
    held_bytes: int = 128 * MIB
    held_seconds: float = 600.0
    answer_seconds: float = 60.0
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    reply_seconds: float = 30.0
    drain_seconds: float = 20.0
    connections: int = 256


class Refused(Exception):
    """A request that is not answered.

    Args:
      status: of HTTP.
      reason: for a person: what is wrong and what to do; it quotes no name and no header.
      kind: for metrics.
      retry_seconds: after which to try again; 0 where that does not help.
    """

    def __init__(self, status: int, reason: str, kind: str, retry_seconds: int = 0):
        super().__init__(reason)
        self.status, self.reason, self.kind = status, reason, kind
        self.retry_seconds = retry_seconds


def size_in_words(count: int) -> str:
    """Bytes, for a person."""
    return f"{count / MIB:.0f} MiB" if count >= MIB else f"{count:,} bytes"
