"""The one secret that opens the server to other machines."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from drifa_jax.errors import UserError

VARIABLE = "DRIFA_SERVE_TOKEN"
SHORTEST = 16
COOKIE = "drifa_session"


def find_token(file: Path | None, *, needed: bool) -> tuple[str | None, bool]:
    """The token, and whether it was made just now, so that it has to be told.

    Args:
      file: that holds it.
      needed: whether one is made where none is given.

    Raises:
      UserError: naming the file or variable whose token cannot be used.
    """
    if file is not None:
        try:
            return _checked(file.read_text().strip(), f"--token-file {file}"), False
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise UserError(f"--token-file {file} cannot be read ({reason}).") from error
    if (given := os.environ.get(VARIABLE)) is not None:
        return _checked(given.strip(), VARIABLE), False
    return (secrets.token_urlsafe(24), True) if needed else (None, False)


def _checked(token: str, where: str) -> str:
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"{where}: a token has at least {SHORTEST} letters and digits and no space; make one "
            "with: python -c 'import secrets; print(secrets.token_urlsafe(24))'"
        )
    return token


def is_token(token: str, said: str) -> bool:
    """Compares without telling by the time taken how much of it is right."""
    return hmac.compare_digest(_digest(token), _digest(said))


def session_of(token: str) -> str:
    """What a browser keeps in the place of the token."""
    return hmac.new(
        token.encode(), b"drifa serve, session of a browser", hashlib.sha256
    ).hexdigest()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()
