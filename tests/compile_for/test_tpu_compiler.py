"""Programs compiled for TPUs by the real compiler, on this machine.

    pytest -m tpu_compiler tests/compile_for        # needs libtpu (the extra tpu), minutes

Golden figures have a margin, within which a change of the compiler stays; a program that moves
twice as much through HBM, or exchanges twice as much, fails.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.tpu_compiler,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the extra tpu)"
    ),
]
ROOT = Path(__file__).resolve().parents[2]
MARGIN = 1.5


@pytest.fixture(scope="module")
def compiled():
    """Name of what was compiled -> the report as JSON; see `for_tpu.py`."""
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-m", "tests.compile_for.for_tpu"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def step(report):
    return report["programs"][0]


def exchanged(report):
    return {kind: of["bytes"] for kind, of in step(report)["collectives"].items()}


def test_step_evaluation_and_sampler_fit_and_say_so(compiled):
    found = compiled["all"]
    assert found["fits"] and found["devices"] == 4
    assert [of["program"] for of in found["programs"]] == [
        "training step",
        "evaluation step",
        "Monte Carlo sampler",
    ]
    assert set(step(found)["bound_seconds"]) == {"MXU", "HBM", "ICI"}
    assert step(found)["flops"] > found["programs"][1]["flops"] > 0
    memory = step(found)["memory_bytes"]
    assert memory["moments"] >= 2 * memory["parameters"]
    assert found["words"][-1] == "fits"


def test_gradients_are_summed_over_the_slice(compiled):
    found = compiled["all"]
    assert exchanged(found)["all-reduce"] >= step(found)["memory_bytes"]["parameters"]
    assert "dcn" not in exchanged(found)


def test_state_in_pieces_is_gathered(compiled):
    pieces, whole = compiled["in pieces"], compiled["all"]
    held = "parameters", "moments"
    assert all(
        step(pieces)["memory_bytes"][kind] < step(whole)["memory_bytes"][kind] for kind in held
    )
    assert "all-gather" in exchanged(pieces) and "all-gather" not in exchanged(whole)


def test_gradients_of_pieces_are_summed_at_once(compiled):
    """And do not go round the chips in pieces of products, as the compiler would have it."""
    sums = exchanged(compiled["in pieces"])
    assert sums.get("collective-permute", 0) < sums["all-reduce"] / 20


def test_pieces_do_not_cross_the_network_between_slices(compiled):
    pieces, whole = (exchanged(compiled[name])["dcn"] for name in ("two in pieces", "two slices"))
    assert pieces == whole


def test_members_on_devices_of_their_own_exchange_next_to_nothing(compiled):
    """But for the signal that a process got."""
    assert sum(exchanged(compiled["ensemble"]).values()) < exchanged(compiled["all"])["all-reduce"]


def test_two_slices_exchange_gradients_over_the_network_between_them(compiled):
    found = compiled["two slices"]
    assert found["devices"] == 8
    assert exchanged(found)["dcn"] > 0 and step(found)["bound_seconds"]["DCN"] > 0


def test_bfloat16_is_compiled(compiled):
    assert compiled["bfloat16"]["fits"]


def test_program_that_is_too_large_is_told_with_what_would_fit(compiled):
    found = compiled["too large"]
    assert not found["fits"] and "bound_seconds" not in step(found)
    assert step(found)["memory_bytes"]["total"] > step(found)["memory_limit_bytes"]
    said = found["words"][-1]
    assert said.startswith("DOES NOT FIT") and "compute_dtype=bfloat16" in said
    assert "train.rematerialise=true" in said and "may fit" in said


@pytest.mark.parametrize(
    ("name", "kind", "num_bytes"),
    [
        ("all", "all-reduce", 570_384),
        ("in pieces", "all-gather", 364_544),
        ("in pieces", "reduce-scatter", 425_984),
        ("two slices", "dcn", 139_264),
    ],
)
def test_chips_exchange_as_much_as_they_did(compiled, name, kind, num_bytes):
    """Of a plain residual network four channels wide, on v5e-4; gradients and batch norms."""
    assert num_bytes / MARGIN < exchanged(compiled[name])[kind] < num_bytes * MARGIN


@pytest.mark.parametrize(
    ("name", "megabytes"),
    [
        # Six passes over its 67 MB; taken at once, 48.
        ("mfa of the stem", 403),
        ("mfa of the first stage", 101),
    ],
)
def test_attention_moves_as_much_through_hbm_as_it_did(compiled, name, megabytes):
    """Width 64, 128 px, 64 records in bfloat16 on one v5e chip, with the gradient."""
    assert megabytes / MARGIN < compiled[name] < megabytes * MARGIN
