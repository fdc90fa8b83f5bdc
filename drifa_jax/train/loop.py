"""The training loop: everything around the pure step that touches the host.

The state after a step is a function of the configuration, the seed and the data alone. The loop
feeds batches, fetches the sums of each step one step late (so that the device never waits for
the host), validates and saves at the end of each epoch, and saves and leaves when asked to.
Ensembles, several processes and many devices take the same way as one network on one device.
"""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drifa_jax.compilation import without_garbage_collection
from drifa_jax.errors import UserError
from drifa_jax.processes import all_say, is_first
from drifa_jax.rng import stream
from drifa_jax.sharding import Layout, layout_of, put
from drifa_jax.train import progress, signals, step_times
from drifa_jax.train.batch_statistics import StatisticsEstimate
from drifa_jax.train.checkpoint import Checkpoints
from drifa_jax.train.console import TrainingDisplay
from drifa_jax.train.experiment import Experiment
from drifa_jax.train.feed import Feed, waiting_warning
from drifa_jax.train.metrics_log import open_log
from drifa_jax.train.prediction import SplitPredictor
from drifa_jax.train.program import Program, put_keys
from drifa_jax.train.progress import MemberProgress
from drifa_jax.train.starting_weights import starting_weights, with_priors
from drifa_jax.train.state import Model, TrainState, initial_state, steps_done

COMPILING = "compiling the training step: on a CPU half a minute, or seconds if it was done before"


