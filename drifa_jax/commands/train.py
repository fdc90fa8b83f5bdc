"""`drifa train`: trains a network from a config file, tests it, and writes its results."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from drifa_jax.buckets import url_of
from drifa_jax.config import Config
from drifa_jax.config_files import load_config
from drifa_jax.console import RESEARCH_NOTE, say
from drifa_jax.errors import UserError
from drifa_jax.train import signals

TAKES_OVERRIDES = True

SYNTHETIC_BANNER = """\
================================================================================
  SYNTHETIC DATA: drawn by a program. The figures below say nothing about patients.
================================================================================"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument(
        "--config", required=True, help="FILE.py or FILE.py:VARIANT, e.g. configs/brain.py:quick"
    )
    parser.add_argument(
        "--workdir",
        type=Path,
        help="directory of the run (default: runs/NAME), of one process also gs://... or s3://...",
    )
    parser.epilog = (
        "Any field of the configuration can be changed: --config.train.batch_size=16. "
        "The same command again goes on where an interrupted run stopped."
    )


def run(options: argparse.Namespace) -> int:
    """Trains, tests and reports; 128 + the signal's number when interrupted."""
    with signals.end_at_once():
        config = load_config(options.config, options.overrides)
        workdir = options.workdir or Path("runs") / run_name(options.config)
        if (url := url_of(workdir)) is None:
            return train_and_test(config, workdir)
        from drifa_jax.processes import joined
        from drifa_jax.train.bucket_run import kept_in_bucket

        with joined(config, Path()), kept_in_bucket(url) as folder:
            return train_and_test(config, folder)


def train_and_test(config: Config, workdir: Path) -> int:
    """Trains in `workdir`, or goes on there, then tests the best state; returns the exit code."""
    # Imported late, so that a wrong flag is answered before JAX loads.
    import absl.logging
    import jax

    from drifa_jax import processes
    from drifa_jax.compilation import run_programs_in_the_calling_thread, use_compilation_cache
    from drifa_jax.data.dataset import open_dataset
    from drifa_jax.evaluate import testing
    from drifa_jax.models.description import save_description as save_network_description
    from drifa_jax.predict.restored import describe, save_description
    from drifa_jax.report.learning import learning_curves
    from drifa_jax.sharding import DATA_AXIS, layout_of
    from drifa_jax.train import run_directory
    from drifa_jax.train.experiment import build_experiment
    from drifa_jax.train.feed import check_records
    from drifa_jax.train.loggers import keep_files
    from drifa_jax.train.loop import Interrupted, train
    from drifa_jax.train.metrics_log import read_metrics
    from drifa_jax.train.prediction import split_predictor
    from drifa_jax.train.pretrained import with_checkpoint_pixels

    # Orbax warns of every checkpoint that was saved within an epoch, which is no news.
    absl.logging.set_verbosity(absl.logging.ERROR)
    use_compilation_cache()
    run_programs_in_the_calling_thread()
    splits = workdir / run_directory.SPLITS_FOLDER
    read_splits, own = config.data.split_folder, False
    if read_splits and Path(read_splits).resolve() == splits.resolve():
        # The run's own splits are no other configuration.
        own = True
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, split_folder=""))
    config, notes = with_checkpoint_pixels(config, run_directory.resumed_config(workdir))
    with processes.joined(config, workdir), run_directory.opened(workdir, config):
        for note in notes:
            _say(note)
        layout = layout_of(config)
        _say(f"{RESEARCH_NOTE} Run directory: {workdir}")
        dataset = open_dataset(config.data, saved=splits)
        dataset.refuse_labels()
        if not own:
            dataset.refuse_changes(splits)
        check_records(
            len(dataset.train),
            num_devices=layout.mesh.shape[DATA_AXIS],
            num_processes=jax.process_count(),
        )
        experiment = build_experiment(config, dataset)
        predict = split_predictor(experiment)
        for split, source in dataset.splits.items():
            _say(f"{split}: {len(source)} records, {source.description}")
        for line in dataset.notes:
            _say(f"NOTE: {line}")
        description = describe(config.data, dataset)
        with run_directory.begun(workdir, config):
            if processes.is_first():
                dataset.save_splits(splits)
                save_description(workdir, description)
                save_network_description(workdir, experiment.description)
            if dataset.synthetic:
                _say(SYNTHETIC_BANNER)
            try:
                trained = description.to_json() | {"network": experiment.description.to_json()}
                state = train(experiment, predict, workdir, description=trained)
            except Interrupted as interruption:
                _say(f"{interruption}: state saved. The same command again goes on from here.")
                return 128 + interruption.number
            if processes.is_first():
                learning_curves(
                    read_metrics(workdir),
                    workdir / "learning_curves.png",
                    synthetic=dataset.synthetic,
                )
            results = testing.test(experiment, predict, state, workdir)
            for line in testing.summary(results):
                _say(line)
            _fit_post_processing(config, dataset, workdir)
            if processes.is_first():
                keep_files(workdir, config.tracking, "run", _kept(config, workdir), say)
            if dataset.synthetic:
                _say(SYNTHETIC_BANNER)
            _say(f"Results: {workdir / run_directory.RESULTS_FILE}")
    return 0


def _fit_post_processing(config: Config, dataset, workdir: Path) -> None:
    """Calibration, sets, thresholds and distances, so that prediction need not fit them."""
    import jax

    from drifa_jax.predict.predictor import prepare

    # Spread over processes no single one holds the network; the first prediction fits them then.
    if not config.uncertainty.fit_decisions or jax.process_count() > 1:
        return
    try:
        prepare(workdir, dataset.validation)
    except UserError as error:
        _say(f"Nothing was calibrated: {error}")


def _kept(config: Config, workdir: Path) -> list[Path]:
    """What a finished run hands on to its loggers."""
    names = ("config.json", "environment.json", "network.json", "metrics.json", "predictions.csv")
    figures = sorted(workdir.glob("*.png"))
    checkpoints = [workdir / "checkpoints"] * config.tracking.keep_checkpoints
    return [*(workdir / name for name in names), *figures, *checkpoints]


def _say(text: str) -> None:
    from drifa_jax.processes import is_first

    if is_first():
        say(text)


def run_name(config: str) -> str:
    """`configs/brain.py:quick` -> `brain-quick`."""
    file, _, variant = config.partition(":")
    return Path(file).stem + (f"-{variant}" if variant else "")
