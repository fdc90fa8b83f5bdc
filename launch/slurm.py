"""SLURM: one process for each GPU, requeued after a preemption or a lost node.

    python launch/slurm.py --nodes 2 --gpus 4 --time 24:00:00 --partition gpu -- \
        --config configs/brain.py --workdir /shared/runs/brain

Prints the batch script, then hands it to `sbatch`; `--dry-run` only prints. Two minutes before the
time limit, and on preemption, SLURM sends SIGTERM: the run saves and ends with 143, and the script
puts itself back into the queue, as it does after 75 (a process was lost), 137 and 134 (one was
killed, for want of memory perhaps, or aborted), up to `--restarts` times. The run directory must be
on a file system that all nodes share. `--folds 5` is an array of five jobs, one for each fold of a
cross-validation, in WORKDIR/fold-N; `drifa run` with the same configuration gathers them.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys

REQUEUED = (75, 134, 137, 143)
"""Exit codes of a job that lost a process, or was stopped from outside: it goes on."""
PASSED_ON = {
    "partition": "to run in",
    "account": "that pays",
    "qos": "quality of service",
    "mem": "memory of a node, e.g. 64G",
    "constraint": "on the nodes",
}
COORDINATOR = "--config.distributed.coordinator=auto"


def script(options: argparse.Namespace) -> str:
    """The batch script."""
    train = shlex.join([options.python, "-m", "drifa_jax.main", *options.arguments, COORDINATOR])
    if options.folds:
        fold = '"$SLURM_ARRAY_TASK_ID"'
        train += f" --config.data.num_folds={options.folds} --config.data.fold={fold}"
        train += f" --workdir {shlex.quote(options.workdir)}/fold-{fold}"
    # sbatch takes quotes, so that names may hold spaces.
    passed_on = {name: getattr(options, name) for name in PASSED_ON if getattr(options, name)}
    lines = [
        "#!/bin/bash",
        f'#SBATCH --job-name="{options.name}"',
        f"#SBATCH --nodes={options.nodes}",
        f"#SBATCH --ntasks-per-node={options.gpus}",
        f"#SBATCH --gpus-per-node={options.gpus}",
        f"#SBATCH --cpus-per-task={options.cpus}",
        f"#SBATCH --time={options.time}",
        *(f'#SBATCH --{name}="{value}"' for name, value in passed_on.items()),
        *([f"#SBATCH --array=0-{options.folds - 1}"] if options.folds else []),
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        f"#SBATCH --output=%x-{'%A_%a' if options.folds else '%j'}.log",
        # To the steps, not to this script: each process saves and ends.
        "#SBATCH --signal=TERM@120",
        "",
        "# Without this, the job ends with its first lost process, before the others can say so.",
        # Since SLURM 22.05 srun no longer takes the processors from the flags above.
        f"srun --kill-on-bad-exit=0 --cpus-per-task={options.cpus} {train}",
        "code=$?",
        f"case $code in {'|'.join(map(str, REQUEUED))})",
        f'  if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {options.restarts} ]; then',
        '    scontrol requeue "$SLURM_JOB_ID"',
        "  else",
        f'    echo "exit code $code after {options.restarts} restarts: given up" >&2',
        "  fi ;;",
        "esac",
        "exit $code",
    ]
    return "\n".join(lines) + "\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags, and as `arguments` what comes after `--`."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="Everything after -- goes to drifa train.",
    )
    parser.add_argument("--name", default="drifa")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=1, help="of a node, one process each")
    parser.add_argument("--cpus", type=int, default=8, help="of a process")
    parser.add_argument("--time", default="24:00:00")
    for name, words in PASSED_ON.items():
        parser.add_argument(f"--{name}", default="", help=words)
    parser.add_argument("--restarts", type=int, default=20, help="before it is given up")
    parser.add_argument("--folds", type=int, default=0, help="an array job, a fold each")
    parser.add_argument("--python", default=".venv/bin/python")
    parser.add_argument("--dry-run", action="store_true", help="print the script only")
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:cut])
    # Whoever writes --dry-run, wherever, wants nothing to be run.
    options.dry_run |= "--dry-run" in given
    options.arguments = [word for word in given[cut + 1 :] if word != "--dry-run"]
    if not options.arguments:
        parser.error("it needs -- and the arguments of drifa train")
    for name in ("name", *PASSED_ON):
        if set('"\n\\') & set(getattr(options, name)):
            parser.error(f"--{name} {getattr(options, name)!r} cannot hold quotes or line breaks")
    if options.folds:
        options.workdir = _taken_out(options.arguments, "--workdir")
        if options.folds < 2 or not options.workdir:
            parser.error("--folds needs 2 or more, and a --workdir among the arguments after --")
    return options


def _taken_out(words: list[str], flag: str) -> str:
    """The value of a flag, which is removed from the words; "" where it is not there."""
    for place, word in enumerate(words):
        if word.startswith(f"{flag}="):
            return words.pop(place).partition("=")[2]
        if word == flag and place + 1 < len(words):
            value = words.pop(place + 1)
            words.pop(place)
            return value
    return ""


def main() -> int:
    """Prints the script and submits it."""
    options = parse()
    text = script(options)
    print(text, end="", flush=True)
    if options.dry_run:
        return 0
    return subprocess.run(["sbatch"], input=text, text=True).returncode


if __name__ == "__main__":
    sys.exit(main())
