"""`drifa explain`: where a network looked, and what each modality gave, case by case."""

from __future__ import annotations

import argparse
from pathlib import Path

from drifa_jax.console import RESEARCH_NOTE, printable, say
from drifa_jax.errors import UserError

EPILOG = """\
IMAGES are those of `drifa predict` (mri=a.png ct=b.png, folders, a table). Without IMAGES, the most
telling test records of the run's data are explained: certain and uncertain, right and wrong.
Writes a PNG for each case and task (image, Grad-CAM, and its spread over the members of an
ensemble), explanations.json and contributions.csv (Shapley values and leave-one-out by modality).
A table has no places to map; it has a contribution. Several run directories are one ensemble."""


MIXES_FLAGS_AND_PATHS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("paths", nargs="+", metavar="RUN [RUN...] [IMAGES]", help="see below")
    parser.add_argument("--out", type=Path, help="folder (default: RUN/explanations)")
    parser.add_argument("--task", help="explain this task alone")
    parser.add_argument(
        "--class", dest="class_name", help="explain this class instead of the one called"
    )
    parser.add_argument("--samples", type=int, help="Monte Carlo samples of each member")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG


def run(options: argparse.Namespace) -> int:
    """Explains and writes; nothing is written where anything does not fit."""
    from drifa_jax.commands.predict import split_paths

    runs, images = split_paths(options.paths)
    if options.samples is not None and options.samples < 1:
        raise UserError(f"--samples is {options.samples}; it must be at least 1.")
    if options.class_name and not (images and options.task):
        raise UserError("--class needs IMAGES, and --task to say whose class it is.")
    # Imported late, so that a wrong flag is answered before JAX loads.
    from drifa_jax.compilation import use_compilation_cache
    from drifa_jax.evaluate.folders import check_replaceable
    from drifa_jax.predict.kept_apart import folds_of
    from drifa_jax.predict.predictor import load
    from drifa_jax.report.explained_cases import EXPLANATIONS_FILE, write_explanations

    out = options.out or Path(runs[0]) / "explanations"
    check_replaceable(out, EXPLANATIONS_FILE)
    use_compilation_cache()
    if not images and len(folds := folds_of([Path(run) for run in runs])) > 1:
        # Only those networks explain test records that never saw them.
        first = min(folds)
        runs = folds[first]
        say(f"Test records of fold {first}, explained by {', '.join(map(str, runs))}.")
    predictor = load(*runs, num_samples=options.samples, seed=options.seed, post_processing=False)
    known = predictor.description.tasks
    if options.task and options.task not in known:
        raise UserError(f"--task {options.task}: the network answers {', '.join(known)}.")
    tasks = [options.task] if options.task else list(known)
    if options.class_name and options.class_name not in known[options.task]:
        raise UserError(
            f"--class {options.class_name}: the classes of {options.task} are "
            f"{', '.join(known[options.task])}."
        )
    found = (
        _of_cases(predictor, images, tasks, options.class_name)
        if images
        else _of_test_records(predictor, tasks)
    )
    if not found:
        raise UserError(f"No test record has a label of {' or '.join(tasks)}.")
    write_explanations(
        found,
        out,
        num_members=predictor.num_members,
        synthetic=predictor.description.synthetic,
    )
    for case in found:
        shares = ", ".join(f"{m} {share:+.2f}" for m, share in case.shapley.items())
        told = f"{case.task}: {case.predicted} {case.probability:.2f}  ({shares})"
        print(printable(f"{case.record_id}  {told}"))
    if not found[0].trained_without:
        say("Never trained without a modality: what one adds is an extrapolation.")
    say(f"Written: {out}. {RESEARCH_NOTE}")
    return 0


def _of_cases(predictor, images, tasks, class_name):
    import numpy as np

    from drifa_jax.explain.explanation import explain_records
    from drifa_jax.predict.inputs import find_cases

    cases = find_cases(images, predictor.description.readings)
    pixels, present = predictor.read(cases.images)
    uncertainty = predictor.uncertainty(pixels, present, cases.record_ids)
    found = []
    for task in tasks:
        classes = None
        if class_name:
            place = predictor.description.tasks[task].index(class_name)
            classes = np.full(len(cases.record_ids), place, np.int32)
        found += explain_records(
            predictor,
            cases.record_ids,
            pixels,
            present,
            task,
            uncertainty=uncertainty[task],
            classes=classes,
        )
    return found


def _of_test_records(predictor, tasks):
    from drifa_jax.explain.gallery import gallery

    test = predictor.restored.open_dataset().test
    return [example for task in tasks for example in gallery(predictor, test, task)]
