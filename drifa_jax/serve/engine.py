"""The one thread that asks the network: cases that wait are answered together.

Batches have sizes that are compiled before the first case comes, powers of two. Answers go before
explanations, but one explanation follows each batch, so that none waits for ever.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from drifa_jax.compilation import give_back_freed_memory
from drifa_jax.errors import UserError
from drifa_jax.explain.explanation import Explanation, explain_records
from drifa_jax.explain.without import without_each
from drifa_jax.predict.exported_predictor import ExportedPredictor
from drifa_jax.predict.predictor import Predictor
from drifa_jax.predictions.table import Predictions
from drifa_jax.serve.cases import Answered, Case
from drifa_jax.serve.options import Refused

AnyPredictor = Predictor | ExportedPredictor


@dataclass(frozen=True)
class Explained:
    """Why a case was called what it was.

    Attributes:
      tasks: task -> explanation of the class that was called; empty of exported files.
      without: modality -> the answer if it were missing, of one record; empty where there is one
        modality alone, or the network cannot say.
      extrapolates: whether the network never saw records that lack a modality.
    """

    tasks: dict[str, Explanation]
    without: dict[str, Predictions]
    extrapolates: bool


@dataclass
class _Job:
    subject: Any
    future: Future = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Engine:
    """Answers and explains cases in a thread of its own.

    Args:
      predictor: what answers.
      batch: cases that are answered together at most, a power of two.
      on_batch: called with the number of cases of each batch.

    Attributes:
      ready: set when everything is compiled.
      compiled: programs that are, and `to_compile` how many there will be.
      failure: what compiling failed with.
    """

    def __init__(
        self, predictor: AnyPredictor, batch: int, on_batch: Callable[[int], None] = lambda _: None
    ):
        self.predictor, self._batch, self._on_batch = predictor, batch, on_batch
        self._answers: deque[_Job] = deque()
        self._explanations: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self.ready = threading.Event()
        self.failure: BaseException | None = None
        self.compiled, self.to_compile = 0, len(list(self._programs()))
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)

    def start(self, on_compiled: Callable[[int], None] = lambda _: None) -> None:
        """Compiles, then answers; returns at once.

        Args:
          on_compiled: called with 1 after each program.
        """
        self._on_compiled = on_compiled
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Answers what waits and ends; whether it did within the time."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def waiting(self) -> int:
        return len(self._answers)

    @property
    def waiting_explanations(self) -> int:
        return len(self._explanations)

    @property
    def explains(self) -> bool:
        """Whether it can tell why; an exported file holds the answers alone."""
        return isinstance(self.predictor, Predictor)

    def answer(self, case: Case) -> Future:
        """The `Answered` case, later."""
        return self._put(self._answers, _Job(case))

    def explain(self, answered: Answered) -> Future:
        """The `Explained` case, later."""
        return self._put(self._explanations, _Job(answered))

    def _put(self, jobs: deque[_Job], job: _Job) -> Future:
        with self._changed:
            jobs.append(job)
            self._changed.notify()
        return job.future

    def _run(self) -> None:
        try:
            for program in self._programs():
                if self._stopping:
                    break
                program()
                self.compiled += 1
                self._on_compiled(1)
        except BaseException as error:
            self.failure = error
            self._on_compiled(self.to_compile)
            return
        give_back_freed_memory()
        self.ready.set()
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._answers or self._explanations or self._stopping
                )
                if self._stopping and not (self._answers or self._explanations):
                    return
                count = min(self._batch, len(self._answers))
                together = [self._answers.popleft() for _ in range(count)]
                waiting = self._explanations.popleft() if self._explanations else None
            self._answer([job for job in together if job.future.set_running_or_notify_cancel()])
            if waiting is not None and waiting.future.set_running_or_notify_cancel():
                _settle(waiting.future, lambda waiting=waiting: self._explained(waiting.subject))

    def _answer(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        self._on_batch(len(jobs))
        began = time.monotonic()
        cases = [job.subject for job in jobs]
        try:
            found = self._predicted(cases)
        except Exception as error:
            if len(jobs) > 1:  # one case of them, and nobody knows which
                for job in jobs:
                    self._answer([job])
                return
            jobs[0].future.set_exception(_refused(error))
            return
        network = time.monotonic() - began
        for row, job in enumerate(jobs):
            seconds = {"waiting": began - job.since, "network": network}
            answered = Answered(job.subject, found.take([row]), seconds)
            job.future.set_result(answered)

    def _predicted(self, cases: list[Case]) -> Predictions:
        pixels = {m: np.stack([case.pixels[m] for case in cases]) for m in cases[0].pixels}
        present = {m: np.array([case.present[m] for case in cases]) for m in cases[0].present}
        return self.predictor.predict(pixels, present, [case.record_id for case in cases])

    def _explained(self, answered: Answered) -> Explained:
        predictor, case = self.predictor, answered.case
        pixels = {m: x[None] for m, x in case.pixels.items()}
        present = {m: np.array([held]) for m, held in case.present.items()}
        extrapolates = not predictor.description.may_lack_modalities
        if not isinstance(predictor, Predictor):
            return Explained({}, {}, extrapolates)
        tasks = {}
        for task, found in answered.predictions.tasks.items():
            (tasks[task],) = explain_records(
                predictor,
                [case.record_id],
                pixels,
                present,
                task,
                uncertainty=found.uncertainty,
                classes=found.probabilities.argmax(-1),
            )
        without = without_each(predictor, case.record_id, pixels, present)
        return Explained(tasks, dict(without), extrapolates)

    def _programs(self) -> Iterator[Callable[[], Any]]:
        """Each compiles something by asking for it once."""
        specs = self.predictor.description.modalities
        empty = Case(
            "compiling",
            {spec.name: np.zeros(spec.shape, spec.dtype) for spec in specs},
            {spec.name: True for spec in specs},
            {},
            {},
            {},
        )
        size = 1
        while size <= self._batch:
            yield lambda size=size: self._predicted([empty] * size)
            size *= 2
        if self.explains:
            yield lambda: self._explained(Answered(empty, self._predicted([empty]), {}))


def _settle(future: Future, work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except Exception as error:
        future.set_exception(_refused(error))


def _refused(error: Exception) -> Exception:
    return Refused(422, str(error), "no_answer") if isinstance(error, UserError) else error
