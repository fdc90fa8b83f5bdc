"""Cloud TPU: a VM or a slice of a pod, from creation to deletion, with `gcloud`.

    python launch/tpu.py watch  --name drifa --zone us-west4-a --type v5litepod-16 --spot -- \
        --config configs/brain.py --workdir /mnt/shared/brain
    python launch/tpu.py create --name drifa --zone us-west4-a --type v6e-8
    python launch/tpu.py copy   --name drifa --zone us-west4-a
    python launch/tpu.py run    --name drifa --zone us-west4-a -- \
        --config configs/brain.py --workdir /mnt/shared/brain
    python launch/tpu.py delete --name drifa --zone us-west4-a

The slice is a queued resource: where none is free, the request waits. `run` starts the same command
on every worker, apart from the connection: one that drops is made again and follows the same
trainer, of which a worker never has two. `watch` is create, copy and run, and all of it again when
the slice was preempted or a worker was lost; it deletes the slice after success, because it costs
until then (`--keep` leaves it). Before it asks for one, it compiles the training step for the slice
on this machine (`drifa compile`), and stops where that does not fit (`--no-compile` leaves it out;
without libtpu it says so and goes on). The run directory must be a folder that all workers share
and that outlives them (Filestore, or a bucket under GCS FUSE), or, of a slice with one host,
gs://BUCKET/FOLDER. `--dry-run`, wherever it stands,
prints the commands only. Needs the gcloud CLI, logged in.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import subprocess
import sys
import time

COORDINATOR = "--config.distributed.coordinator=auto"
ACTIONS = ("create", "copy", "run", "watch", "delete")
LOST = (75, 134, 137, 143)
"""A worker was lost, killed or stopped by a signal: another slice goes on."""
CUT_OFF = 255
"""What ssh ends with when the connection dropped, whatever the trainer does."""
ATTEMPTS, FIRST_WAIT = 5, 15.0
"""Of a command that fails, and seconds before the second; each wait is twice the one before."""
POLL = 30.0
"""Seconds between two looks at a request that waits."""
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "drifa_jax", "configs")
SOFTWARE = {
    "v6e": "v2-alpha-tpuv6e",
    "v5p": "v2-alpha-tpuv5",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v4": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v2": "tpu-ubuntu2204-base",
}
"""Generation -> software of its VMs, as Google's pages name it."""
PASSED_ON = ("metadata", "data-disk", "service-account", "network", "subnetwork", "labels")
"""Flags that gcloud gets as they are."""
NOT_COMPILED_FOR = ("v2", "v3")
"""Generations that `drifa compile` does not know."""
DIES_WITH_THE_SLICE = re.compile(r"(?!/|gs://|s3://)|/(tmp|home|root|dev|var)(/|$)")
ONE_HOST = re.compile(r".*-[1-8]")
"""Types whose devices are all of one host, which alone may train into a bucket itself."""

INSTALL = """\
cd ~/drifa && (command -v uv || curl -LsSf https://astral.sh/uv/install.sh | sh) >/dev/null \
&& export PATH=$HOME/.local/bin:$PATH \
&& uv venv -q --allow-existing --python 3.11 .venv && uv pip install -q -p .venv -e '.[tpu]'"""
"""The images bring Python 3.10; uv brings one that this package runs on."""
START = """\
cd ~/drifa; if [ -f pid ] && kill -0 $(cat pid) 2>/dev/null; then exit 0; fi; rm -f code; \
nohup sh -c {trainer} >train.log 2>&1 </dev/null & echo $! >pid"""
FOLLOW = "cd ~/drifa && tail -n +1 -F --pid=$(cat pid) train.log; exit $(cat code || echo 137)"


def gcloud(options: argparse.Namespace, group: str, action: str, *rest: str) -> list[str]:
    """One command of `gcloud compute tpus`."""
    base = ["gcloud", "compute", "tpus", group, action, *rest, f"--zone={options.zone}"]
    return base + ([f"--project={options.project}"] if options.project else [])


