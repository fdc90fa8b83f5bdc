"""What pretrained branches are worth in whole networks: frozen, fine-tuned, from scratch.

    python benchmarks/pretrained_networks.py configs/results.py:brain_lung_networks
        --config.data.modalities.mri.root=BRAIN_MRI --config.data.modalities.ct.root=LUNG_CT
    python benchmarks/pretrained_networks.py configs/results.py:milk10k_networks
        --config.data.modalities.closeup.root=MILK10K
        --config.data.modalities.dermoscopy.root=MILK10K

Every network of WAYS is trained with every seed on the same splits and for as many epochs; they
differ in nothing but where the weights of their branches come from and how fast these learn.
The same command again goes on where it was stopped; `--ways` and `--seeds` do a part. Prints a
Markdown table a task of all that is finished: means over seeds with 95% bootstrap intervals over
groups and seeds, and differences from the network that starts from scratch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from drifa_jax.ablate import running
from drifa_jax.ablate.scores import Scores
from drifa_jax.ablate.statistics import METRICS, Draws, draws, interval, permutation_p
from drifa_jax.ablate.variants import Variant
from drifa_jax.compilation import run_programs_in_the_calling_thread, use_compilation_cache
from drifa_jax.config_files import load_config
from drifa_jax.train.loop import Interrupted
from drifa_jax.train.pretrained import with_checkpoint_pixels

SCRATCH = "from_scratch"
FINE_TUNING = {"train.rate_scales.backbone": 0.3}
WAYS = (
    Variant(SCRATCH, "the same network, all weights drawn", {"train.pretrained": ""}),
    Variant(
        "frozen",
        "pretrained branches as they came",
        {"train.frozen": ("branches",), "train.statistics_batches": 0},
    ),
    Variant("fine_tuned", "pretrained branches, trained at 0.3 of the rate", FINE_TUNING),
    Variant(
        "attention",
        "as fine_tuned, with the paper's MFA and MIFA after every resolution",
        FINE_TUNING
        | {"model.stage_mfa_parts": ("hifa", "clia"), "model.mifa_parts": ("mgifa", "mlifa")},
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=[way.name for way in WAYS])
    options, rest = parser.parse_known_args()
    use_compilation_cache()
    run_programs_in_the_calling_thread()
    workdir = options.workdir or Path("runs") / options.config.rpartition(":")[2]
    overrides = [tuple(a.removeprefix("--config.").split("=", 1)) for a in rest]
    config = load_config(options.config, overrides)
    config, notes = with_checkpoint_pixels(config, running.resumed_config(workdir))
    print(*notes, sep="\n")
    asked = [way for way in WAYS if not options.ways or way.name in options.ways]
    with running.opened(workdir, config):
        waiting = running.jobs(asked, options.seeds, workdir)
        try:
            running.run_jobs(config, waiting, lambda line: print(line, flush=True))
        except Interrupted as interruption:
            sys.exit(f"{interruption}: state saved. The same command again goes on from here.")
    finished = [job for job in running.jobs(WAYS, range(100), workdir) if job.is_finished]
    print(tables(finished) if finished else "No network is finished yet, so there is no table.")


def tables(finished: Sequence[running.Job]) -> str:
    """Markdown of the finished networks, a table a task."""
    lines = []
    for task in finished[0].scores():
        of_task = {way.name: [] for way in WAYS}
        for job in finished:
            of_task[job.variant.name].append(job.scores()[task])
        lines += rows(task, {name: seeds for name, seeds in of_task.items() if seeds})
    return "\n".join(lines)


def rows(task: str, tested: dict[str, list[Scores]]) -> list[str]:
    """The table of one task."""
    found = {
        name: draws(seeds, stream=number) for number, (name, seeds) in enumerate(tested.items())
    }
    first = next(iter(tested.values()))[0]
    lines = [
        f"\n**{task}**, {len(first.labels)} test records in {len(set(first.groups))} groups:\n",
        "| network | seeds | accuracy | balanced accuracy | AUROC | balanced accuracy, "
        "difference from scratch | p |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, of_way in found.items():
        cells = [f"`{name}`", str(len(tested[name])), *(summary(of_way, m) for m in METRICS)]
        if name == SCRATCH or SCRATCH not in found:
            cells += ["", ""]
        else:
            cells += against(of_way, found[SCRATCH])
            cells.append(f"{permutation_p(tested[name], tested[SCRATCH]):.2g}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def summary(of_way: Draws, metric: str) -> str:
    low, high = interval(of_way.replicates[metric])
    deviation = of_way.deviation(metric)
    spread = "" if deviation is None else f" ± {deviation:.3f}"
    return f"{of_way.mean(metric):.3f}{spread} ({low:.3f} to {high:.3f})"


def against(of_way: Draws, scratch: Draws) -> list[str]:
    metric = "balanced_accuracy"
    low, high = interval(of_way.replicates[metric] - scratch.replicates[metric])
    return [f"{of_way.mean(metric) - scratch.mean(metric):+.3f} ({low:+.3f} to {high:+.3f})"]


if __name__ == "__main__":
    main()
