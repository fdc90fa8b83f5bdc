"""The summary of where time goes, on figures that can be worked out by hand."""

from __future__ import annotations

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from drifa_jax.train import step_times
from drifa_jax.train.step_times import StepTimes, Tracer, peak_flops, performance, summary


def four_steps() -> StepTimes:
    times = StepTimes()
    for seconds in (2.0, 2.0, 2.0, 4.0):
        times.add("step", seconds)
        times.add("input wait", 0.5)
    times.add("checkpoint", 1.0)
    times.add("validation", 9.0)
    times.add("first step", 30.0)
    return times


def of_four_steps(**options):
    options = {"flops": 4e12, "records_per_step": 64, "dtype": "bfloat16", "planned": {}} | options
    return performance(four_steps(), **options)


def test_time_is_shared_out_completely():
    of = of_four_steps()
    assert of["share_of_time"] == {
        "compute": 0.4,
        "input wait": 0.1,
        "checkpoint": 0.05,
        "validation": 0.45,
    }
    assert of["step_seconds"] == 2.0
    assert of["records_per_second"] == 32.0
    assert of["first_step_seconds"] == 30.0
    assert of["training_seconds"] == 10.0 + 1.0 + 9.0 + 30.0
    assert of["host_bytes_peak"] > 10_000_000


def test_attempts_add_up(tmp_path):
    for _ in range(2):
        step_times.save(of_four_steps(), tmp_path)
    of = json.loads((tmp_path / step_times.PERFORMANCE_FILE).read_text())
    assert (of["num_attempts"], of["training_seconds"]) == (2, 100.0)
    assert of["step_seconds"] == 2.0


def test_utilisation_is_of_the_peak_of_all_devices(monkeypatch, every_device):
    monkeypatch.setitem(step_times.PEAK_FLOPS, "cpu", {"bfloat16": 1e12})
    assert of_four_steps()["flops_utilisation"] == pytest.approx(2e12 / (8 * 1e12))
    assert "25.0% of the peak in bfloat16" in summary(of_four_steps())


def test_unknown_device_has_no_utilisation_and_says_so():
    of = of_four_steps()
    assert of["flops_utilisation"] is None
    assert "peak of cpu in bfloat16 unknown" in summary(of)


@pytest.mark.parametrize(
    ("device_kind", "dtype", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "tensorfloat32", 156e12),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA L4", "float32", 30.3e12),
        ("TPU v5 lite", "float32", 197e12),
        ("TPU v5p", "bfloat16", 459e12),
        ("NVIDIA GeForce GTX 1080", "float32", None),
    ],
)
def test_peaks_are_found_by_the_name_that_jax_gives(device_kind, dtype, peak):
    assert peak_flops(device_kind, dtype) == peak


def test_attempt_that_was_stopped_at_once_has_a_summary():
    of = performance(StepTimes(), flops=None, records_per_step=8, dtype="float32", planned={})
    assert summary(of) == "no step after the first was timed"


def test_trace_holds_the_steps_asked_for(tmp_path):
    tracer = Tracer("2-3", tmp_path)
    for number in range(1, 5):
        tracer.before(number)
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            result = jnp.ones(3) + number
        assert (tracer.after(number, result) is not None) == (number == 3)
    (perfetto,) = tmp_path.rglob("perfetto_trace.json.gz")
    (_,) = tmp_path.rglob("*.xplane.pb")
    events = json.loads(gzip.decompress(perfetto.read_bytes()))["traceEvents"]
    assert sum(event.get("name") == "train" for event in events) == 2


def test_no_trace_is_written_unasked(tmp_path):
    tracer = Tracer("", tmp_path)
    tracer.before(1)
    assert tracer.after(1, jnp.ones(1)) is None
    assert not list(tmp_path.iterdir())
