"""How quick `drifa serve` is, whether it loses anything, and whether it comes back.

    python benchmarks/serve.py runs/brain-quick

Starts the server as a process of its own and sends it SYNTHETIC cases: one after another, then
2,000 from 32 clients at once; then it is killed in mid-request and started again, and at last it
is told to stop while it answers.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from drifa_jax.data.sources.phantoms import PhantomSource

CASES = 24
BOUNDARY = "case"


class Server:
    """One server process, ready to answer."""

    def __init__(self, run: Path, port: int = 0):
        began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "drifa_jax.cli", "serve", str(run), "--port", str(port)],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.port = 0
        for line in self.process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
                self.port = int(found[1])
            if line.startswith("Ready"):
                break
        self.seconds_to_ready = time.monotonic() - began
        # Nobody reads on; a full pipe would stop the server.
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def metric(self, name: str) -> float:
        text = asked(self.port, "GET", "/metrics")[1].decode()
        return float(re.search(rf"^drifa_{name} (\S+)$", text, re.M)[1])

    def family(self) -> list[int]:
        """The server and the processes below it."""
        return [self.process.pid, *_below(self.process.pid)]


def _below(parent: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *_below(int(child))]
    return found


def asked(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"} if body else {}
        link.request(method, path, body, headers)
        response = link.getresponse()
        return response.status, response.read()
    finally:
        link.close()


def form(images, **fields: str) -> bytes:
    parts = []
    for name, pixels in images.items():
        packed = io.BytesIO()
        Image.fromarray(pixels[..., 0]).save(packed, "PNG")
        head = f'content-disposition: form-data; name="{name}"; filename="{name}.png"'
        parts.append(head.encode() + b"\r\n\r\n" + packed.getvalue())
    for name, text in fields.items():
        head = f'content-disposition: form-data; name="{name}"'
        parts.append(head.encode() + b"\r\n\r\n" + text.encode())
    mark = f"--{BOUNDARY}".encode()
    return b"".join(mark + b"\r\n" + part + b"\r\n" for part in parts) + mark + b"--\r\n"


def one_after_another(server: Server, bodies: list[bytes], what: str) -> None:
    times = []
    for body in bodies:
        began = time.monotonic()
        status, _ = asked(server.port, "POST", "/v1/predict", body)
        assert status == 200
        times.append(time.monotonic() - began)
    times = sorted(times[2:])
    print(
        f"{what}: median {statistics.median(times):.3f} s, slowest {times[-1]:.3f} s "
        f"of {len(times)}",
        flush=True,
    )


def many_at_once(server: Server, bodies: list[bytes], requests: int, clients: int) -> None:
    expected = [json.loads(asked(server.port, "POST", "/v1/predict", b)[1]) for b in bodies]
    statuses: Counter[str] = Counter()
    memory, widest, lock = [], [0.0], threading.Lock()

    def send(number: int) -> None:
        try:
            status, said = asked(server.port, "POST", "/v1/predict", bodies[number % len(bodies)])
        except OSError as error:
            status, said = type(error).__name__, b""
        with lock:
            statuses[str(status)] += 1
            if status == 200:
                wanted = expected[number % len(bodies)]["tasks"]
                for task, found in json.loads(said)["tasks"].items():
                    for name, p in found["probabilities"].items():
                        widest[0] = max(widest[0], abs(p - wanted[task]["probabilities"][name]))
            if sum(statuses.values()) % (requests // 10) == 0:
                memory.append(server.metric("resident_bytes") / 2**20)

    began = time.monotonic()
    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(send, range(requests)))
    seconds = time.monotonic() - began
    together = server.metric("batch_cases_sum") / server.metric("batch_cases_count")
    print(
        f"{requests:,} requests from {clients} clients: {dict(statuses)}, "
        f"{requests / seconds:.1f} a second",
        f"memory of the server, MiB, after each tenth: {[round(m) for m in memory]}",
        f"largest difference of a probability from that answered alone: {widest[0]:.1e}",
        f"cases answered together: {together:.1f} on average",
        sep="\n",
        flush=True,
    )


def killed(server: Server, run: Path, body: bytes) -> Server:
    before = json.loads(asked(server.port, "POST", "/v1/predict", body)[1])
    family, ends = server.family(), []

    def send() -> None:
        began = time.monotonic()
        try:
            ends.append(str(asked(server.port, "POST", "/v1/predict", body)[0]))
        except (OSError, http.client.HTTPException) as error:
            ends.append(f"{type(error).__name__} after {time.monotonic() - began:.1f} s")

    clients = [threading.Thread(target=send) for _ in range(8)]
    for client in clients:
        client.start()
    time.sleep(0.15)
    server.process.kill()
    for client in clients:
        client.join(30)
    server.process.wait()
    time.sleep(3)
    left = [pid for pid in family if Path(f"/proc/{pid}").exists()]
    print(f"killed in mid-request: clients saw {Counter(e.split()[0] for e in ends)}; "
          f"processes left: {len(left)}", flush=True)  # fmt: skip
    again = Server(run, server.port)
    after = json.loads(asked(again.port, "POST", "/v1/predict", body)[1])
    print(
        f"started again at the same port, ready after {again.seconds_to_ready:.1f} s; the same "
        f"answer to the last bit: {after['tasks'] == before['tasks']}",
        flush=True,
    )
    return again


def stopped(server: Server, body: bytes) -> None:
    statuses: list[int] = []

    def send() -> None:
        statuses.append(asked(server.port, "POST", "/v1/predict", body)[0])

    clients = [threading.Thread(target=send) for _ in range(8)]
    for client in clients:
        client.start()
    time.sleep(0.3)
    os.kill(server.process.pid, signal.SIGTERM)
    for client in clients:
        client.join(60)
    code = server.process.wait(60)
    print(f"told to stop in mid-request: {Counter(statuses)}; exit code {code}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=32)
    options = parser.parse_args()
    print("load before:", *os.getloadavg(), flush=True)
    source = PhantomSource("test", CASES, 0, 64)
    cases = [source[number].images for number in range(CASES)]
    server = Server(options.run)
    print(f"ready after {server.seconds_to_ready:.1f} s", flush=True)
    plain = [form(images) for images in cases]
    one_after_another(server, plain, "one case")
    one_after_another(server, [form(i, explain="true") for i in cases[:10]], "one case, explained")
    many_at_once(server, plain, options.requests, options.clients)
    one_after_another(server, plain, "one case, afterwards")
    server = killed(server, options.run, plain[0])
    stopped(server, plain[0])
    print("load after:", *os.getloadavg())


if __name__ == "__main__":
    main()
