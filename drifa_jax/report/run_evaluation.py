"""From run directories to a finished evaluation folder, in one call that can be interrupted."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from drifa_jax.data.dataset import Dataset, open_dataset
from drifa_jax.errors import UserError
from drifa_jax.evaluate.evaluation import evaluate_tasks
from drifa_jax.evaluate.facts import (
    machine,
    measure_cost,
    summarise_data,
    training_cost,
    training_environment,
)
from drifa_jax.evaluate.intervals import NUM_RESAMPLES
from drifa_jax.evaluate.records import answer_records
from drifa_jax.predict.predictor import Predictor, load
from drifa_jax.predictions.table import Predictions
from drifa_jax.report.blocks import Section
from drifa_jax.report.evaluated import Evaluated
from drifa_jax.report.evaluation_report import (
    FIGURES_FOLDER,
    check_replaceable,
    write_evaluation,
)
from drifa_jax.train.metrics_log import read_metrics
from drifa_jax.train.run_directory import saved_config
from drifa_jax.whole_files import folder_replaced

EVALUATION_FOLDER = "evaluation"
MoreSections = Callable[[Predictor, Dataset, Predictions, Evaluated, Path], Sequence[Section]]


def evaluate_run(
    runs: Sequence[Path],
    out: Path | None = None,
    *,
    num_samples: int | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    columns: Sequence[str] | None = None,
    post_processing: bool = True,
    more_sections: MoreSections | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Evaluates a run, or several as one ensemble, on its test records; returns the folder.

    The answers are kept in chunks beside the folder until it is finished; the same call goes on
    from them. The folder appears whole, in one step, in the place of an older one.

    Args:
      runs: run directories.
      out: the folder; `evaluation` in the (first) run when None.
      num_samples: Monte Carlo samples; the run's own setting when None.
      seed: of samples and resamples.
      num_resamples: of the bootstrap.
      columns: attributes of the records to make subgroups of; None looks for the usual ones.
      post_processing: whether to calibrate, refer and make prediction sets.
      more_sections: what else goes into the report, such as
        `explanations.explanation_sections`; its figures go into the last argument.
      say: told about progress.

    Raises:
      UserError: naming the run, folder, column or flag that is wrong.

    Test: tests/report/test_run_evaluation.py.
    """
    for run in runs:
        saved_config(run)  # says so where this is no run
    out = runs[0] / EVALUATION_FOLDER if out is None else out
    check_replaceable(out)
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: the folder {out.parent} does not exist.")
    predictor = load(*runs, num_samples=num_samples, seed=seed, post_processing=post_processing)
    config = predictor.restored.config
    dataset = open_dataset(config.data)
    _check_tasks(predictor, dataset, runs[0])
    with _only_one(out):
        partial = out.with_name(f".{out.name}.partial")
        predictions, num_resumed = answer_records(
            predictor,
            dataset.test,
            partial,
            progress=lambda done, total: say(f"predicted {done} of {total} test records"),
        )
        if num_resumed:
            say(f"{num_resumed} of them had been predicted before an interruption")
        say(f"{num_resamples} resamples, figures and report")
        fitted = predictor.post_processing
        tasks = evaluate_tasks(
            predictions,
            {} if fitted is None else fitted.tasks,
            columns=columns,
            num_resamples=num_resamples,
            seed=seed,
        )
        if not tasks:
            raise UserError(f"No test record of {dataset.test.description} has a label.")
        evaluated = Evaluated(
            runs=tuple(runs),
            num_members=predictor.num_members,
            config=config,
            description=predictor.description,
            steps=predictor.restored.steps,
            num_samples=predictor.num_samples,
            seed=seed,
            num_records=len(predictions),
            tasks=tasks,
            data=summarise_data(dataset, config.data),
            cost=measure_cost(
                predictor,
                seconds_per_record=predictions.seconds["network"] / len(predictions),
                training=training_cost(runs),
            ),
            learning=read_metrics(runs[0]),
            trained_by=training_environment(runs[0]),
            evaluated_by=machine(),
        )
        try:
            with folder_replaced(out) as fresh:
                figures = fresh / FIGURES_FOLDER
                extra = (
                    more_sections(predictor, dataset, predictions, evaluated, figures)
                    if more_sections
                    else ()
                )
                write_evaluation(evaluated, predictions, fresh, extra=extra)
        except OSError as error:
            raise UserError(f"{out} cannot be written ({error.strerror}).") from error
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _check_tasks(predictor: Predictor, dataset: Dataset, run: Path) -> None:
    """The data may have changed since the network was trained."""
    held = {task.name: tuple(task.classes) for task in dataset.test.tasks}
    if held != dict(predictor.description.tasks):
        raise UserError(
            f"{run} answers {dict(predictor.description.tasks)}, but its data now hold {held}; "
            "restore the data that it was trained on."
        )


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Keeps a second evaluation of the same folder out."""
    path = out.with_name(f".{out.name}.lock")
    try:
        lock = path.open("w")
    except OSError as error:
        raise UserError(f"{out.parent} cannot be written ({error.strerror}).") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{out} is being written by another evaluation; wait for it."
            ) from error
        yield
