"""Several processes of one run on this machine, for trying out what a cluster does.

    python launch/local.py --processes 2 -- --config configs/brain.py:quick --workdir runs/two

Everything after `--` goes to `drifa train`. Each line of output is marked with its process. When
one process ends badly, the others stop by themselves and say why. Ctrl-C and SIGTERM save and stop.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading


def commands(options: argparse.Namespace, port: int) -> list[tuple[dict[str, str], list[str]]]:
    """Environment and command of each process."""
    environment = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(options.processes),
    }
    if options.devices:
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={options.devices}",
        }
    train = [sys.executable, "-m", "drifa_jax.main", *options.arguments]
    return [(environment | {"JAX_PROCESS_ID": str(i)}, train) for i in range(options.processes)]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags, and as `arguments` what comes after `--`."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="Everything after -- goes to drifa train.",
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1, help="CPU devices each; 0: as they are")
    parser.add_argument("--port", type=int, default=0, help="of the coordinator; 0: a free one")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:cut])
    options.arguments = given[cut + 1 :]
    if options.processes < 1:
        parser.error(f"--processes is {options.processes}; it must be at least 1")
    return options


def main() -> int:
    """Starts the processes and waits; the first exit code that is not 0."""
    options = parse()
    started = []
    for number, (environment, command) in enumerate(commands(options, options.port or free_port())):
        shown = " ".join(f"{key}={shlex.quote(value)}" for key, value in environment.items())
        print(f"[{number}] {shown} {shlex.join(command)}", flush=True)
        if not options.dry_run:
            started.append(
                subprocess.Popen(
                    command,
                    env=os.environ | environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    # Ctrl-C reaches this process only, which passes it on once.
                    start_new_session=True,
                )
            )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: [one.send_signal(n) for one in started])
    readers = [threading.Thread(target=show, args=item) for item in enumerate(started)]
    for reader in readers:
        reader.start()
    codes = [process.wait() for process in started]
    for reader in readers:
        reader.join()
    return next((code for code in codes if code), 0)


def show(number: int, process: subprocess.Popen) -> None:
    """Prints what a process says, marked with its number."""
    for line in process.stdout:
        print(f"[{number}] {line}", end="", flush=True)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
