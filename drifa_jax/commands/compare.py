"""`drifa compare`: paired statistics of runs that were tested on the same records."""

from __future__ import annotations

import argparse
from pathlib import Path

from drifa_jax.console import RESEARCH_NOTE, say
from drifa_jax.errors import UserError

EPILOG = """\
Every RUN is compared with the first. A run that has no evaluation yet is evaluated first, as by
`drifa evaluate RUN`; a folder that `drifa evaluate --out` wrote may stand for its run. Writes
metrics.json, differences.csv, figures (PNG and SVG) and report.html."""


MIXES_FLAGS_AND_PATHS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--out", type=Path, help="folder (default: comparison beside the first)")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples")
    parser.add_argument(
        "--resamples", type=int, default=2000, help="of the bootstrap (default: 2000)"
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG


def run(options: argparse.Namespace) -> int:
    """Compares; 130 when interrupted."""
    if len(options.runs) < 2:
        raise UserError("Give at least two runs to compare.")
    if len({path.resolve() for path in options.runs}) != len(options.runs):
        raise UserError("The same run was given twice.")
    if options.resamples < 100:
        raise UserError(f"--resamples is {options.resamples}; it must be at least 100.")
    # Imported late, so that a wrong flag is answered before JAX loads.
    import absl.logging

    from drifa_jax.compilation import use_compilation_cache
    from drifa_jax.evaluate.compared_runs import compare, read_evaluation
    from drifa_jax.evaluate.folders import REPORT_FILE, check_replaceable, find_evaluation
    from drifa_jax.evaluate.run_evaluation import evaluate_run
    from drifa_jax.report.comparison_report import write_comparison
    from drifa_jax.report.evaluation_report import write_all

    out = options.out or options.runs[0].resolve().parent / "comparison"
    check_replaceable(out)
    absl.logging.set_verbosity(absl.logging.ERROR)
    use_compilation_cache()
    folders = []
    try:
        for path in options.runs:
            try:
                folders.append(find_evaluation(path))
            except UserError:
                if not (path / "config.json").is_file():
                    raise
                say(f"{path} has no evaluation yet:")
                folders.append(
                    evaluate_run([path], write=write_all, num_resamples=options.resamples, say=say)
                )
    except KeyboardInterrupt:
        say("Interrupted. The same command goes on with the records that are left.")
        return 130
    names = distinct_names(options.runs)
    read = [read_evaluation(f, name) for f, name in zip(folders, names, strict=True)]
    write_comparison(compare(read, num_resamples=options.resamples, seed=options.seed), out)
    say(f"Report: {out / REPORT_FILE}. {RESEARCH_NOTE}")
    return 0


def distinct_names(paths: list[Path]) -> list[str]:
    """The last part of each path, with as many before it as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names
