"""`drifa export`: one portable file from a run, or from an ensemble of runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from drifa_jax.errors import UserError

MIXES_FLAGS_AND_PATHS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory; several: ensemble")
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write, e.g. brain.drifa")
    parser.add_argument("--samples", type=int, help="Monte Carlo samples of each member")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument(
        "--no-post-processing",
        "--no-decisions",
        action="store_true",
        help="no calibration, sets or referral",
    )
    parser.epilog = (
        "The file needs JAX and NumPy alone: drifa_jax/predict/exported.py reads it and may be "
        "copied beside it."
    )


def run(options: argparse.Namespace) -> int:
    """Exports, and verifies that the file answers as the live network does."""
    if options.out.exists():
        raise UserError(f"{options.out} exists; choose another name or delete it.")
    if not options.out.parent.is_dir():
        raise UserError(f"The folder {options.out.parent} does not exist.")
    if options.samples is not None and options.samples < 1:
        raise UserError(f"--samples is {options.samples}; it must be at least 1.")
    # Imported late, so that a wrong flag is answered before JAX loads.
    from drifa_jax.compilation import use_compilation_cache
    from drifa_jax.predict.export import export
    from drifa_jax.predict.predictor import load
    from drifa_jax.train.run_directory import runs_in

    use_compilation_cache()
    predictor = load(
        *[run for path in options.runs for run in runs_in(path) or [path]],
        num_samples=options.samples,
        seed=options.seed,
        post_processing=not options.no_post_processing,
    )
    card, differences = export(predictor, options.out)
    print(
        f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB, {card['num_members']} "
        f"member(s) x {card['num_samples']} samples, for {', '.join(card['platforms'])}. "
        f"Read back: largest difference of a probability {differences.probability:.1e}"
        + (
            "; it cannot tell records out of distribution."
            if differences.distance is None
            else f", of a distance {differences.distance:.1e} of itself."
        ),
        file=sys.stderr,
    )
    return 0
