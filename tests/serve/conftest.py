"""A tiny untrained network that is served, and cases for it."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from drifa_jax.predict import streaming
from drifa_jax.predict.predictor import load
from drifa_jax.serve.app import build_app
from drifa_jax.serve.guard import Access
from drifa_jax.serve.options import Limits
from drifa_jax.serve.server import bound, configured
from drifa_jax.serve.service import Service
from tests.predict.conftest import make_run

LIMITS = Limits(
    batch=4,
    decoders=1,
    upload_bytes=8 * 2**20,
    json_bytes=2**20,
    body_seconds=2.0,
    header_seconds=2.0,
)


def png(pixels: np.ndarray) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, "PNG")
    return packed.getvalue()


@contextmanager
def served(predictor, limits: Limits = LIMITS, access: Access | None = None, lacks: str = ""):
    """A service that is ready, and a client of it."""
    service = Service(predictor, limits, lacks)
    service.engine.start()
    try:
        # A machine that does much else compiles for minutes.
        assert service.engine.ready.wait(1200), service.engine.failure
        app = build_app(service, access or Access())
        with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
            client.service = service
            yield client
    finally:
        service.close()


def wait_for(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="session", autouse=True)
def small_batches():
    """Few compiled sizes, and those of `tests/predict`, which runs in the same process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "LARGEST_BATCH", LIMITS.batch)
        yield


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("served") / "run", 0)


@pytest.fixture(scope="session")
def predictor(run):
    """With its post-processing fitted and saved in the run."""
    return load(run)


@pytest.fixture(scope="session")
def client(predictor):
    with served(predictor) as client:
        yield client


@pytest.fixture(scope="session")
def pixels() -> dict[str, np.ndarray]:
    """Two cases at another size than the network's."""
    draw = np.random.default_rng(0)
    return {m: draw.integers(0, 256, (2, 20, 24), np.uint8) for m in ("mri", "ct")}


@pytest.fixture(scope="session")
def files(pixels) -> list[dict[str, tuple[str, bytes, str]]]:
    """The same as parts of a form."""
    return [
        {m: (f"{m}.png", png(x[row]), "image/png") for m, x in pixels.items()} for row in range(2)
    ]


@pytest.fixture(scope="session")
def address(client):
    """Of the same service behind a real socket: (host, port)."""
    server = uvicorn.Server(configured(client.service, build_app(client.service, Access())))
    with bound("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
        thread.start()
        wait_for(lambda: server.started)
        yield listening.getsockname()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
