"""The training loop: everything around the pure step that touches the host.

The state after a step is a function of the configuration, the seed and the data alone. The loop
feeds batches, fetches the sums of each step one step late (so that the device never waits for
the host), validates and saves at the end of each epoch, and saves and leaves when asked to.
"""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drifa_jax.compilation import compiler_options
from drifa_jax.config import TrainConfig
from drifa_jax.data.pipeline import evaluation_batches, training_batches
from drifa_jax.errors import UserError
from drifa_jax.rng import root_key, stream
from drifa_jax.sharding import data_mesh, place_batch, replicated
from drifa_jax.train.checkpoint import Checkpoints
from drifa_jax.train.console import TrainingDisplay
from drifa_jax.train.experiment import Experiment
from drifa_jax.train.metrics_log import MetricsLog
from drifa_jax.train.optimizer import Plateau
from drifa_jax.train.prediction import SplitPredictor
from drifa_jax.train.starting_weights import starting_weights
from drifa_jax.train.state import TrainState, abstract_state, initial_state
from drifa_jax.train.step import make_train_step

WAITING_WORTH_A_WARNING = 0.2
"""Share of an epoch spent waiting for data above which the user is told."""

TrainStep = Callable[[TrainState, Mapping[str, Any], jax.Array], tuple[TrainState, dict[str, Any]]]


