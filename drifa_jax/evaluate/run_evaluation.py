"""From run directories to a finished evaluation folder, in one call that can be interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from drifa_jax.data.dataset import Dataset
from drifa_jax.errors import UserError
from drifa_jax.evaluate.evaluated import Evaluated
from drifa_jax.evaluate.evaluation import evaluate_tasks
from drifa_jax.evaluate.facts import (
    machine,
    measure_cost,
    pooled_data,
    summarise_data,
    training_cost,
    training_environment,
)
from drifa_jax.evaluate.folders import EVALUATION_FOLDER, check_replaceable
from drifa_jax.evaluate.intervals import NUM_RESAMPLES
from drifa_jax.evaluate.records import answer_records
from drifa_jax.predict.kept_apart import folds_of
from drifa_jax.predict.predictor import Predictor, load
from drifa_jax.predictions.table import Predictions, joined
from drifa_jax.train.metrics_log import read_metrics
from drifa_jax.train.run_directory import saved_config
from drifa_jax.whole_files import folder_replaced, only_one


@dataclass(frozen=True)
class Part:
    """One fold of an evaluation, or all of it: who answered which records, and what."""

    predictor: Predictor
    dataset: Dataset
    predictions: Predictions


Write = Callable[[Evaluated, Predictions, Sequence[Part], Path], None]
"""Fills the folder of an evaluation, from all predictions and the parts they came from."""


def evaluate_run(
    runs: Sequence[Path],
    out: Path | None = None,
    *,
    write: Write,
    num_samples: int | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    columns: Sequence[str] | None = None,
    post_processing: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Evaluates a run, or several as one ensemble, on its test records; returns the folder.

    Folds of one cross-validation are pooled out of fold: each record is answered by the runs that
    were tested on it. The answers are kept in chunks beside the folder until it is finished; the
    same call goes on from them. The folder appears whole, in one step, in the place of an older
    one.

    Args:
      runs: run directories.
      out: the folder; `evaluation` in the (first) run when None.
      write: fills the folder, as `report.evaluation_report.write_all`.
      num_samples: Monte Carlo samples; the run's own setting when None.
      seed: of samples and resamples.
      num_resamples: of the bootstrap.
      columns: attributes of the records to make subgroups of; None looks for the usual ones.
      post_processing: whether to calibrate, refer and make prediction sets.
      say: told about progress.

    Raises:
      UserError: naming the run, folder, column or flag that is wrong.

    Test: tests/evaluate/test_run_evaluation.py.
    """
    for run in runs:
        saved_config(run)  # says so where this is no run
    out = runs[0] / EVALUATION_FOLDER if out is None else out
    check_replaceable(out)
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: the folder {out.parent} does not exist.")
    folds = folds_of(runs)
    with _only_one(out):
        partial = out.with_name(f".{out.name}.partial")
        parts = []
        for fold, members in folds.items():
            if len(folds) > 1:
                say(f"fold {fold}: {', '.join(map(str, members))}")
            predictor = load(
                *members, num_samples=num_samples, seed=seed, post_processing=post_processing
            )
            folder = partial / f"fold-{fold}" if len(folds) > 1 else partial
            parts.append(_part(predictor, folder, say))
        say(f"{num_resamples} resamples, figures and report")
        predictions = joined([part.predictions for part in parts])
        evaluated = _evaluated(
            runs, folds, parts, predictions, columns=columns, num_resamples=num_resamples, seed=seed
        )
        try:
            with folder_replaced(out) as fresh:
                write(evaluated, predictions, parts, fresh)
        except OSError as error:
            raise UserError(f"{out} cannot be written ({error.strerror}).") from error
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _part(predictor: Predictor, folder: Path, say: Callable[[str], None]) -> Part:
    dataset = predictor.restored.open_dataset()
    # The data may have changed since the network was trained.
    held = {task.name: tuple(task.classes) for task in dataset.test.tasks}
    if held != dict(predictor.description.tasks):
        raise UserError(
            f"{predictor.restored.runs[0]} answers {dict(predictor.description.tasks)}, but its "
            f"data now hold {held}; restore the data that it was trained on."
        )
    predictions, num_resumed = answer_records(
        predictor,
        dataset.test,
        folder,
        progress=lambda done, total: say(f"predicted {done} of {total} test records"),
    )
    if num_resumed:
        say(f"{num_resumed} of them had been predicted before an interruption")
    return Part(predictor, dataset, predictions)


def _evaluated(runs, folds, parts, predictions, *, columns, num_resamples, seed) -> Evaluated:
    first = parts[0].predictor
    fitted = [p.predictor.post_processing for p in parts if p.predictor.post_processing]
    tasks = evaluate_tasks(
        predictions,
        {task: [found.tasks[task] for found in fitted] for task in predictions.tasks},
        columns=columns,
        num_resamples=num_resamples,
        seed=seed,
    )
    if not tasks:
        raise UserError(f"No test record of {parts[0].dataset.test.description} has a label.")
    summaries = [summarise_data(p.dataset, p.predictor.restored.config.data) for p in parts]
    return Evaluated(
        runs=tuple(runs),
        num_members=first.num_members,
        config=first.restored.config,
        description=first.description,
        steps=tuple(step for part in parts for step in part.predictor.restored.steps),
        num_samples=first.num_samples,
        seed=seed,
        num_records=len(predictions),
        tasks=tasks,
        data=pooled_data(summaries),
        cost=measure_cost(
            first,
            seconds_per_record=predictions.seconds["network"] / len(predictions),
            training=training_cost(runs),
        ),
        learning=read_metrics(runs[0]),
        trained_by=training_environment(runs[0]),
        evaluated_by=machine(),
        folds=tuple(sorted(folds)) if len(folds) > 1 else (),
    )


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Keeps a second evaluation of the same folder out."""
    with ExitStack() as held:
        taken = f"{out} is being written by another evaluation; wait for it."
        try:
            held.enter_context(only_one(out.with_name(f".{out.name}.lock"), taken))
        except OSError as error:
            raise UserError(f"{out.parent} cannot be written ({error.strerror}).") from error
        yield
