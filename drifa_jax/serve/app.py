"""Paths and what answers them."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from drifa_jax.serve.answers import answer_json, explanation_json
from drifa_jax.serve.guard import Access, Guard
from drifa_jax.serve.openapi import document
from drifa_jax.serve.options import Refused
from drifa_jax.serve.service import Service


def build_app(service: Service, access: Access):
    """The application, guarded.

    Args:
      service: what answers cases; the caller starts its engine and closes it.
      access: who may ask.

    Test: tests/serve/test_app.py.
    """
    described = document(service.description, service.limits, needs_token=access.token is not None)

    async def predict(request: Request) -> Response:
        with service.admitted(_length(request)):
            form = await service.form(
                request.stream(), request.headers.get("content-type", ""), _length(request)
            )
            try:
                answered, rest = await service.answered(form)
            finally:
                form.close()
            found = answer_json(answered, service.lacks(answered))
            if rest.get("explain"):
                explained = await service.explained(answered)
                found["explanation"] = await asyncio.to_thread(explanation_json, explained)
        return JSONResponse(found)

    async def openapi(request: Request) -> Response:
        return JSONResponse(described)

    async def healthz(request: Request) -> Response:
        return JSONResponse(*_health(service))

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(
            service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    routes = [
        Route("/v1/predict", predict, methods=["POST"]),
        Route("/openapi.json", openapi),
        Route("/healthz", healthz),
        Route("/metrics", metrics),
    ]

    def refused(request: Request, error: Refused) -> Response:
        service.metrics.count("refused", reason=error.kind)
        headers = {"retry-after": str(error.retry_seconds)} if error.retry_seconds else None
        said = {"error": {"kind": error.kind, "reason": error.reason}}
        return JSONResponse(said, error.status, headers)

    app = Starlette(routes=routes, exception_handlers={Refused: refused, Exception: _failed})
    known = {route.path for route in routes}
    return Guard(app, access, service.metrics, lambda path: path if path in known else "other")


def _failed(request: Request, error: Exception) -> Response:
    said = {"kind": "internal", "reason": "The server failed; its log names the place."}
    return JSONResponse({"error": said}, 500)


def _health(service: Service) -> tuple[dict[str, Any], int]:
    engine = service.engine
    if engine.failure is not None:
        return {"status": "failed"}, 503
    if service.stopping:
        return {"status": "stopping"}, 503
    if not engine.ready.is_set():
        return {
            "status": "compiling",
            "compiled": engine.compiled,
            "to_compile": engine.to_compile,
        }, 503
    return {"status": "ready"}, 200


def _length(request: Request) -> int | None:
    text = request.headers.get("content-length", "")
    return int(text) if text.isdecimal() else None
