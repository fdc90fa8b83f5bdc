"""The server as a process: its socket, its patience with slow clients, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from drifa_jax.console import progress, say
from drifa_jax.errors import UserError
from drifa_jax.serve.options import Limits
from drifa_jax.serve.service import Service

GRACE = 5.0
"""Seconds beyond those of the application, which says why, after which a connection is cut."""


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens; raises a UserError where it cannot."""
    listening = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(512)
    except (OSError, OverflowError) as error:
        if listening is not None:
            listening.close()
        raise UserError(
            f"--host {host} --port {port}: cannot listen there ({error}). Another program may use "
            "the port; give another, or 0 for any that is free."
        ) from error
    listening.set_inheritable(False)
    return listening


def configured(service: Service, app) -> uvicorn.Config:
    """How uvicorn is to serve: patient for so long, and silent about who asked for what."""
    limits = service.limits
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    return uvicorn.Config(
        app,
        http=_patient(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=int(limits.drain_seconds),
        limit_concurrency=limits.connections,
        proxy_headers=False,
    )


def run(service: Service, app, listening: socket.socket) -> int:
    """Serves until it is told to stop; open requests are answered first.

    Returns:
      0, or 1 where the network could not be compiled.
    """
    server = _Server(configured(service, app), service)
    watch = threading.Thread(target=_compile, args=(service, server), daemon=True)
    watch.start()
    asyncio.run(server.serve(sockets=[listening]))
    ended = service.close(service.limits.drain_seconds)
    code = 1 if service.engine.failure is not None else 0
    if not ended:
        # A program that compiles cannot be interrupted, and would be at Python's end.
        sys.stderr.flush()
        os._exit(code)
    return code


def _compile(service: Service, server: _Server) -> None:
    """Shows how far compiling is; ends the server where it fails."""
    engine = service.engine
    done = threading.Semaphore(0)

    def advanced(count: int) -> None:
        done.release(count)

    with progress("compiling", engine.to_compile) as advance:
        engine.start(advanced)
        for _ in range(engine.to_compile):
            done.acquire()
            advance(1)
    if engine.failure is not None:
        say(f"drifa serve: the network could not be compiled: {engine.failure}")
        server.should_exit = True
        return
    if engine.ready.wait(10.0):
        say("Ready. Ctrl-C ends it after the cases that wait.")


class _Server(uvicorn.Server):
    """Ends with exit code 0 when it is told to stop."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes Ctrl-C and SIGTERM for a wish to stop; uvicorn would raise them again later."""
        before = {number: signal.signal(number, self._told) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _told(self, number, frame) -> None:
        self._service.stopping = True
        self.handle_exit(number, frame)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _patient(limits: Limits) -> type[H11Protocol]:
    """The protocol of uvicorn, which would wait for a slow client for ever."""

    class PatientProtocol(H11Protocol):
        """Cuts connections that do not go on: in a head, in a body, in taking the answer."""

        _waits_for: str = ""
        _timer: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport) -> None:
            super().connection_made(transport)
            self._wait("head", limits.header_seconds)

        def data_received(self, data: bytes) -> None:
            if not self._waits_for:
                self._wait("head", limits.header_seconds)
            super().data_received(data)
            self._look()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._look()

        def _look(self) -> None:
            state = self.conn.their_state
            if state is h11.SEND_BODY:
                self._wait("body", limits.body_seconds + GRACE)
            elif state is not h11.IDLE or not self.conn.trailing_data[0]:
                self._wait("", 0)

        def _wait(self, what: str, seconds: float) -> None:
            if what == self._waits_for:
                return
            if self._timer is not None:
                self._timer.cancel()
            self._waits_for = what
            self._timer = self.loop.call_later(seconds, self._cut) if what else None

        def _cut(self) -> None:
            if self.transport is not None:
                self.transport.abort()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._unread is None:
                self._unread = self.loop.call_later(limits.reply_seconds, self._cut)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

        def connection_lost(self, exc) -> None:
            self._wait("", 0)
            if self._unread is not None:
                self._unread.cancel()
            super().connection_lost(exc)

    return PatientProtocol