def create(options: argparse.Namespace) -> list[list[str]]:
    """The request for the slice."""
    flags = [
        f"--node-id={options.name}",
        f"--accelerator-type={options.type}",
        f"--runtime-version={options.version or software(options.type)}",
    ]
    flags += ["--spot"] * options.spot + ["--reserved"] * options.reserved
    if options.max_run_duration:
        flags += [
            "--provisioning-model=flex-start",
            f"--max-run-duration={options.max_run_duration}",
        ]
    for name in PASSED_ON:
        if value := getattr(options, name.replace("-", "_")):
            flags.append(f"--{name}={value}")
    return [gcloud(options, "queued-resources", "create", options.name, *flags)]


def software(accelerator: str) -> str:
    """The software of a VM with this accelerator.

    Raises:
      SystemExit: naming the generations that are known.
    """
    generation = accelerator.partition("-")[0]
    if generation.startswith("tpu7"):
        sys.exit(f"--type {accelerator}: this generation runs under GKE: launch/kubernetes.py.")
    if generation not in SOFTWARE:
        sys.exit(f"--type {accelerator}: choose a type of {', '.join(SOFTWARE)}, or --version.")
    return SOFTWARE[generation]


def compile_first(options: argparse.Namespace) -> int:
    """Compiles the training step for the slice, before it costs anything; 0 where it fits."""
    if options.no_compile or options.type.partition("-")[0] in NOT_COMPILED_FOR:
        return 0
    lacking = [name for name in ("drifa_jax", "libtpu") if importlib.util.find_spec(name) is None]
    if lacking:
        print(f"not compiled beforehand: {' and '.join(lacking)} not installed here", flush=True)
        return 0
    words = ["--topology", options.type, "--only", "step", "--no-search"]
    command = [
        *(sys.executable, "-m", "drifa_jax.cli", "compile"),
        *(_value(options.arguments, "--config"), *words),
        *overrides(options.arguments),
    ]
    return execute([command], options.dry_run)


def overrides(words: list[str]) -> list[str]:
    """The fields of the configuration that the arguments of drifa train change."""
    found = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--config."):
            found += [word] if "=" in word else [word, following]
    return found


def copy(options: argparse.Namespace) -> list[list[str]]:
    """The sources on every worker, installed into an environment of their own."""
    return [
        on_workers(options, "mkdir -p ~/drifa"),
        gcloud(
            options,
            *("tpu-vm", "scp", "--recurse"),
            *(*SOURCES, f"{options.name}:~/drifa", "--worker=all"),
        ),
        on_workers(options, INSTALL),
    ]


def run(options: argparse.Namespace) -> list[list[str]]:
    """The trainer on every worker, and the command that follows it."""
    words = [".venv/bin/python", "-m", "drifa_jax.main", *options.arguments, COORDINATOR]
    trainer = f"{shlex.join(words)}; echo $? >code.new; mv code.new code"
    return [
        on_workers(options, START.format(trainer=shlex.quote(trainer))),
        on_workers(options, FOLLOW),
    ]


def on_workers(options: argparse.Namespace, command: str) -> list[str]:
    """A shell command on every worker."""
    return gcloud(options, "tpu-vm", "ssh", options.name, "--worker=all", f"--command={command}")


def delete(options: argparse.Namespace) -> list[list[str]]:
    """The end of the slice, and of its cost."""
    return [gcloud(options, "queued-resources", "delete", options.name, "--force", "--quiet")]


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
    parser.add_argument("--version", default="", help="software of the VM (default: by type)")
    parser.add_argument("--spot", action="store_true", help="cheap, and may be preempted")
    parser.add_argument("--reserved", action="store_true", help="from your reservation")
    parser.add_argument("--max-run-duration", default="", help="flex-start, for so long: 4h")
    parser.add_argument("--keep", action="store_true", help="do not delete it after success")
    for name in PASSED_ON:
        parser.add_argument(f"--{name}", default="", help="as gcloud takes it")
    parser.add_argument("--no-compile", action="store_true", help="do not compile here before it")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:cut])
    # Whoever writes --dry-run, wherever, wants nothing to be run.
    options.dry_run |= "--dry-run" in given
    options.arguments = [word for word in given[cut + 1 :] if word != "--dry-run"]
    if options.action in ("run", "watch"):
        if not options.arguments:
            parser.error(f"{options.action} needs -- and the arguments of drifa train")
        workdir = _value(options.arguments, "--workdir")
        if DIES_WITH_THE_SLICE.match(workdir):
            parser.error(
                f"--workdir {workdir or '(none)'} dies with the slice, and the run with it; give "
                "a folder that all workers share and that outlives them, e.g. /mnt/shared/brain"
            )
        if re.match("gs://|s3://", workdir) and not ONE_HOST.fullmatch(options.type):
            parser.error(
                f"--workdir {workdir}: the hosts of {options.type} write each checkpoint together, "
                "into a folder that all of them see; mount the bucket (gcsfuse) and name the folder"
            )
    return options