class Interrupted(Exception):
    """SIGINT or SIGTERM came; the state was saved. Holds the signal's number."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def compiled_step(experiment: Experiment) -> TrainStep:
    """The jitted step of an experiment; runs that differ in their seed alone can share it."""
    step = make_train_step(
        experiment.network,
        experiment.optimizer,
        experiment.losses,
        mix=experiment.mix,
        masks_absent=experiment.dataset.may_lack_modalities,
    )
    return jax.jit(step, donate_argnums=0, compiler_options=compiler_options())


def train(
    experiment: Experiment,
    predict: SplitPredictor,
    workdir: Path,
    train_step: TrainStep | None = None,
) -> TrainState:
    """Trains to the end, from the newest checkpoint in `workdir` if there is one.

    Args:
      experiment: what is trained, on what.
      predict: validates at the end of each epoch.
      workdir: of the run, claimed by the caller.
      train_step: from `compiled_step`, where several runs share one; None compiles anew.

    Returns:
      The state with the lowest validation loss.

    Raises:
      Interrupted: after a signal, when the state is saved.
      UserError: when the loss is not finite, naming step and records.
    """
    config = experiment.config.train
    mesh = data_mesh()
    _check_divisible(experiment)
    key = root_key(config.seed)
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)),
        abstract_state(experiment.network, experiment.optimizer),
    )
    train_step = train_step or compiled_step(experiment)
    with Checkpoints(workdir / "checkpoints") as checkpoints, _signals() as arrived:
        restored = checkpoints.newest(template)
        if restored is None:
            weights = starting_weights(experiment, stream(key, "init"))
            state = initial_state(*weights, experiment.optimizer)
            state = jax.device_put(state, replicated(mesh))
            host = HostProgress.at_start(config)
        else:
            state, host = restored[0], HostProgress.from_json(restored[1])
        first_step = int(state.step)
        with (
            MetricsLog(workdir, first_step) as log,
            TrainingDisplay(
                experiment.num_steps, first_step, experiment.steps_per_epoch, config.batch_size
            ) as display,
        ):
            if first_step:
                display.say(f"resuming after step {first_step} of {experiment.num_steps}")
            runner = _Runner(experiment, train_step, predict, mesh, key, log, display, checkpoints)
            runner.run(state, host, arrived)
            checkpoints.wait()
        return checkpoints.best(template)[0]


@dataclasses.dataclass
class HostProgress:
    """What the loop remembers between steps, besides the state; saved with it.

    Attributes:
      plateau: the rule that watches the validation loss.
      sums: of the running epoch, by metric.
      stopped: whether early stopping ended the run.
    """

    plateau: Plateau
    sums: dict[str, float]
    stopped: bool = False

    @classmethod
    def at_start(cls, config: TrainConfig) -> HostProgress:
        follows_plateau = config.schedule == "plateau"
        return cls(
            Plateau(
                factor=config.plateau.factor if follows_plateau else 1.0,
                patience=config.plateau.patience,
                min_scale=config.plateau.min_scale,
            ),
            {},
        )

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> HostProgress:
        return cls(Plateau(**values["plateau"]), dict(values["sums"]), values["stopped"])


class _Runner:
    """One attempt at a run; lives for one call of `train`."""

    def __init__(self, experiment, train_step, predict, mesh, key, log, display, checkpoints):
        self.experiment, self.config = experiment, experiment.config.train
        self.train_step, self.predict = train_step, predict
        self.mesh, self.key = mesh, key
        self.log, self.display, self.checkpoints = log, display, checkpoints
        self.waited = 0.0

    def run(self, state: TrainState, host: HostProgress, arrived: list[int]) -> None:
        done = int(state.step)
        if host.stopped or done >= self.experiment.num_steps:
            return
        batches = training_batches(
            self.experiment.dataset.train,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            start_step=done,
            transform=self.experiment.dataset.transform,
            num_workers=self.experiment.config.data.num_workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            balanced=self.config.balance_sampling_of or None,
        )
        epoch_started, first = time.monotonic(), True
        pending = None
        for batch in self._timed(batches):
            started = time.monotonic()
            placed = place_batch({k: v for k, v in batch.items() if k != "index"}, self.mesh)
            state, sums = self.train_step(state, placed, self.key)
            done += 1
            if first:
                jax.block_until_ready(sums)
                self.display.first_step_done(time.monotonic() - started)
                first = False
            if pending is not None:
                self._account(*pending, host)
            pending = (done, batch, sums)
            ends_epoch = done % self.experiment.steps_per_epoch == 0
            interval = self.config.checkpoint_every_steps
            saves = ends_epoch or bool(arrived) or (interval > 0 and done % interval == 0)
            if saves:
                self._account(*pending, host)
                pending = None
            if ends_epoch:
                state = self._end_epoch(state, host, done, time.monotonic() - epoch_started)
                epoch_started, self.waited = time.monotonic(), 0.0
            elif saves:
                self.checkpoints.save(state, host.to_json())
            if arrived:
                self.checkpoints.wait()
                raise Interrupted(arrived[0])
            if host.stopped or done >= self.experiment.num_steps:
                return

    def _timed(self, batches: Iterator) -> Iterator:
        while True:
            started = time.monotonic()
            batch = next(batches)
            self.waited += time.monotonic() - started
            yield batch

    def _account(self, step: int, batch: Mapping, sums: Mapping, host: HostProgress) -> None:
        """Logs one finished step and adds it to its epoch."""
        sums = jax.device_get(sums)
        if not (np.isfinite(sums["total"]) and np.isfinite(sums["gradient_norm"])):
            raise UserError(_not_finite(step, batch, self.experiment.dataset.train, sums))
        scalars = {"total": float(sums["total"]), "gradient_norm": float(sums["gradient_norm"])}
        for task in self.experiment.losses:
            count = float(sums[task]["count"])
            for name in ("loss", "correct"):
                value = float(sums[task][name])
                if count and name == "loss":
                    scalars[f"{task}/loss"] = value / count
                host.sums[f"{task}/{name}"] = host.sums.get(f"{task}/{name}", 0.0) + value
            host.sums[f"{task}/count"] = host.sums.get(f"{task}/count", 0.0) + count
        epoch = (step - 1) // self.experiment.steps_per_epoch + 1
        self.log.write("train_step", step, epoch, scalars)
        self.display.step_done(step, {k: v for k, v in scalars.items() if k != "gradient_norm"})

    def _end_epoch(
        self, state: TrainState, host: HostProgress, step: int, seconds: float
    ) -> TrainState:
        """Validates, adjusts the learning rate, saves, and reports."""
        epoch = step // self.experiment.steps_per_epoch
        validation = self.predict(
            state.params,
            state.statistics,
            evaluation_batches(
                self.experiment.dataset.validation,
                batch_size=self.experiment.config.eval.batch_size,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            ),
        ).losses(self.experiment.losses)
        if not np.isfinite(validation["total"]):
            raise UserError(f"The validation loss is not finite after epoch {epoch} (step {step}).")
        trained = {}
        for task in self.experiment.losses:
            count = max(host.sums[f"{task}/count"], 1.0)
            trained[f"{task}/loss"] = host.sums[f"{task}/loss"] / count
            trained[f"{task}/accuracy"] = host.sums[f"{task}/correct"] / count
        host.sums = {}
        self.log.write("train", step, epoch, trained)
        self.log.write("validation", step, epoch, validation)
        host.plateau = host.plateau.after_epoch(validation["total"])
        patience = self.config.early_stopping_patience
        host.stopped = bool(patience) and host.plateau.since_best >= patience
        state = dataclasses.replace(
            state,
            learning_rate_scale=jax.device_put(
                np.float32(host.plateau.scale), state.learning_rate_scale.sharding
            ),
        )
        self.checkpoints.save(state, host.to_json(), validation["total"])
        self.display.say(_epoch_line(epoch, self.config.num_epochs, trained, validation, host))
        waiting = self.waited / max(seconds, 1e-9)
        if waiting > WAITING_WORTH_A_WARNING:
            self.display.say(
                f"the device waited for data {waiting:.0%} of this epoch; raise "
                "--config.data.num_workers, or prepare the images at their final size"
            )
        if host.stopped:
            self.display.say(f"early stopping: no better validation loss in {patience} epochs")
        return state


def _check_divisible(experiment: Experiment) -> None:
    num_devices = jax.device_count()
    config = experiment.config
    for name, size in (
        ("train.batch_size", config.train.batch_size),
        ("eval.batch_size", config.eval.batch_size),
    ):
        if size % num_devices:
            raise UserError(
                f"config: {name} is {size}, which {num_devices} devices cannot share evenly; "
                f"use a multiple of {num_devices}."
            )


def _epoch_line(epoch, num_epochs, trained, validation, host) -> str:
    tasks = [name.removesuffix("/loss") for name in trained if name.endswith("/loss")]
    parts = [
        f"{task}: loss {trained[f'{task}/loss']:.4f} validation {validation[f'{task}/loss']:.4f} "
        f"accuracy {validation[f'{task}/accuracy']:.3f}"
        for task in tasks
    ]
    best = " *" if host.plateau.since_best == 0 else ""
    return f"epoch {epoch}/{num_epochs}  " + "  ".join(parts) + best


def _not_finite(step: int, batch: Mapping, source: Any, sums: Mapping) -> str:
    ids = [source.record_id(int(i)) for i in np.asarray(batch["index"])]
    culprits = [
        f"{record_id} ({modality})"
        for modality, pixels in batch["images"].items()
        for record_id, image in zip(ids, np.asarray(pixels), strict=True)
        if not np.isfinite(image).all()
    ]
    cause = (
        f"Images with values that are not finite: {', '.join(culprits)}."
        if culprits
        else f"The records of this batch: {', '.join(ids)}."
    )
    return (
        f"Step {step}: the loss is {float(sums['total'])} and the gradient norm "
        f"{float(sums['gradient_norm'])}. {cause} The last checkpoint is from before this step; "
        "a lower train.learning_rate or train.clip_norm=1 often helps."
    )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; a second one kills as usual."""
    arrived: list[int] = []
    previous = {}

    def note(number: int, _frame: Any) -> None:
        arrived.append(number)
        signal.signal(number, previous[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, note)
    try:
        yield arrived
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
