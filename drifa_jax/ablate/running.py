"""Training every variant with every seed, each kept when it is done.

workdir/
  config.json, environment.json     what is ablated
  <variant>/seed-<k>/               an ordinary run, and predictions.parquet when it is finished
  ablation.md, .csv, .json          the table of all that is finished
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from drifa_jax.ablate.scores import Scores, scores_of
from drifa_jax.ablate.variants import Variant
from drifa_jax.config import Config, DataConfig
from drifa_jax.data.dataset import Dataset, open_dataset
from drifa_jax.data.pipeline import evaluation_batches
from drifa_jax.errors import UserError
from drifa_jax.evaluate.testing import tested
from drifa_jax.models.description import save_description as save_network_description
from drifa_jax.predict.restored import describe, save_description
from drifa_jax.predictions.files import read_predictions, write_predictions
from drifa_jax.sharding import layout_of
from drifa_jax.train import run_directory
from drifa_jax.train.experiment import Experiment, build_experiment
from drifa_jax.train.loop import train
from drifa_jax.train.prediction import SplitPredictor, split_predictor
from drifa_jax.train.program import Program

PREDICTIONS_FILE = "predictions.parquet"
COST_FILE = "cost.json"


@dataclasses.dataclass(frozen=True)
class Job:
    """One network to train: a variant with a seed, in a folder of its own."""

    variant: Variant
    seed: int
    folder: Path

    @property
    def is_finished(self) -> bool:
        return (self.folder / PREDICTIONS_FILE).is_file()

    def scores(self) -> dict[str, Scores]:
        """Task -> what the finished network said of the test records."""
        return scores_of(read_predictions(self.folder / PREDICTIONS_FILE))

    def cost(self) -> dict[str, float]:
        """`num_params`, and `seconds` of the attempt that finished."""
        return json.loads((self.folder / COST_FILE).read_text())


def jobs(variants: Sequence[Variant], seeds: Sequence[int], workdir: Path) -> list[Job]:
    """All variants with the first seed, then with the second, so that a part is a fair part."""
    return [
        Job(variant, seed, workdir / variant.name / f"seed-{seed}")
        for seed in seeds
        for variant in variants
    ]


@contextlib.contextmanager
def opened(workdir: Path, config: Config) -> Iterator[None]:
    """Claims the folder of an ablation: fresh, or one of the same configuration.

    Raises:
      UserError: when it is in use, or holds a run or another ablation.
    """
    if (workdir / "checkpoints").exists():
        raise UserError(f"--workdir {workdir} holds a run, not an ablation; choose another.")
    if (begun := resumed_config(workdir)) is not None:
        saved = json.loads(begun.essence().to_json())
        lines = list(run_directory.differences(saved, json.loads(config.essence().to_json())))
        if lines:
            raise UserError(
                f"--workdir {workdir} holds an ablation of another configuration:\n"
                + "\n".join(lines)
                + "\nGive that configuration to go on with it, or choose another --workdir."
            )
    with run_directory.opened(workdir, config):
        run_directory.write_identity(workdir, config)
        yield


def resumed_config(workdir: Path) -> Config | None:
    """The configuration of an ablation that has begun; None where there is none."""
    begun = any(workdir.glob("*/seed-*"))
    return run_directory.saved_config(workdir) if begun else None


def run_jobs(
    config: Config,
    waiting: Sequence[Job],
    say: Callable[[str], None],
    *,
    keep_checkpoints: bool = True,
) -> list[tuple[Job, str]]:
    """Trains and tests what is not finished yet; returns the jobs that failed, and why.

    Args:
      config: of the reference; its `train.seed` is replaced.
      waiting: jobs in order; finished ones are passed over.
      say: prints a line of progress.
      keep_checkpoints: whether finished runs keep their weights.

    Raises:
      loop.Interrupted: after a signal, when the running network's state is saved.
    """
    programs = _Programs()
    finished = sum(job.is_finished for job in waiting)
    if finished:
        say(f"{finished} of {len(waiting)} networks are finished already")
    spent: list[float] = []
    failed = []
    for job in waiting:
        if job.is_finished:
            continue
        started = time.monotonic()
        say(f"{job.variant.name}, seed {job.seed}: {job.variant.meaning}")
        own = job.variant.of(config)
        own = dataclasses.replace(own, train=dataclasses.replace(own.train, seed=job.seed))
        try:
            _train(own, programs(job.variant.name, own), job)
        except UserError as error:
            say(f"{job.variant.name}, seed {job.seed} FAILED: {error}")
            failed.append((job, str(error)))
            continue
        finished += 1
        if not keep_checkpoints:
            shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)
        spent.append(time.monotonic() - started)
        left = float(np.mean(spent)) * (len(waiting) - finished - len(failed))
        say(
            f"{finished}/{len(waiting)} networks finished, the last in {spent[-1]:.0f} s; "
            f"ETA {_hours(left)}"
        )
    return failed


def _train(config: Config, program: _Program, job: Job) -> None:
    started = time.monotonic()
    experiment = dataclasses.replace(program.experiment, config=config)
    dataset, predict = experiment.dataset, program.predict
    with run_directory.opened(job.folder, config), run_directory.begun(job.folder, config):
        dataset.save_splits(job.folder / run_directory.SPLITS_FOLDER)
        save_network_description(job.folder, experiment.description)
        description = describe(config.data, dataset)
        save_description(job.folder, description)
        state = train(experiment, predict, job.folder, program.step, description.to_json())
        split = predict(
            state.params,
            state.statistics,
            evaluation_batches(
                dataset.test,
                batch_size=config.eval.batch_size,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            ),
        )
        if jax.process_index() != 0:
            return
        leaves = jax.tree.leaves(experiment.network.abstract_params)
        cost = {
            "num_params": int(sum(leaf.size for leaf in leaves)),
            "seconds": round(time.monotonic() - started, 1),
        }
        run_directory.write_whole(job.folder / COST_FILE, json.dumps(cost) + "\n")
        # Last: its presence says that the job is finished.
        write_predictions(tested(dataset.test, split), job.folder / PREDICTIONS_FILE)


@dataclasses.dataclass(frozen=True)
class _Program:
    """What the seeds of one variant share: data, and steps that are compiled once."""

    experiment: Experiment
    predict: SplitPredictor
    step: Program


class _Programs:
    """The programs of variants, made when they are first asked for.

    A dataset is opened once for all variants that read it: finding duplicates reads every image.
    """

    def __init__(self):
        self._datasets: dict[str, Dataset] = {}
        self._programs: dict[str, _Program] = {}

    def __call__(self, name: str, config: Config) -> _Program:
        if name not in self._programs:
            experiment = build_experiment(config, self._dataset(config.data))
            self._programs[name] = _Program(
                experiment,
                split_predictor(experiment),
                Program(experiment, layout_of(experiment.config)),
            )
        return self._programs[name]

    def _dataset(self, config: DataConfig) -> Dataset:
        name = json.dumps(dataclasses.asdict(config), sort_keys=True)
        if name not in self._datasets:
            self._datasets[name] = open_dataset(config)
        return self._datasets[name]


def _hours(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
