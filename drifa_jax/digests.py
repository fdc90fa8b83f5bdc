"""Digests of plain JSON values, by which a reader knows that a document is what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def digest(values: Any) -> str:
    """32 hexadecimal digits of plain JSON values (BLAKE2b)."""
    return hashlib.blake2b(_canonical(values), digest_size=16).hexdigest()


def sha256(values: Any) -> str:
    """64 hexadecimal digits of plain JSON values, which other programs can check."""
    return hashlib.sha256(_canonical(values)).hexdigest()


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document, as JSON keeps it, with the digest of all the rest of it."""
    kept = json.loads(json.dumps(document))
    return kept | {"digest": digest(kept)}


def is_whole(document: Mapping[str, Any]) -> bool:
    """Whether a sealed document is what was sealed."""
    rest = {name: value for name, value in document.items() if name != "digest"}
    return document.get("digest") == digest(rest)


def _canonical(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True).encode()
