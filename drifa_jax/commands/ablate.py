"""`drifa ablate`: what each part of a network is worth, measured by taking it away."""

from __future__ import annotations

import argparse
from pathlib import Path

from drifa_jax.config_files import load_config
from drifa_jax.console import say
from drifa_jax.errors import UserError

TAKES_OVERRIDES = True
SYNTHETIC_LINE = "SYNTHETIC data, drawn by a program: the table says nothing about patients."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("config", help="FILE.py or FILE.py:VARIANT, e.g. configs/brain.py:quick")
    parser.add_argument(
        "--workdir", type=Path, help="directory of the ablation (default: runs/ablate-NAME)"
    )
    parser.add_argument(
        "--seeds", default="0,1,2", help="seeds of the training, by commas (default: %(default)s)"
    )
    parser.add_argument("--variants", default="", help="names by commas (default: all; see --list)")
    parser.add_argument("--list", action="store_true", help="list the variants and stop")
    parser.add_argument(
        "--table-only", action="store_true", help="train nothing; write the table of what is there"
    )
    parser.add_argument(
        "--discard-checkpoints", action="store_true", help="delete the weights of finished runs"
    )
    parser.epilog = (
        "Any field of the configuration can be changed for all variants: "
        "--config.train.num_epochs=5. The same command again goes on where an interrupted "
        "ablation stopped; more seeds or variants add to what is there."
    )


def run(options: argparse.Namespace) -> int:
    """Trains every variant with every seed and writes the table; 128 + signal if interrupted."""
    from drifa_jax.ablate.variants import chosen, left_out

    config = load_config(options.config, options.overrides)
    names = tuple(name for name in options.variants.split(",") if name)
    variants = chosen(config, names)
    if options.list:
        for variant in variants:
            print(f"{variant.name:20} {variant.meaning}")
        for name, twin in left_out(config).items():
            print(f"{name:20} left out: the same as {twin}")
        return 0
    seeds = _seeds(options.seeds)

    import absl.logging

    from drifa_jax.ablate import running
    from drifa_jax.compilation import run_programs_in_the_calling_thread, use_compilation_cache
    from drifa_jax.train.loop import Interrupted
    from drifa_jax.train.pretrained import with_checkpoint_pixels

    absl.logging.set_verbosity(absl.logging.ERROR)
    use_compilation_cache()
    run_programs_in_the_calling_thread()
    workdir = options.workdir or Path("runs") / f"ablate-{_name(options.config)}"
    config, notes = with_checkpoint_pixels(config, running.resumed_config(workdir))
    for note in notes:
        say(note)
    jobs = running.jobs(variants, seeds, workdir)
    with running.opened(workdir, config):
        say(f"Research use only. {len(variants)} variants x {len(seeds)} seeds in {workdir}")
        failed, code = [], 0
        if not options.table_only:
            try:
                failed = running.run_jobs(
                    config, jobs, say, keep_checkpoints=not options.discard_checkpoints
                )
            except Interrupted as interruption:
                say(f"{interruption}: state saved. The same command again goes on from here.")
                code = 128 + interruption.number
        written = _write_table(config, seeds, jobs, failed, workdir)
    for line in written:
        say(line)
    return code or (1 if failed else 0)


def _write_table(config, seeds, jobs, failed, workdir: Path) -> list[str]:
    """Writes the table of all that is finished, asked for now or before; returns what to say."""
    from drifa_jax.ablate import running, table
    from drifa_jax.ablate.variants import left_out, variants
    from drifa_jax.train.run_directory import environment, write_whole

    every = variants(config)
    finished = [job for job in running.jobs(every, seeds, workdir) if job.is_finished]
    if not finished:
        return ["No network is finished yet, so there is no table."]
    tested: dict[str, list] = {}
    for job in finished:
        tested.setdefault(job.variant.name, []).append(job.scores())
    document = table.document(every, tested)
    costs = {job.variant.name: job.cost() for job in finished}
    for of_task in document["tasks"].values():
        for row in of_task["rows"]:
            row["num_params"] = costs[row["variant"]]["num_params"]
    synthetic = config.data.source == "phantoms"
    missing = [f"{job.variant.name}/seed-{job.seed}" for job in jobs if not job.is_finished]
    document |= {
        "synthetic": synthetic,
        "seeds": sorted({job.seed for job in finished}),
        "not_finished": missing,
        "failed": {f"{job.variant.name}/seed-{job.seed}": reason for job, reason in failed},
        "left_out": left_out(config),
        "environment": environment(),
    }
    text = table.as_markdown(document)
    if missing:
        text = f"NOT FINISHED: {len(missing)} of {len(jobs)} networks are missing.\n\n{text}"
    if synthetic:
        text = f"{SYNTHETIC_LINE}\n\n{text}"
    for suffix, content in (
        ("md", text),
        ("csv", table.as_csv(document)),
        ("json", table.as_json(document)),
    ):
        write_whole(workdir / f"ablation.{suffix}", content)
    verdicts = [of_task["verdict"] for of_task in document["tasks"].values()]
    return [*verdicts, *[SYNTHETIC_LINE] * synthetic, f"Table: {workdir / 'ablation.md'}"]


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text!r}: give whole numbers by commas, such as 0,1,2.") from None
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds {text!r}: give different numbers of 0 or more.")
    return seeds


def _name(config: str) -> str:
    """`configs/brain.py:quick` -> `brain-quick`."""
    file, _, variant = config.partition(":")
    return Path(file).stem + (f"-{variant}" if variant else "")
