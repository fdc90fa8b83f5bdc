"""`drifa predict`: diagnoses with their uncertainty, prediction sets and referrals."""

from __future__ import annotations

import argparse
import functools
import sys
from contextlib import nullcontext
from pathlib import Path

from drifa_jax.console import RESEARCH_NOTE, printable, say
from drifa_jax.errors import UserError

EPILOG = """\
IMAGES is one case (mri=a.png ct=b.png), folders of cases (mri=FOLDER ct=FOLDER, files of the same
name belong together), one FOLDER with a subfolder for each modality, or a table
(CSV, TSV, Parquet) with the columns record_id and one for each modality. Where the run was trained
on DICOM or NIfTI, the files are those (a volume stands for its slices, scan.nii.gz:43 for one);
a tabular modality is a table with its columns (mri=a.png mri_table=patient.csv).
Several run directories before the images are one deep ensemble, and so are the folds in the folder
of a `drifa run --folds`.
In the place of runs, a file that `drifa export` wrote (brain.drifa) answers as it was exported.
Calibration, prediction sets, the referral threshold and the distance that tells records out of
distribution come from the validation split of the run's data. Training saves them in the run; for
other flags than the defaults, or an ensemble, they are fitted the first time and then read.
Where the images are DICOM, --dicom-sr and --dicom-sc write objects for an archive, into the study
of each case (docs/archive.md).
--engine ray predicts on a Ray cluster, into a folder of Parquet files that the same command
completes when it was stopped (docs/scaling.md)."""


MIXES_FLAGS_AND_PATHS = True
COLUMNS = ("record", "diagnosis", "probability", "uncertainty", "set", "refer", "p-value")
MOST_SHOWN = 40
"""Records that a terminal shows."""
DEFAULTS = {
    "samples": None,
    "seed": 0,
    "calibration": "temperature",
    "sets": "lac",
    "alpha": 0.1,
    "class_conditional": False,
    "refer": 0.1,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("paths", nargs="+", metavar="RUN [RUN...] IMAGES", help="see below")
    for suffix in ("csv", "json", "parquet"):
        parser.add_argument(f"--{suffix}", type=Path, metavar="OUT", help=f"write all as {suffix}")
    parser.add_argument(
        "--dicom-sr", type=Path, metavar="FOLDER", help="a DICOM structured report of each case"
    )
    parser.add_argument(
        "--dicom-sc", type=Path, metavar="FOLDER", help="DICOM secondary captures with Grad-CAM"
    )
    parser.add_argument(
        "--codes", type=Path, metavar="JSON", help="standard codes of classes, for --dicom-sr"
    )
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="where it runs (default: here)"
    )
    parser.add_argument(
        "--address", default="auto", help="of the Ray cluster: auto, HOST:PORT or local"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="of --engine ray: what it writes"
    )
    add_predictor_arguments(parser)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG


