"""`drifa predict`: diagnoses with their uncertainty, prediction sets and referrals."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from drifa_jax.errors import UserError

EPILOG = """\
IMAGES is one case (mri=a.png ct=b.png), folders of cases (mri=FOLDER ct=FOLDER, files of the same
name belong together), one FOLDER with a subfolder for each modality, or a table
(CSV, TSV, Parquet) with the columns record_id and one for each modality. Where the run was trained
on DICOM or NIfTI, the files are those (a volume stands for its slices, scan.nii.gz:43 for one);
a tabular modality is a table with its columns (mri=a.png mri_table=patient.csv).
Several run directories before the images are one deep ensemble.
Calibration, prediction sets, the referral threshold and the distance that tells foreign records
come from the validation split of the run's data. Training saves them in the run; for other flags
than the defaults, or an ensemble, they are fitted the first time and then read."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("paths", nargs="+", metavar="RUN [RUN...] IMAGES", help="see below")
    for suffix in ("csv", "json", "parquet"):
        parser.add_argument(f"--{suffix}", type=Path, metavar="OUT", help=f"write all as {suffix}")
    parser.add_argument("--samples", type=int, help="Monte Carlo samples of each member")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument(
        "--calibration",
        choices=("none", "temperature", "vector", "isotonic"),
        default="temperature",
        help="map of the probabilities (default: temperature)",
    )
    parser.add_argument(
        "--sets", choices=("lac", "aps", "raps"), default="lac", help="prediction sets"
    )
    parser.add_argument(
        "--alpha", type=float, default=0.1, help="share of sets that may miss the truth"
    )
    parser.add_argument(
        "--class-conditional", action="store_true", help="promise that share in each class"
    )
    parser.add_argument(
        "--refer", type=float, default=0.1, help="share of validation records to refer"
    )
    parser.add_argument(
        "--no-decisions", action="store_true", help="no calibration, sets or referral"
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG


def run(options: argparse.Namespace) -> int:
    """Predicts and prints; files are written whole, after all records are predicted."""
    runs, images = split_paths(options.paths)
    outputs = {
        suffix: path
        for suffix in ("csv", "json", "parquet")
        if (path := getattr(options, suffix)) is not None
    }
    for suffix, path in outputs.items():
        if path.suffix.lower() != f".{suffix}":
            raise UserError(f"--{suffix} {path}: the name must end in .{suffix}.")
        if not path.parent.is_dir():
            raise UserError(f"--{suffix} {path}: the folder {path.parent} does not exist.")
    if options.samples is not None and options.samples < 1:
        raise UserError(f"--samples is {options.samples}; it must be at least 1.")
    for name in ("alpha", "refer"):
        if not 0 < getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; it must be in (0, 1).")
    # Imported late, so that a wrong flag is answered before JAX loads.
    from drifa_jax.compilation import use_compilation_cache
    from drifa_jax.predict.decisions import DecisionOptions
    from drifa_jax.predict.inputs import find_cases
    from drifa_jax.predict.predictor import load

    use_compilation_cache()
    predictor = load(
        *runs,
        num_samples=options.samples,
        seed=options.seed,
        decisions=not options.no_decisions,
        options=DecisionOptions(
            calibration=options.calibration,
            conformal=options.sets,
            alpha=options.alpha,
            class_conditional=options.class_conditional,
            referred_share=options.refer,
        ),
    )
    cases = find_cases(images, predictor.description.readings)
    prediction = predictor(cases.images, cases.record_ids)
    _show(prediction, predictor)
    for path in outputs.values():
        prediction.write(path)
        _say(f"Written: {path}")
    return 0


def split_paths(paths: list[str]) -> tuple[list[str], list[str]]:
    """Leading run directories, and the images after them.

    Raises:
      UserError: when the first path is no run directory.
    """
    count = 0
    while count < len(paths) and (Path(paths[count]) / "config.json").is_file():
        count += 1
    if not count:
        raise UserError(f"{paths[0]} is not a run directory: it has no config.json.")
    return paths[:count], paths[count:]


COLUMNS = ("record", "diagnosis", "probability", "uncertainty", "set", "refer", "alike")


def _show(prediction, predictor) -> None:
    from rich.console import Console
    from rich.table import Table

    from drifa_jax.predict.foreign import FOREIGN_BELOW

    console = Console()
    description = predictor.description
    for task, of in prediction.tasks.items():
        table = Table(title=f"{task}" + (" (trained on SYNTHETIC data)" * description.synthetic))
        for column in COLUMNS:
            table.add_column(column, overflow="fold")
        for row, one in enumerate(prediction.record_ids):
            names = of.set_of(row)
            table.add_row(
                one,
                of.labels[row],
                f"{of.probabilities[row].max():.3f}",
                f"{of.uncertainty.normalised_entropy[row]:.2f}",
                "-" if names is None else ", ".join(names) or "none fits",
                "-" if of.refer is None else ("REFER" if of.refer[row] else "no"),
                _familiarity(prediction.foreign, row),
            )
        console.print(table)
        decisions = predictor.decisions.get(task)
        if decisions is not None:
            console.print(
                f"  Sets hold the truth in {1 - decisions.sets.alpha:.0%} of records like the "
                f"{decisions.num_validation} validation records. Uncertainty is predictive "
                "entropy / log(classes).",
                highlight=False,
            )
    if prediction.foreign is not None:
        console.print(
            "  Alike: share of validation records at least as far from the known as this one; "
            f"{FOREIGN_BELOW:.0%} or less is FOREIGN. A large share proves nothing.",
            highlight=False,
        )
    console.print(
        f"{prediction.num_members} member(s) x {prediction.num_samples} samples. "
        "Research use only. Not a medical device.",
        highlight=False,
    )


def _familiarity(scores, row: int) -> str:
    if scores is None:
        return "-"
    return f"{scores.p_value[row]:.3f}" + (" FOREIGN" if scores.foreign[row] else "")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
