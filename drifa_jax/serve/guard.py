"""Who may ask: hosts, origins and the token; and what no answer goes without.

A page elsewhere that is open in the same browser can send requests here. Its name is in `Origin`,
and a name that was made to point at this machine (DNS rebinding) is in `Host`: neither is served.
"""

from __future__ import annotations

import ipaddress
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from drifa_jax.console import say
from drifa_jax.serve.metrics import Metrics
from drifa_jax.serve.tokens import COOKIE, is_token, session_of

LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN_TO_ALL = ("/healthz", "/sign-in", "/static/serve.css")
"""Paths that need no token: they hold nothing of any case."""

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
      names: that `Host` may give, beside addresses where `addresses` is set.
      addresses: whether any IP address will do: a name that points here cannot be one.
      token: that must come along; None where the machine's own users alone can connect.
    """

    names: tuple[str, ...] = LOOPBACK
    addresses: bool = False
    token: str | None = None

    def admits(self, host: str) -> bool:
        """Whether requests to this `Host` are for this server."""
        name = _without_port(host.strip().lower())
        return name in self.names or (self.addresses and _is_address(name))


class Guard:
    """Stands before the application.

    Args:
      app: of ASGI.
      access: who may ask.
      metrics: counts requests and refusals.
      label_of: path -> its name for metrics.
    """

    def __init__(self, app, access: Access, metrics: Metrics, label_of: Callable[[str], str]):
        self._app, self._access, self._metrics, self._label_of = app, access, metrics, label_of

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        status = 0

        async def sent(message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                held = {name for name, _ in message["headers"]}
                message["headers"] += [
                    (name.encode(), value.encode())
                    for name, value in HEADERS.items()
                    if name.encode() not in held
                ]
            await send(message)

        request = Request(scope, receive)
        refusal = self._refusal(request)
        try:
            await (refusal or self._app)(scope, receive, sent)
        except ClientDisconnect:
            status = 499
        except Exception as error:
            # The application has answered 500; its words may quote what was sent.
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{place.filename}:{place.lineno}"
            say(f"drifa serve: internal error, {type(error).__name__} at {where}")
        self._metrics.count("requests", path=self._label_of(scope["path"]), status=str(status))

    def _refusal(self, request: Request) -> Response | None:
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not self._access.admits(hosts[0]):
            return self._refused(
                421,
                "host",
                "This server does not go by that name. Use its address, or give the name with "
                "--name.",
            )
        if request.method not in ("GET", "HEAD") and not _from_here(request, hosts[0]):
            return self._refused(403, "origin", "Another site may not send cases to this server.")
        if self._access.token is None or request.url.path in OPEN_TO_ALL:
            return None
        if self._is_known(request):
            return None
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("/sign-in", 303)
        return self._refused(
            401,
            "token",
            "Send the token of this server: `Authorization: Bearer TOKEN`.",
            {"www-authenticate": "Bearer"},
        )

    def _is_known(self, request: Request) -> bool:
        token = self._access.token
        kind, _, said = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and is_token(token, said.strip()):
            return True
        return is_token(session_of(token), request.cookies.get(COOKIE, ""))

    def _refused(self, status: int, kind: str, reason: str, headers=None) -> Response:
        self._metrics.count("refused", reason=kind)
        return JSONResponse({"error": {"kind": kind, "reason": reason}}, status, headers)


def _from_here(request: Request, host: str) -> bool:
    """Whether a browser says that one of our own pages asks; programs say nothing."""
    origins = request.headers.getlist("origin")
    if origins:
        return origins in ([f"http://{host}"], [f"https://{host}"])
    return request.headers.get("sec-fetch-site", "none") in ("same-origin", "none")


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
