"""Training batches on the devices, ahead of the step that needs them."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from drifa_jax.data.pipeline import training_batches
from drifa_jax.errors import UserError
from drifa_jax.sharding import Layout
from drifa_jax.train.experiment import Experiment

AHEAD = 2
"""Batches on the devices that no step has used yet."""

LOOK_SECONDS = 0.005
"""How often a wait for data looks whether the devices are still at work."""

WAITING_WORTH_A_WARNING = 0.2
"""Share of an epoch spent waiting for data above which the user is told."""


class Feed:
    """An endless row of `(batch on the host, batch on the devices)`, filled by a thread.

    The batch on the host is this process's part, for messages about records.

    Args:
      experiment: whose training records are read.
      layout: which part this process reads, and where it goes.
      start_step: batches to skip.

    Attributes:
      waited: seconds in which the devices had nothing to do for want of data; to be reset.
    """

    def __init__(self, experiment: Experiment, layout: Layout, start_step: int):
        self._layout = layout
        self._streams = member_streams(experiment, layout, start_step)
        self._ready: queue.Queue = queue.Queue(maxsize=AHEAD)
        self._closing = threading.Event()
        self.waited = 0.0
        self._seen: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
        self._thread = threading.Thread(target=self._fill, daemon=True)
        self._thread.start()

    def peek(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The batch that `next` will return."""
        if not self._seen:
            self._seen.append(self.next(lambda: False))
        return self._seen[0]

    def next(self, is_idle: Callable[[], bool]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The next batch; waiting counts only while `is_idle()` says that no step is running."""
        if self._seen:
            return self._seen.pop()
        while True:
            started, idle = time.monotonic(), is_idle()
            try:
                item = self._ready.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                item = None
            if idle:
                self.waited += time.monotonic() - started
            if isinstance(item, BaseException):
                raise item
            if item is not None:
                return item

    def _fill(self) -> None:
        try:
            while not self._closing.is_set():
                self._put(self._read())
        except BaseException as error:
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._closing.is_set():
            try:
                return self._ready.put(item, timeout=0.1)
            except queue.Full:
                pass

    def _read(self) -> tuple[dict, dict]:
        batches = [next(stream) for stream in self._streams]
        batch = batches[0]
        if self._layout.is_ensemble:
            batch = jax.tree.map(lambda *of_members: np.stack(of_members), *batches)
        placed = self._layout.place_batch({k: v for k, v in batch.items() if k != "index"})
        return batch, placed

    def close(self) -> None:
        """Ends the thread and the worker processes."""
        self._closing.set()
        self._thread.join()
        for stream in self._streams:
            stream.close()


def member_streams(experiment: Experiment, layout: Layout, start_step: int) -> list[Iterator]:
    """For each member that this process's devices train, its part of the batches.

    Member i draws what a run with `train.seed + i` draws.
    """
    config, part = experiment.config, layout.host_part
    return [
        training_batches(
            experiment.dataset.train,
            batch_size=config.train.batch_size,
            seed=config.train.seed + member,
            start_step=start_step,
            transform=experiment.dataset.transform,
            num_workers=config.data.num_workers,
            process_index=part.index,
            process_count=part.count,
            balanced=config.train.balance_sampling_of or None,
        )
        for member in part.members
    ]


def check_records(num_records: int, *, num_devices: int, num_processes: int) -> None:
    """Refuses to train where some device would have no record in any batch.

    Raises:
      UserError: naming both numbers.
    """
    if num_records < num_devices:
        raise UserError(
            f"The {num_devices} devices on the data axis of {num_processes} processes share every "
            f"batch, but there are only {num_records} training records; use fewer processes or "
            "devices, or spread members of an ensemble over them (mesh.ensemble)."
        )


def waiting_warning(waited: float, seconds: float, num_workers: int) -> str | None:
    """What to tell the user whose devices waited for data, or None.

    Args:
      waited: seconds of waiting.
      seconds: that the epoch's steps took.
      num_workers: of the configuration.
    """
    share = waited / max(seconds, 1e-9)
    if share <= WAITING_WORTH_A_WARNING:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    more = min(max(2 * num_workers, 2), max((cores or 1) - 1, 1))
    cure = (
        f"raise --config.data.num_workers (now {num_workers}; this machine has {cores} cores, "
        f"try {more})"
        if more > num_workers
        else f"this machine's {cores} cores are busy with --config.data.num_workers={num_workers}"
    )
    return (
        f"the device waited for data {share:.0%} of this epoch: {cure}, or prepare the images at "
        "their final size (drifa data prepare)"
    )
