"""`drifa export`: one portable file from a run, or from an ensemble of runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from drifa_jax.console import say
from drifa_jax.errors import UserError

MIXES_FLAGS_AND_PATHS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument(
        "paths", nargs="*", metavar="RUN [RUN...] OUT", help="runs, and the file to write of them"
    )
    parser.add_argument(
        "--refresh", type=Path, metavar="FILE", help="write the program of a file anew instead"
    )
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
        "copied beside it. Newer JAX reads its program for about six months (card.json says until "
        "when); where this package is installed, --refresh makes it anew at any time."
    )


def run(options: argparse.Namespace) -> int:
    """Exports, and verifies that the file answers as the live network does."""
    if options.refresh is not None:
        return _refresh(options)
    if len(options.paths) < 2:
        raise UserError("Give a run (or several) and the file to write: RUN OUT.drifa.")
    *runs, out = options.paths
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists; choose another name or delete it.")
    if not out.parent.is_dir():
        raise UserError(f"The folder {out.parent} does not exist.")
    if options.samples is not None and options.samples < 1:
        raise UserError(f"--samples is {options.samples}; it must be at least 1.")
    # Imported late, so that a wrong flag is answered before JAX loads.
    from drifa_jax.compilation import use_compilation_cache
    from drifa_jax.predict.export import export
    from drifa_jax.predict.predictor import load
    from drifa_jax.train.run_directory import runs_in

    use_compilation_cache()
    predictor = load(
        *[run for path in runs for run in runs_in(path) or [path]],
        num_samples=options.samples,
        seed=options.seed,
        post_processing=not options.no_post_processing,
    )
    card, differences = export(predictor, out)
    print(
        f"{out}: {out.stat().st_size / 1e6:.1f} MB, {card['num_members']} "
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


def _refresh(options: argparse.Namespace) -> int:
    if options.paths:
        raise UserError(f"--refresh {options.refresh}: takes one file and no run.")
    from drifa_jax.compilation import use_compilation_cache
    from drifa_jax.predict.export import refresh

    use_compilation_cache()
    card, difference = refresh(options.refresh)
    say(
        f"{options.refresh}: its program is now of JAX {card['program']['jax']}, readable until "
        f"about {card['program']['readable_until_about']}. "
        + (
            "This JAX could not read the old one."
            if difference is None
            else f"Largest difference of a probability from the old one {difference:.1e}."
        )
    )
    return 0
