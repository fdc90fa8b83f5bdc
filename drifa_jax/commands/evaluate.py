"""`drifa evaluate`: metrics with intervals, predictions, figures and one HTML report of a run."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from drifa_jax.console import RESEARCH_NOTE, say
from drifa_jax.errors import UserError

EPILOG = """\
Writes metrics.json, predictions.csv and .parquet, figures (PNG and SVG) and report.html, which
needs no other file and no network. Several run directories are one deep ensemble; the folds of one
cross-validation are pooled, each record answered by the runs that never saw it. Interrupted,
the same command goes on; the folder is there whole or not at all."""


MIXES_FLAGS_AND_PATHS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--out", type=Path, help="folder (default: RUN/evaluation)")
    parser.add_argument("--samples", type=int, help="Monte Carlo samples of each member")
    parser.add_argument("--seed", type=int, default=0, help="of samples and resamples")
    parser.add_argument(
        "--resamples", type=int, default=2000, help="of the bootstrap (default: 2000)"
    )
    parser.add_argument(
        "--subgroups",
        metavar="COLUMN,...",
        help="columns of the records to report by (default: sex, age, site, source where known)",
    )
    parser.add_argument(
        "--no-post-processing",
        "--no-decisions",
        action="store_true",
        help="no calibration, sets or referral rule",
    )
    parser.add_argument(
        "--no-explanations", action="store_true", help="no Grad-CAM gallery and no embedding"
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG


def run(options: argparse.Namespace) -> int:
    """Evaluates; 130 when interrupted."""
    if options.samples is not None and options.samples < 1:
        raise UserError(f"--samples is {options.samples}; it must be at least 1.")
    if options.resamples < 100:
        raise UserError(f"--resamples is {options.resamples}; it must be at least 100.")
    # Imported late, so that a wrong flag is answered before JAX loads.
    import absl.logging

    from drifa_jax.compilation import use_compilation_cache
    from drifa_jax.evaluate.folders import REPORT_FILE
    from drifa_jax.evaluate.run_evaluation import evaluate_run
    from drifa_jax.report.evaluation_report import write_all
    from drifa_jax.report.explanations import explanation_sections
    from drifa_jax.train.loggers import keep_files
    from drifa_jax.train.run_directory import runs_in, saved_config

    absl.logging.set_verbosity(absl.logging.ERROR)
    use_compilation_cache()
    runs = [run for path in options.runs for run in runs_in(path) or [path]]
    try:
        folder = evaluate_run(
            runs,
            options.out,
            num_samples=options.samples,
            seed=options.seed,
            num_resamples=options.resamples,
            columns=options.subgroups.split(",") if options.subgroups else None,
            post_processing=not options.no_post_processing,
            write=functools.partial(
                write_all, more_sections=None if options.no_explanations else explanation_sections
            ),
            say=say,
        )
    except KeyboardInterrupt:
        say("Interrupted. The same command goes on with the records that are left.")
        return 130
    for run in runs:
        tracking = saved_config(Path(run)).tracking
        keep_files(Path(run), tracking, "evaluation", _kept(folder), say)
    say(f"Report: {folder / REPORT_FILE}. {RESEARCH_NOTE}")
    return 0


def _kept(folder: Path) -> list[Path]:
    """What an evaluation hands on to the loggers: report, model card, figures."""
    return sorted(
        path for path in folder.iterdir() if path.suffix in (".html", ".md", ".json", ".png")
    )
