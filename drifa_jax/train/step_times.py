"""Where the time of a run goes, how well it uses its devices, and a trace on request."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from drifa_jax.chips import PEAK_FLOPS
from drifa_jax.train.run_directory import write_whole

PERFORMANCE_FILE = "performance.json"
TRACE_FOLDER = "profile"
MEASURED = ("first step", "step", "validation", "first validation", "checkpoint")
"""What the loop spends its time on; waiting for input is part of a step."""


class StepTimes:
    """Seconds by what they were spent on, collected by the loop."""

    def __init__(self) -> None:
        self._spent: dict[str, list[float]] = {}

    @contextmanager
    def spent_on(self, what: str) -> Iterator[None]:
        """Counts the block's seconds."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(what, time.monotonic() - started)

    def add(self, what: str, seconds: float) -> None:
        """Counts seconds."""
        self._spent.setdefault(what, []).append(seconds)

    def total(self, what: str) -> float:
        """All seconds spent on something."""
        return sum(self._spent.get(what, ()))

    def median(self, what: str) -> float | None:
        """Of its single durations; None where it never happened."""
        return statistics.median(self._spent[what]) if self._spent.get(what) else None

    def count(self, what: str) -> int:
        """How often it happened."""
        return len(self._spent.get(what, ()))


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """FLOP/s that one device can reach; None where the device or the dtype is not in the table.

    Args:
      device_kind: as JAX names it.
      dtype: bfloat16, tensorfloat32 or float32. TPUs multiply float32 in passes of bfloat16, so
        their bfloat16 figure serves for both.
    """
    for name, of_dtype in PEAK_FLOPS.items():
        if name in device_kind:
            return of_dtype.get(dtype, of_dtype["bfloat16"] if "TPU" in name else None)
    return None


def performance(
    times: StepTimes, *, flops: float | None, records_per_step: int, dtype: str, planned: dict
) -> dict[str, Any]:
    """The summary of an attempt, as written to `performance.json`.

    Args:
      times: with "step" (one iteration, without what follows), "input wait", "checkpoint",
        "validation" and "first step".
      flops: of one step over all devices.
      records_per_step: of all members.
      dtype: that products are computed in.
      planned: bytes of the step on one device, by kind.
    """
    step = times.median("step")
    devices = jax.devices()
    peak = peak_flops(devices[0].device_kind, dtype)
    rate = flops / step if flops and step else None
    stats = devices[0].memory_stats() if devices[0].process_index == jax.process_index() else None
    return {
        "device_kind": devices[0].device_kind,
        "num_devices": len(devices),
        "num_processes": jax.process_count(),
        "num_steps": times.count("step"),
        "first_step_seconds": times.total("first step"),
        "step_seconds": step,
        "records_per_second": records_per_step / step if step else None,
        "share_of_time": _shares(times),
        "checkpoint_seconds": times.median("checkpoint"),
        "flops_per_step": flops,
        "flops_per_second": rate,
        "dtype": dtype,
        "flops_utilisation": rate / (peak * len(devices)) if rate and peak else None,
        "device_bytes_planned": planned,
        "device_bytes_peak": (stats or {}).get("peak_bytes_in_use"),
        "host_bytes_peak": process_peak_bytes(),
        "training_seconds": sum(times.total(what) for what in MEASURED),
        "num_attempts": 1,
    }


def process_peak_bytes() -> int:
    """Most memory that this process held so far, on the host."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kibibytes, macOS bytes.
    return int(peak) * (1 if sys.platform == "darwin" else 1024)


def summary(facts: dict[str, Any]) -> str:
    """One line for people."""
    if facts["step_seconds"] is None:
        return "no step after the first was timed"
    shares = ", ".join(f"{what} {share:.0%}" for what, share in facts["share_of_time"].items())
    text = (
        f"step {1e3 * facts['step_seconds']:.0f} ms (median of {facts['num_steps']}), "
        f"{facts['records_per_second']:.1f} records/s; time: {shares}"
    )
    if facts["flops_per_second"]:
        text += f"; {facts['flops_per_second'] / 1e9:.1f} GFLOP/s"
        if facts["flops_utilisation"] is None:
            text += f" (peak of {facts['device_kind']} in {facts['dtype']} unknown)"
        else:
            text += f", {facts['flops_utilisation']:.1%} of the peak in {facts['dtype']}"
    if facts["device_bytes_peak"]:
        text += f"; {facts['device_bytes_peak'] / 2**30:.1f} GiB on a device"
    return text


def save(facts: dict[str, Any], workdir: Path) -> None:
    """Writes `performance.json`; time and attempts of earlier attempts are added to its own."""
    path = workdir / PERFORMANCE_FILE
    try:
        before = json.loads(path.read_text())
        facts = facts | {
            name: facts[name] + before[name] for name in ("training_seconds", "num_attempts")
        }
    except (OSError, ValueError, KeyError, TypeError):
        pass  # the first attempt, or an earlier one that did not say
    write_whole(path, json.dumps(facts, indent=2) + "\n")


class Tracer:
    """Writes a trace of some steps into `profile/`, for TensorBoard and Perfetto.

    Args:
      steps: "FIRST-LAST", counted from 1 at the start of this attempt; empty for none.
      workdir: of the run.
    """

    def __init__(self, steps: str, workdir: Path):
        self._first, self._last = (int(n) for n in steps.split("-")) if steps else (0, -1)
        self._folder = workdir / TRACE_FOLDER
        self._running = False

    def before(self, number: int) -> None:
        """To be called before step `number` of this attempt."""
        if number == self._first:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._running = True

    def after(self, number: int, result: Any) -> Path | None:
        """To be called after it; the trace's folder when it was the last."""
        if not self._running or number < self._last:
            return None
        jax.block_until_ready(result)
        return self.close()

    def close(self) -> Path | None:
        """Ends a trace that is running."""
        if not self._running:
            return None
        self._running = False
        jax.profiler.stop_trace()
        return self._folder


def _shares(times: StepTimes) -> dict[str, float]:
    waited = times.total("input wait")
    parts = {
        "compute": max(times.total("step") - waited, 0.0),
        "input wait": waited,
        "checkpoint": times.total("checkpoint"),
        "validation": times.total("validation"),
    }
    whole = sum(parts.values())
    return {what: seconds / whole for what, seconds in parts.items()} if whole else parts