def add_predictor_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say how a network answers, for `open_predictor`."""
    parser.add_argument("--samples", type=int, help="Monte Carlo samples of each member")
    parser.add_argument("--seed", type=int, help="of the samples")
    parser.add_argument(
        "--calibration",
        choices=("none", "temperature", "vector", "isotonic"),
        help="map of the probabilities (default: temperature)",
    )
    parser.add_argument("--sets", choices=("lac", "aps", "raps"), help="prediction sets")
    parser.add_argument("--alpha", type=float, help="share of sets that may miss the truth")
    parser.add_argument(
        "--class-conditional", action="store_true", help="promise that share in each class"
    )
    parser.add_argument("--refer", type=float, help="share of validation records to refer")
    parser.add_argument(
        "--no-post-processing",
        "--no-decisions",
        action="store_true",
        help="no calibration, sets or referral",
    )
    parser.set_defaults(**DEFAULTS)


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
    to_archive = {"--dicom-sr": options.dicom_sr, "--dicom-sc": options.dicom_sc}
    if any(to_archive.values()):
        from drifa_jax.archive.places import check_places

        check_places(to_archive)
    if options.codes is not None and options.dicom_sr is None:
        raise UserError("--codes names the codes of a report; give --dicom-sr as well.")
    check_predictor_arguments(options)
    if options.engine == "ray":
        return _run_on_ray(runs, images, outputs, options)
    if options.out is not None:
        raise UserError("--out is the folder of --engine ray; without it, give --parquet OUT.")
    # Imported late, so that a wrong flag is answered before JAX loads.
    from drifa_jax.compilation import use_compilation_cache
    from drifa_jax.predict.inputs import find_cases
    from drifa_jax.predictions.files import written

    use_compilation_cache()
    predictor = open_predictor(runs, options)
    cases = find_cases(images, predictor.description.readings)
    for note in cases.notes:
        say(f"NOTE: {note}")
    shown = _Shown(predictor)
    with written(list(outputs.values())) as write, _archived(predictor, cases, options) as keep:
        for block in predictor.stream(cases.images, cases.record_ids):
            write(block)
            keep(block)
            shown.add(block)
    # Files first: who reads the console may leave before it ends.
    for path in (*outputs.values(), *(path for path in to_archive.values() if path)):
        say(f"Written: {path}")
    shown.show()
    return 0


def _archived(predictor, cases, options: argparse.Namespace):
    """Takes predictions on their way into DICOM objects, where any are asked for."""
    if options.dicom_sr is None and options.dicom_sc is None:
        return nullcontext(lambda block: None)
    from drifa_jax.archive.writing import archived

    return archived(
        predictor,
        cases,
        reports=options.dicom_sr,
        captures=options.dicom_sc,
        codes=options.codes,
    )


def _run_on_ray(runs: list[str], images: list[str], outputs, options: argparse.Namespace) -> int:
    if outputs:
        raise UserError(
            f"--{next(iter(outputs))}: --engine ray writes a folder; give --out FOLDER."
        )
    if options.dicom_sr is not None or options.dicom_sc is not None:
        raise UserError(
            "--engine ray writes no DICOM objects; leave --dicom-sr and --dicom-sc out."
        )
    if options.out is None:
        raise UserError("--engine ray needs --out FOLDER, where it writes its partitions.")
    if not options.out.absolute().parent.is_dir():
        raise UserError(f"--out {options.out}: the folder {options.out.parent} does not exist.")
    from drifa_jax.predict.on_ray import connected

    opened = functools.partial(open_predictor, runs, options)
    with connected(options.address) as cluster:
        say(f"Ray: {cluster.nodes} node(s), {cluster.devices} actor(s). The run is opened.")
        described = cluster.describe(opened)
        from drifa_jax.predict.inputs import find_cases

        cases = find_cases(images, described.description.readings)
        for note in cases.notes:
            say(f"NOTE: {note}")
        partitions = cluster.predict(opened, described, cases, options.out)
    say(f"Written: {options.out}: {partitions.count} partitions")
    for line in partitions.summary():
        print(line)
    print(f"{len(cases.record_ids):,} records. {RESEARCH_NOTE}", flush=True)
    return 0


def check_predictor_arguments(options: argparse.Namespace) -> None:
    """Raises a UserError that names the flag of `add_predictor_arguments` that cannot be."""
    if options.samples is not None and options.samples < 1:
        raise UserError(f"--samples is {options.samples}; it must be at least 1.")
    for name in ("alpha", "refer"):
        if not 0 < getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; it must be in (0, 1).")


def open_predictor(runs: list[str], options: argparse.Namespace):
    """Of run directories, or of one exported file; workers of a cluster call it by its name."""
    if is_export(runs[0]):
        from drifa_jax.predict.exported_predictor import ExportedPredictor

        for name, usual in DEFAULTS.items():
            if getattr(options, name) != usual:
                raise UserError(
                    f"--{name.replace('_', '-')}: {runs[0]} answers as it was exported; export "
                    "the run again to change that."
                )
        predictor = ExportedPredictor(Path(runs[0]), post_processing=not options.no_post_processing)
        if predictor.rebuilt:
            say(
                f"NOTE: this JAX cannot read the program in {runs[0]}; it was built anew, as it is "
                f"at each start. `drifa export --refresh {runs[0]}` keeps it."
            )
        return predictor
    from drifa_jax.post_processing.task import PostProcessingOptions
    from drifa_jax.predict.predictor import load

    return load(
        *runs,
        num_samples=options.samples,
        seed=options.seed,
        post_processing=not options.no_post_processing,
        options=PostProcessingOptions(
            calibration=options.calibration,
            conformal=options.sets,
            alpha=options.alpha,
            class_conditional=options.class_conditional,
            referred_share=options.refer,
        ),
    )


def is_export(path: str) -> bool:
    """Whether a path names an exported file, or would."""
    return Path(path).suffix.lower() == ".drifa" and not Path(path).is_dir()


def split_paths(paths: list[str]) -> tuple[list[str], list[str]]:
    """Leading run directories, or one exported file, and the images after them.

    Raises:
      UserError: when the first path is neither.
    """
    if is_export(paths[0]):
        return paths[:1], paths[1:]
    from drifa_jax.train.run_directory import runs_in

    runs: list[str] = []
    count = 0
    while count < len(paths) and (found := runs_in(paths[count])):
        runs += map(str, found)
        count += 1
    if not count:
        raise UserError(
            f"{paths[0]} is not a run directory: it has no config.json, nor is it an exported file "
            "(.drifa)."
        )
    return runs, paths[count:]


class _Shown:
    """What the console shows: a table of the first records, or plain lines in a pipe."""

    def __init__(self, predictor):
        self.synthetic = predictor.description.synthetic
        fitted = predictor.post_processing
        self.fitted = {} if fitted is None else fitted.tasks
        self.kept, self.count, self.first = [], 0, None

    def add(self, block) -> None:
        self.first = self.first or block
        self.count += len(block)
        room = MOST_SHOWN - sum(map(len, self.kept))
        if not sys.stdout.isatty():
            self.kept.append(block)
        elif room > 0:
            self.kept.append(block.take(range(min(room, len(block)))))

    def show(self) -> None:
        for task, found in self.first.tasks.items():
            synthetic = " (trained on SYNTHETIC data)" * self.synthetic
            rows = (row for block in self.kept for row in _rows(block, task))
            if sys.stdout.isatty():
                self._table(f"{task}{synthetic}", rows)
            else:
                print(f"{printable(task)}{synthetic}\n" + "\t".join(COLUMNS))
                for row in rows:
                    print("\t".join(row))
            for note in _notes(found, self.first, self.fitted.get(task)):
                print(f"  {printable(note)}")
        provenance = self.first.provenance
        print(
            f"{provenance.num_members} member(s) x {provenance.num_samples} samples. "
            f"{RESEARCH_NOTE}",
            flush=True,
        )

    def _table(self, title: str, rows) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(printable(title)))
        for column in COLUMNS:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        Console().print(table)
        if self.count > MOST_SHOWN:
            print(f"  {MOST_SHOWN} of {self.count:,} records; --csv writes all.")


def _rows(block, task: str):
    """The cells of each record."""
    found, scores = block[task], block.out_of_distribution
    names = found.labels
    for row, record in enumerate(block.record_ids):
        in_set = found.set_of(row)
        familiar = "-"
        if scores is not None:
            familiar = f"{scores.p_value[row]:.3f}" + " FLAGGED" * bool(scores.flagged[row])
        cells = (
            record,
            names[row],
            f"{found.probabilities[row].max():.3f}",
            f"{found.uncertainty.normalised_entropy[row]:.2f}",
            "-" if in_set is None else ", ".join(in_set) or "none fits",
            "-" if found.refer is None else ("REFER" if found.refer[row] else "no"),
            familiar,
        )
        yield [printable(cell) for cell in cells]


def _notes(found, block, fitted):
    """What a reader of one task's table must know."""
    if fitted is not None:
        sets = fitted.sets
        how = sets.method.upper()
        if sets.method == "raps":
            how += f", penalty {sets.penalty:g} beyond {sets.free_classes} classes"
        yield (
            f"Sets ({how}) hold the truth in {1 - sets.alpha:.0%} of records like the "
            f"{sets.num_records} validation records. Uncertainty is predictive entropy / "
            "log(classes)."
        )
    for note in found.notes:
        yield f"NOTE: {note}."
    if block.out_of_distribution is not None:
        from drifa_jax.post_processing.out_of_distribution import FLAGGED_BELOW

        yield (
            "Conformal p-value: share of validation records at least as far from the known as this "
            f"one; {FLAGGED_BELOW:.0%} or less is FLAGGED as out of distribution. A large share "
            "proves nothing."
        )
