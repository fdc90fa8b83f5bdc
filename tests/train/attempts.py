"""Runs of the toy network in processes of their own, which a test may kill.

`Attempts` starts one server, which imports everything once; each attempt is a fork of it, so that
a start costs a second instead of ten.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pyarrow

ROOT = Path(__file__).resolve().parents[2]


class Attempts:
    """The side of the test."""

    def __init__(self, folder: Path):
        self._folder, self._number = folder, 0
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.train.attempts"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def start(
        self,
        workdir: Path,
        *,
        devices: int = 1,
        process: int = 0,
        port: int = 0,
        large: int = 2**18,
        **groups,
    ):
        """Starts `train_and_test`; groups are those of `toy_config`, `large` is sharding's."""
        self._number += 1
        output = self._folder / f"output{self._number}.txt"
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        environment = {"XLA_FLAGS": flags}
        if port:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_PROCESS_ID": str(process),
            }
        pid = self._ask(
            workdir=str(workdir),
            groups=groups,
            environment=environment,
            large=large,
            output=str(output),
        )
        return Attempt(self, pid, output)

    def together(self, workdir: Path, *, processes: int, **options):
        """Starts several processes of one run."""
        port = free_port()
        distributed = {"num_processes": processes, "connect_seconds": 60, "lost_seconds": 60}
        distributed |= options.pop("distributed", {})
        return [
            self.start(workdir, process=i, port=port, distributed=distributed, **options)
            for i in range(processes)
        ]

    def run(self, workdir: Path, **options) -> str:
        """Runs one attempt to its good end; returns what it said."""
        attempt = self.start(workdir, **options)
        assert attempt.wait() == 0, attempt.said()
        return attempt.said()

    def _ask(self, **request):
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


class Attempt:
    """One process."""

    def __init__(self, attempts: Attempts, pid: int, output: Path):
        self._attempts, self.pid, self._output = attempts, pid, output
        self._code = None

    def code(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        if self._code is None:
            self._code = self._attempts._ask(poll=self.pid)
        return self._code

    def wait(self, seconds: float = 120) -> int:
        deadline = time.monotonic() + seconds
        while self.code() is None:
            if time.monotonic() > deadline:
                self.kill(9)
                raise AssertionError(f"still running after {seconds} s: {self.said()}")
            time.sleep(0.02)
        return self._code

    def kill(self, number: int) -> None:
        if self.code() is None:
            os.kill(self.pid, number)

    def said(self) -> str:
        return self._output.read_text() if self._output.exists() else ""

    def wait_for_step(self, workdir: Path, step: int, seconds: float = 120) -> None:
        """Returns when the run has logged a step."""
        deadline = time.monotonic() + seconds
        path = workdir / "metrics.jsonl"
        while not path.exists() or f'"step": {step},' not in path.read_text():
            assert self.code() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.005)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def serve() -> int | None:
    """The side of the server: a fork for each request; returns in the forks."""
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                return attempt(request)
        print(json.dumps(answer), flush=True)
    return None


def attempt(request) -> int:
    """One run, in a fork."""
    from drifa_jax import sharding
    from drifa_jax.commands.train import train_and_test
    from drifa_jax.errors import UserError
    from tests.train.toy import toy_config

    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(request["environment"])
    sharding.LARGE = request["large"]
    try:
        return train_and_test(toy_config(**request["groups"]), Path(request["workdir"]))
    except UserError as error:
        print(f"drifa train: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def keep_all_programs() -> None:
    """In place of `compilation.use_compilation_cache`, which leaves out the quickly compiled."""
    import jax

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    from tests.train import toy  # noqa: F401  (it enters its parts into the registry)

    for name in (
        "_strptime",
        "absl.logging",
        "matplotlib.figure",
        "tensorboardX",
        "drifa_jax.commands.train",
        "drifa_jax.compilation",
        "drifa_jax.evaluate.testing",
        "drifa_jax.predict.restored",
        "drifa_jax.report.learning",
        "drifa_jax.train.experiment",
        "drifa_jax.train.loop",
        "jaxlib.mlir.dialects.mhlo",
    ):
        importlib.import_module(name)
    # PyArrow imports pandas, where it is installed, at the first array of NumPy's.
    pyarrow.array(numpy.zeros(1))
    gc.freeze()
    # A second of drawing, and hundreds of tiny programs, in every attempt.
    sys.modules["drifa_jax.report.learning"].learning_curves = lambda *_, **__: None
    sys.modules["drifa_jax.compilation"].use_compilation_cache = keep_all_programs
    sys.exit(serve())
