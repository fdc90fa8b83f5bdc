"""What a person sees while a run goes on: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from drifa_jax.console import printable
from drifa_jax.processes import is_first

PLAIN_LINE_SECONDS = 30.0


class TrainingDisplay:
    """Epoch, step, records/s, time left and losses.

    Args:
      num_steps: steps of the whole run.
      step: steps done already.
      steps_per_epoch: to number epochs.
      records_per_step: to show records/s.
    """

    def __init__(self, num_steps: int, step: int, steps_per_epoch: int, records_per_step: int):
        self._num_steps, self._steps_per_epoch = num_steps, steps_per_epoch
        self._records_per_step = records_per_step
        self._first_step, self._started = step, time.monotonic()
        self._last_line = self._started
        # One voice speaks for all processes.
        self._console = Console(
            file=sys.stderr, highlight=False, emoji=False, soft_wrap=True, quiet=not is_first()
        )
        self._bar = None
        if self._console.is_terminal and is_first():
            self._bar = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                TextColumn("step {task.completed}/{task.total}"),
                TextColumn("{task.fields[rate]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[losses]}", markup=False),
                console=self._console,
            )
            self._task = self._bar.add_task(
                "", total=num_steps, completed=step, epoch="-", rate="", losses=""
            )

    def __enter__(self) -> TrainingDisplay:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(printable(text), markup=False)

    def first_step_done(self, seconds: float) -> None:
        """Restarts the clock after compilation, which would spoil the rate and the ETA."""
        self._first_step += 1
        self._started = time.monotonic()
        self.say(f"first step (compilation included): {seconds:.1f} s")

    def step_done(self, step: int, losses: Mapping[str, float]) -> None:
        """Shows the state after `step` steps."""
        now = time.monotonic()
        elapsed = max(now - self._started, 1e-9)
        per_second = max(step - self._first_step, 0) / elapsed
        rate = f"{per_second * self._records_per_step:.1f} records/s"
        shown = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
        num_epochs = -(-self._num_steps // self._steps_per_epoch)
        epoch = f"{(step - 1) // self._steps_per_epoch + 1}/{num_epochs}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, epoch=epoch, rate=rate, losses=shown)
        elif now - self._last_line >= PLAIN_LINE_SECONDS:
            self._last_line = now
            left = (self._num_steps - step) / per_second if per_second else float("nan")
            self.say(
                f"epoch {epoch} step {step}/{self._num_steps} {rate} ETA {_duration(left)} {shown}"
            )


def _duration(seconds: float) -> str:
    if seconds != seconds:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
