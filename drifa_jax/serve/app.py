"""Paths and what answers them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import Route

from drifa_jax.serve.answers import answer_json, explanation_json
from drifa_jax.serve.cases import Answered
from drifa_jax.serve.drawn_cases import COUNT, drawn_cases
from drifa_jax.serve.engine import Explained
from drifa_jax.serve.guard import Access, Guard
from drifa_jax.serve.openapi import ERRORS, document
from drifa_jax.serve.options import Refused
from drifa_jax.serve.pages import STATIC, render, static
from drifa_jax.serve.service import Service
from drifa_jax.serve.tokens import COOKIE, is_token, session_of
from drifa_jax.serve.uploads import Form, short_form
from drifa_jax.serve.view import form_view, result_view


def build_app(service: Service, access: Access):
    """The application, guarded.

    Args:
      service: what answers cases; the caller starts its engine and closes it.
      access: who may ask.

    Test: tests/serve/test_app.py.
    """
    described = document(service.description, service.limits, needs_token=access.token is not None)

    examples = drawn_cases(service.predictor)
    asked = form_view(service.description)
    provenance = service.predictor.provenance
    index_values: dict[str, Any] = {
        "asked": asked,
        "shown": None,
        "problem": "",
        "most_bytes": service.limits.upload_bytes,
        "calibrated": service.predictor.post_processing is not None,
        "examples": COUNT if examples else 0,
        "example_names": examples.names if examples else (),
        "members": f"{provenance.num_members} member{'s' * (provenance.num_members > 1)}, "
        f"{provenance.num_samples} samples each",
    }
    api_values = {
        "asked": asked,
        "token": access.token is not None,
        "errors": ERRORS,
        "others": [
            ("/openapi.json", "the interface, whole studies (POST /v1/studies) included"),
            ("/healthz", "whether cases are answered: 200 or 503"),
            ("/metrics", "counters and times, for Prometheus"),
        ],
    }

    def page(template: str, status: int = 200, **values: Any) -> Response:
        return HTMLResponse(render(template, service.description, **values), status)

    async def of_form(request: Request, answer: Callable[[Form], Awaitable[Any]]) -> Any:
        """What is answered to a request's form, which is closed before that is looked at."""
        form = await service.form(
            request.stream(), request.headers.get("content-type", ""), _length(request)
        )
        try:
            return await answer(form)
        finally:
            form.close()

    async def predict(request: Request) -> Response:
        with service.admitted(_length(request)):
            answered, rest = await of_form(request, service.answered)
            found = answer_json(answered, service.lacks(answered))
            if rest.get("explain"):
                explained = await service.explained(answered)
                found["explanation"] = await asyncio.to_thread(explanation_json, explained)
        return JSONResponse(found)

    async def index(request: Request) -> Response:
        return page("index.html", **index_values)

    async def case(request: Request) -> Response:
        part = "part" in request.query_params
        try:
            with service.admitted(_length(request)):
                answered, _ = await of_form(request, service.answered)
            explained = None if part else await service.explained(answered)
        except Refused as error:
            if part:
                raise
            service.metrics.count("refused", reason=error.kind)
            return page("index.html", error.status, **index_values | {"problem": error.reason})
        shown = await shown_of(answered, explained)
        if not part:
            return page("index.html", **index_values | {"shown": shown})
        name = (
            service.held.keep(answered, answered.case.num_bytes) if service.engine.explains else ""
        )
        response = page("part.html", shown=shown, name=name)
        response.headers["x-summary"] = shown["summary"].encode("ascii", "replace").decode()
        return response

    async def explanation(request: Request) -> Response:
        answered = service.held.find(request.path_params["name"])
        if answered is None:
            raise Refused(404, "The case is no longer held; send it again.", "forgotten")
        shown = await shown_of(answered, await service.explained(answered))
        return page("part.html", shown=shown, name="")

    async def shown_of(answered: Answered, explained: Explained | None) -> dict[str, Any]:
        lacks = service.lacks(answered)
        return await asyncio.to_thread(result_view, service.description, answered, explained, lacks)

    async def drawn(request: Request) -> Response:
        name, number = request.path_params["name"], request.path_params["number"]
        picture = None
        if examples is not None:
            picture = await asyncio.to_thread(examples.picture, name, number)
        if picture is None:
            raise Refused(404, "There is no such case.", "unknown")
        return Response(picture, media_type="image/png")

    async def api(request: Request) -> Response:
        return page("api.html", **api_values, address=str(request.base_url).rstrip("/"))

    async def static_file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            raise Refused(404, "There is no such file.", "unknown")
        return Response(static(name), media_type=STATIC[name])

    async def sign_in(request: Request) -> Response:
        if request.method == "GET" or access.token is None:
            return page("sign_in.html", problem="")
        body = await short_form(request)
        if not is_token(access.token, body.get("token", "").strip()):
            await asyncio.sleep(1.0)  # for whoever tries one after another
            return page("sign_in.html", 401, problem="This is not the token.")
        response = RedirectResponse("/", 303)
        response.set_cookie(COOKIE, session_of(access.token), httponly=True, samesite="strict")
        return response

    async def study(request: Request) -> Response:
        with service.admitted(_length(request)):
            answered, made = await of_form(request, service.study)
        name = service.objects.keep(made, sum(len(written.content) for written in made))
        links = [
            {"kind": written.kind, "task": written.task, "href": f"/v1/studies/{name}/{number}.dcm"}
            for number, written in enumerate(made)
        ]
        return JSONResponse(answer_json(answered, service.lacks(answered)) | {"objects": links})

    async def study_object(request: Request) -> Response:
        made = service.objects.find(request.path_params["name"])
        number = request.path_params["number"]
        if made is None or number >= len(made):
            raise Refused(404, "It is no longer held; send the study again.", "forgotten")
        name = f"{made[number].kind.replace(' ', '-')}-{number}.dcm"
        return Response(
            made[number].content,
            media_type="application/dicom",
            headers={"content-disposition": f'attachment; filename="{name}"'},
        )

    async def openapi(request: Request) -> Response:
        return JSONResponse(described)

    async def healthz(request: Request) -> Response:
        return JSONResponse(*_health(service))

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(
            service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    routes = [
        Route("/", index),
        Route("/case", case, methods=["POST"]),
        Route("/case/{name}", explanation),
        Route("/drawn/{number:int}/{name}.png", drawn),
        Route("/api", api),
        Route("/sign-in", sign_in, methods=["GET", "POST"]),
        Route("/static/{name}", static_file),
        Route("/v1/predict", predict, methods=["POST"]),
        Route("/v1/studies", study, methods=["POST"]),
        Route("/v1/studies/{name}/{number:int}.dcm", study_object),
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
    return Guard(app, access, service.metrics, _label_of({route.path for route in routes}))


def _label_of(known: set[str]):
    """Paths as metrics name them: what a client made up, and names of cases, are not told."""

    def label(path: str) -> str:
        first = path.split("/")[1]
        if path in known:
            return path
        return f"/{first}/..." if first in ("case", "drawn", "static", "v1") else "other"

    return label


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
