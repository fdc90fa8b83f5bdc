"""Cloud TPU: a VM or a slice of a pod, from creation to deletion, with `gcloud`.

    python launch/tpu.py create --name drifa --zone us-west4-a --type v5litepod-16 --spot
    python launch/tpu.py copy   --name drifa --zone us-west4-a
    python launch/tpu.py run    --name drifa --zone us-west4-a -- \
        --config configs/brain.py --workdir /mnt/shared/brain
    python launch/tpu.py watch  --name drifa --zone us-west4-a --type v5litepod-16 --spot -- \
        --config configs/brain.py --workdir /mnt/shared/brain
    python launch/tpu.py delete --name drifa --zone us-west4-a

`run` starts the same command on every worker; they find each other by the TPU's metadata. `watch`
is create, copy and run, and all of it again whenever the slice was preempted or a worker was lost.
The run directory must be a folder that all workers share (Filestore, or a bucket under GCS FUSE)
and that outlives them. `--dry-run` prints the commands only. Needs the gcloud CLI, logged in.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time

COORDINATOR = "--config.distributed.coordinator=auto"
ACTIONS = ("create", "copy", "run", "watch", "delete")
RETRY = (75, 143, 255)
"""A worker was lost, stopped by a signal, or cut off: start again."""
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "drifa_jax", "configs")


def gcloud(options: argparse.Namespace, action: str, *rest: str) -> list[str]:
    """One `gcloud compute tpus tpu-vm` command."""
    base = ["gcloud", "compute", "tpus", "tpu-vm", action, *rest, f"--zone={options.zone}"]
    return base + ([f"--project={options.project}"] if options.project else [])


def create(options: argparse.Namespace) -> list[list[str]]:
    """The slice."""
    flags = [f"--accelerator-type={options.type}", f"--version={options.version}"]
    return [gcloud(options, "create", options.name, *flags, *["--spot"] * options.spot)]


def copy(options: argparse.Namespace) -> list[list[str]]:
    """The sources on every worker, installed into an environment of their own."""
    setup = "cd ~/drifa && python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"
    return [
        gcloud(options, "ssh", options.name, "--worker=all", "--command=mkdir -p ~/drifa"),
        gcloud(options, "scp", "--recurse", *SOURCES, f"{options.name}:~/drifa", "--worker=all"),
        gcloud(options, "ssh", options.name, "--worker=all", f"--command={setup}"),
    ]


def run(options: argparse.Namespace) -> list[list[str]]:
    """The training command on every worker."""
    train = shlex.join(
        [".venv/bin/python", "-m", "drifa_jax.main", *options.arguments, COORDINATOR]
    )
    return [
        gcloud(options, "ssh", options.name, "--worker=all", f"--command=cd ~/drifa && {train}")
    ]


def delete(options: argparse.Namespace) -> list[list[str]]:
    """The end of the slice, and of its cost."""
    return [gcloud(options, "delete", options.name, "--quiet")]


def commands(options: argparse.Namespace) -> list[list[str]]:
    """The commands of an action, in order; of `watch`, those of one round."""
    if options.action == "watch":
        return [*create(options), *copy(options), *run(options)]
    return globals()[options.action](options)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags, and as `arguments` what comes after `--`."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="Everything after -- goes to drifa train.",
    )
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("--name", required=True)
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", default="", help="default: that of gcloud")
    parser.add_argument("--type", default="v5litepod-8", help="accelerator type")
    parser.add_argument("--version", default="v2-alpha-tpuv5-lite", help="software of the VM")
    parser.add_argument("--spot", action="store_true", help="cheap, and may be preempted")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:cut])
    options.arguments = given[cut + 1 :]
    if options.action in ("run", "watch") and not options.arguments:
        parser.error(f"{options.action} needs -- and the arguments of drifa train")
    return options


def execute(lines: list[list[str]], dry_run: bool) -> int:
    """Prints and runs commands until one fails; its exit code."""
    for command in lines:
        print("+", shlex.join(command), flush=True)
        code = 0 if dry_run else subprocess.call(command)
        if code:
            return code
    return 0


def watch(options: argparse.Namespace) -> int:
    """Rounds of create, copy and run until the run is through, or fails by its own fault."""
    while True:
        code = execute(commands(options), options.dry_run)
        if code not in RETRY:
            return code
        print(f"exit code {code}: the slice is made anew in a minute", flush=True)
        execute(delete(options), options.dry_run)
        time.sleep(60)


def main() -> int:
    """Runs the action."""
    options = parse()
    if options.action == "watch":
        return watch(options)
    return execute(commands(options), options.dry_run)


if __name__ == "__main__":
    sys.exit(main())