class Interrupted(Exception):
    """SIGINT, SIGTERM or SIGHUP came; the state was saved. Holds the signal's number."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def train(
    experiment: Experiment,
    predict: SplitPredictor,
    workdir: Path,
    program: Program | None = None,
    description: Mapping[str, Any] | None = None,
) -> Model:
    """Trains to the end, from the newest checkpoint in `workdir` if there is one.

    Args:
      experiment: what is trained, on what.
      predict: validates at the end of each epoch.
      workdir: of the run, claimed by the caller.
      program: of an experiment that differs in its seed at most, so that several runs share one
        compilation; None compiles anew.
      description: of network and data, plain JSON values that every checkpoint keeps.

    Returns:
      The model with the lowest validation loss; of an ensemble, each member's own.

    Raises:
      Interrupted: after a signal, when the state is saved.
      UserError: when the loss is not finite, naming step and records.
    """
    config = experiment.config.train
    layout = layout_of(experiment.config)
    program = program or Program(experiment, layout)
    program.use_seed(config.seed)
    saved = Checkpoints(workdir / "checkpoints", description=description)
    with saved as checkpoints, signals.collected() as arrived:
        restored = checkpoints.newest(program.template)
        if restored is None:
            state, first_step = None, 0
            members = [MemberProgress.at_start(config) for _ in range(layout.num_members)]
        else:
            state, members = restored[0], progress.from_json(restored[1])
            first_step = steps_done(state)
        records_per_step = config.batch_size * layout.num_members
        with (
            TrainingDisplay(
                experiment.num_steps, first_step, experiment.steps_per_epoch, records_per_step
            ) as display,
            open_log(workdir, first_step, experiment.config, display.say) as log,
        ):
            if first_step:
                display.say(f"resuming after step {first_step} of {experiment.num_steps}")
            runner = _Runner(experiment, program, predict, log, display, checkpoints, workdir)
            try:
                if not runner.is_over(first_step, members):
                    with closing(Feed(experiment, layout, first_step)) as feed:
                        started = time.monotonic()
                        if state is None and config.initial_weights:
                            # Weights that do not fit are refused before minutes of compiling.
                            state = _drawn_state(experiment, layout, program)
                        if not program.is_compiling:
                            display.say(COMPILING)
                        program.start_compiling(feed.peek()[1])
                        if state is None:
                            state = _drawn_state(experiment, layout, program)
                        runner.run(state, first_step, members, feed, arrived, started)
            finally:
                program.give_back_memory()
                runner.report(records_per_step)
            checkpoints.wait()
        # A signal too late for any step: what remains may take longer than the scheduler allows.
        if not all_say(not arrived):
            raise Interrupted(arrived[0] if arrived else signal.SIGTERM)
        return checkpoints.best(program.template)


def _drawn_state(experiment: Experiment, layout: Layout, program: Program) -> TrainState:
    """The state before the first step, on the devices."""
    keys = stream(put_keys(experiment.config.train.seed, layout), "init")
    with without_garbage_collection():
        params, statistics = starting_weights(experiment, keys)
        statistics = with_priors(experiment, statistics)
        state = initial_state(
            params,
            statistics,
            experiment.optimizer,
            layout.num_members,
            experiment.groups,
            experiment.evaluation,
        )
    return jax.tree.map(lambda leaf, like: put(leaf, like.sharding), state, program.template)


class _Runner:
    """One attempt at a run; lives for one call of `train`."""

    def __init__(self, experiment, program, predict, log, display, checkpoints, workdir):
        self.experiment, self.config = experiment, experiment.config.train
        self.program, self.predict = program, predict
        self.log, self.display, self.checkpoints = log, display, checkpoints
        self.workdir = workdir
        self.estimate = (
            StatisticsEstimate(experiment, layout_of(experiment.config), program.template)
            if experiment.evaluation.statistics_batches
            else None
        )
        self.times = step_times.StepTimes()
        self.tracer = step_times.Tracer(
            experiment.config.profile.steps if is_first() else "", workdir
        )

    def is_over(self, done: int, members: list[MemberProgress]) -> bool:
        return done >= self.experiment.num_steps or all(m.stopped for m in members)

    def run(
        self,
        state: TrainState,
        done: int,
        members: list[MemberProgress],
        feed: Feed,
        arrived: list[int],
        compiling_since: float,
    ) -> None:
        first_step = done
        epoch_waited = epoch_seconds = 0.0
        pending = None
        while not self.is_over(done, members):
            started, feed.waited = time.monotonic(), 0.0
            self.tracer.before(done + 1 - first_step)
            running = None if pending is None else pending[2]["total"]
            batch, placed = feed.next(lambda running=running: running is None or running.is_ready())
            with jax.profiler.StepTraceAnnotation("train", step_num=done + 1):
                state, sums = self.program(state, placed, arrived[0] if arrived else 0)
            done += 1
            asked = 0 if pending is None else self._account(*pending, members)
            pending = (done, batch, sums)
            if done == first_step + 1:
                jax.block_until_ready(sums)
                self.times.add("first step", time.monotonic() - compiling_since)
                self.display.first_step_done(time.monotonic() - compiling_since)
                asked = self._account(*pending, members)
                pending = None
                self.program.analyse()
            ends_epoch = done % self.experiment.steps_per_epoch == 0
            interval = self.config.checkpoint_every_steps
            saves = ends_epoch or bool(asked) or (interval > 0 and done % interval == 0)
            if saves and pending is not None:
                asked = max(asked, self._account(*pending, members))
                pending = None
            if (folder := self.tracer.after(done - first_step, sums)) is not None:
                self.display.say(f"trace: {folder} (TensorBoard, or Perfetto for *trace.json.gz)")
            if done > first_step + 1:
                self.times.add("step", time.monotonic() - started)
                self.times.add("input wait", feed.waited)
                epoch_seconds += time.monotonic() - started
                epoch_waited += feed.waited
            if ends_epoch:
                state = self._end_epoch(state, members, done)
                self._warn_of_waiting(epoch_waited, epoch_seconds)
                epoch_waited = epoch_seconds = 0.0
            elif saves:
                self._save(state, members)
            if asked:
                self.checkpoints.wait()
                raise Interrupted(asked)

    def report(self, records_per_step: int) -> None:
        """Says and writes where the time went, if there was any."""
        self.tracer.close()
        if not self.times.count("first step") or not is_first():
            return
        dtype = self.experiment.config.model.compute_dtype
        precision = str(jax.config.jax_default_matmul_precision)
        if dtype == "float32" and precision in ("tensorfloat32", "high"):
            dtype = "tensorfloat32"
        performance = step_times.performance(
            self.times,
            flops=self.program.flops,
            records_per_step=records_per_step,
            dtype=dtype,
            planned=self.program.device_bytes,
        )
        step_times.save(performance, self.workdir)
        self.display.say(step_times.summary(performance))

    def _account(
        self, step: int, batch: Mapping, sums: Mapping, members: list[MemberProgress]
    ) -> int:
        """Logs one finished step, adds it to its epoch; the number of a signal that came, or 0."""
        sums = jax.device_get(sums)
        asked = int(sums.pop("asked"))
        if not (np.isfinite(sums["total"]).all() and np.isfinite(sums["gradient_norm"]).all()):
            raise UserError(_not_finite(step, batch, self.experiment.dataset.train, sums))
        scalars = []
        for number, member in enumerate(members):
            own = progress.of_member(sums, number)
            member.add(own, self.experiment.losses)
            scalars.append({name: float(own[name]) for name in ("total", "gradient_norm")})
            for task in self.experiment.losses:
                if count := float(own[task]["count"]):
                    scalars[-1][f"{task}/loss"] = float(own[task]["loss"]) / count
        epoch = (step - 1) // self.experiment.steps_per_epoch + 1
        shown = progress.averaged(scalars)
        self.log.write("train_step", step, epoch, shown)
        hidden = ("gradient_norm", "members")
        self.display.step_done(step, {k: v for k, v in shown.items() if k not in hidden})
        return asked

    def _end_epoch(self, state: TrainState, members: list[MemberProgress], step: int) -> TrainState:
        """Validates, adjusts the learning rates, saves, and reports."""
        epoch = step // self.experiment.steps_per_epoch
        self.program.give_back_memory()
        # The first one of an attempt compiles.
        again = self.times.count("first validation")
        with self.times.spent_on("validation" if again else "first validation"):
            if self.estimate is not None:
                state = self.estimate(state)
            validation = self.predict.split(
                *state.weights(),
                self.experiment.dataset.validation,
                self.experiment.config.eval.batch_size,
            ).losses(self.experiment.losses)
        if not all(np.isfinite(losses["total"]) for losses in validation):
            raise UserError(f"The validation loss is not finite after epoch {epoch} (step {step}).")
        trained = progress.averaged([m.means(self.experiment.losses) for m in members])
        validated = progress.averaged(validation)
        self.log.write("train", step, epoch, trained)
        self.log.write("validation", step, epoch, validated)
        patience = self.config.early_stopping_patience
        contest = [
            member.after_epoch(losses["total"], patience)
            for member, losses in zip(members, validation, strict=True)
        ]
        scales = np.array([m.plateau.scale for m in members], np.float32)
        like = state.learning_rate_scale
        state = dataclasses.replace(
            state, learning_rate_scale=put(scales.reshape(like.shape), like.sharding)
        )
        self._save(state, members, contest)
        self.display.say(_epoch_line(epoch, self.config.num_epochs, trained, validated, members))
        if all(m.stopped for m in members):
            self.display.say(f"early stopping: no better validation loss in {patience} epochs")
        return state

    def _save(
        self,
        state: TrainState,
        members: list[MemberProgress],
        validation_losses: list[float] | None = None,
    ) -> None:
        with self.times.spent_on("checkpoint"):
            # The log is never behind a checkpoint, so that a resumed run has every line.
            self.log.sync()
            self.checkpoints.save(state, progress.to_json(members), validation_losses)

    def _warn_of_waiting(self, waited: float, seconds: float) -> None:
        warning = waiting_warning(waited, seconds, self.experiment.config.data.num_workers)
        if warning is not None:
            self.display.say(warning)


def _epoch_line(epoch, num_epochs, trained, validation, members) -> str:
    tasks = [name.removesuffix("/loss") for name in trained if name.endswith("/loss")]
    parts = [
        f"{task}: loss {trained[f'{task}/loss']:.4f} validation {validation[f'{task}/loss']:.4f} "
        f"accuracy {validation[f'{task}/accuracy']:.3f}"
        for task in tasks
    ]
    better = sum(m.plateau.since_best == 0 and not m.stopped for m in members)
    best = " *" * (better > 0)
    if better and len(members) > 1:
        best += f" ({better} of {len(members)} members)"
    return f"epoch {epoch}/{num_epochs}  " + "  ".join(parts) + best


def _not_finite(step: int, batch: Mapping, source: Any, sums: Mapping) -> str:
    indices = np.asarray(batch["index"])
    ids = [source.record_id(int(i)) for i in indices.reshape(-1)]
    culprits = [
        f"{record_id} ({modality})"
        for modality, pixels in batch["images"].items()
        for record_id, image in zip(
            ids, np.asarray(pixels).reshape(-1, *pixels.shape[indices.ndim :]), strict=True
        )
        if not np.isfinite(image).all()
    ]
    cause = (
        f"Images with values that are not finite: {', '.join(culprits)}."
        if culprits
        else f"The records of this batch: {', '.join(ids)}."
    )
    return (
        f"Step {step}: the loss is {_listed(sums['total'])} and the gradient norm "
        f"{_listed(sums['gradient_norm'])}. {cause} The last checkpoint is from before this step; "
        "a lower train.learning_rate or train.clip_norm=1 often helps."
    )


def _listed(values: Any) -> str:
    """One number, or those of all members."""
    return ", ".join(str(float(value)) for value in np.asarray(values).reshape(-1))
