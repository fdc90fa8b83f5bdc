"""Pictures inside of a page, so that one file shows them without a network."""

from __future__ import annotations

import base64


def data_uri(picture: bytes, kind: str = "png") -> str:
    """The address of a picture that is its content (RFC 2397).

    Args:
      picture: the bytes of a picture file.
      kind: of the file: "png" or "jpeg".
    """
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