def _value(words: list[str], flag: str) -> str:
    """The value of a flag among words; "" where it is not there."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return ""


def execute(lines: list[list[str]], dry_run: bool, attempts: int = 1) -> int:
    """Prints and runs commands until one fails for good; its exit code."""
    for command in lines:
        wait = FIRST_WAIT
        for attempt in range(1, attempts + 1):
            print("+", shlex.join(command), flush=True)
            code = 0 if dry_run else subprocess.call(command)
            if not code:
                break
            if attempt == attempts:
                return code
            print(f"exit code {code}: again in {wait:.0f} s", flush=True)
            time.sleep(wait)
            wait *= 2
    return 0


def state(options: argparse.Namespace) -> str:
    """What became of the request: ACTIVE, WAITING_FOR_RESOURCES, FAILED...; "" where unknown."""
    command = gcloud(
        options, "queued-resources", "describe", options.name, "--format=value(state.state)"
    )
    found = subprocess.run(command, capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else ""


def granted(options: argparse.Namespace) -> bool:
    """Waits for the slice; whether it came."""
    shown = None
    while True:
        found = "ACTIVE" if options.dry_run else state(options)
        if found != shown:
            print(f"the request is {found or 'not to be seen'}", flush=True)
        if found in ("ACTIVE", "FAILED", "SUSPENDED"):
            return found == "ACTIVE"
        shown = found
        time.sleep(POLL)


def train(options: argparse.Namespace) -> int:
    """Starts the trainer and follows it, over connections that drop; its exit code."""
    start, follow = run(options)
    if code := execute([start], options.dry_run, ATTEMPTS):
        return code
    for _ in range(1000):
        code = execute([follow], options.dry_run)
        if code != CUT_OFF or state(options) != "ACTIVE":
            break
        print("the connection dropped; the trainer goes on, and is followed again", flush=True)
        time.sleep(FIRST_WAIT)
    return 137 if code == CUT_OFF else code


def watch(options: argparse.Namespace) -> int:
    """Rounds of create, copy and train until the run is through, or fails by its own fault."""
    if code := compile_first(options):
        print("nothing was asked for; --no-compile goes on all the same", flush=True)
        return code
    while True:
        code = execute(create(options), options.dry_run, ATTEMPTS)
        if code:
            return code
        code = LOST[0]
        if granted(options):
            code = execute(copy(options), options.dry_run, ATTEMPTS) or train(options)
        if code == 0 and options.keep:
            print(f"{options.name} is kept, and costs until it is deleted", flush=True)
            return 0
        if code == 0:
            return execute(delete(options), options.dry_run, ATTEMPTS)
        if code not in LOST:
            print(
                f"exit code {code}, the run's own fault: {options.name} is kept to look at, and "
                f"costs until: python launch/tpu.py delete --name {options.name} "
                f"--zone {options.zone}",
                flush=True,
            )
            return code
        print(f"exit code {code}: the slice is made anew in a minute", flush=True)
        execute(delete(options), options.dry_run, ATTEMPTS)
        time.sleep(60)


def main() -> int:
    """Runs the action."""
    options = parse()
    if options.action == "watch":
        return watch(options)
    if options.action == "run":
        return train(options)
    lines = globals()[options.action](options)
    return execute(lines, options.dry_run, ATTEMPTS)


if __name__ == "__main__":
    sys.exit(main())
