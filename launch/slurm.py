"""SLURM: one process for each GPU, requeued after a preemption or a lost node.

    python launch/slurm.py --nodes 2 --gpus 4 --time 24:00:00 --partition gpu -- \
        --config configs/brain.py --workdir /shared/runs/brain

Prints the batch script, then hands it to `sbatch`; `--dry-run` only prints. Two minutes before the
time limit, and on preemption, SLURM sends SIGTERM: the run saves and ends with 143, and the script
puts itself back into the queue, as it does after 75 (a process was lost). The run directory must be
on a file system that all nodes share.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys

COORDINATOR = "--config.distributed.coordinator=auto"


def script(options: argparse.Namespace) -> str:
    """The batch script."""
    train = shlex.join([options.python, "-m", "drifa_jax.main", *options.arguments, COORDINATOR])
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={options.name}",
        f"#SBATCH --nodes={options.nodes}",
        f"#SBATCH --ntasks-per-node={options.gpus}",
        f"#SBATCH --gpus-per-node={options.gpus}",
        f"#SBATCH --cpus-per-task={options.cpus}",
        f"#SBATCH --time={options.time}",
        *([f"#SBATCH --partition={options.partition}"] if options.partition else []),
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --output=%x-%j.log",
        # To the steps, not to this script: each process saves and ends.
        "#SBATCH --signal=TERM@120",
        "",
        "# Without this, the job ends with its first lost process, before the others can say so.",
        f"srun --kill-on-bad-exit=0 {train}",
        "code=$?",
        "if [ $code -eq 143 ] || [ $code -eq 75 ]; then",
        '  scontrol requeue "$SLURM_JOB_ID"',
        "fi",
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
    parser.add_argument("--partition", default="")
    parser.add_argument("--python", default=".venv/bin/python")
    parser.add_argument("--dry-run", action="store_true", help="print the script only")
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:cut])
    options.arguments = given[cut + 1 :]
    if not options.arguments:
        parser.error("it needs -- and the arguments of drifa train")
    return options


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
