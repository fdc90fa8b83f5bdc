"""`drifa compile` without compiling: names of slices, what libtpu says of them, and bad input."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util

import jax
import numpy as np
import pytest

from drifa_jax import cli
from drifa_jax.chips import TPUS
from drifa_jax.compile_for import report
from drifa_jax.compile_for import slices as slices_module
from drifa_jax.compile_for.cost import cost
from drifa_jax.compile_for.estimate import GIB, Estimate, Memory, used_and_limit
from drifa_jax.compile_for.report import largest_batch
from drifa_jax.compile_for.slices import SHAPES, check_libtpu, slices_named
from drifa_jax.compile_for.stand_in import open_or_stand_in
from drifa_jax.config import from_mapping, modality
from drifa_jax.data.dataset import open_dataset
from drifa_jax.data.pipeline import training_batches
from drifa_jax.errors import UserError
from drifa_jax.sharding import Layout, device_mesh
from tests.train.toy import toy_config

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the extra tpu)"
)


@pytest.mark.parametrize(
    ("name", "generation", "shape"),
    [
        ("v5e-16", "v5e", (4, 4)),
        ("v5litepod-256", "v5e", (16, 16)),
        ("v6e-8", "v6e", (2, 4)),
        ("v4-8", "v4", (2, 2, 1)),
        ("v5p-128", "v5p", (4, 4, 4)),
        ("tpu7x-8", "tpu7x", (2, 2, 1)),
        ("v5e:2x4", "v5e", (2, 4)),
    ],
)
def test_slices_have_the_clouds_names_and_those_of_libtpu(name, generation, shape):
    found = slices_named(name)
    assert (found.generation, found.shape) == (generation, shape)


@pytest.mark.parametrize("name", ("v5e-12", "v4-2", "v9-8", "v5e", "v5e:3x3", "v5p-4.0", ""))
def test_slice_that_is_not_there_is_answered_with_those_that_are(name):
    with pytest.raises(UserError, match=r"no such slice\. Known are v4-8, .*v6e-1, 4.*tpu7x-8"):
        slices_named(name)


@needs_libtpu
@pytest.mark.parametrize("generation", TPUS)
def test_libtpu_knows_every_slice_of_the_table(generation, monkeypatch):
    """With one device a chip, but for TPU7x; its devices are of the kind that the table names."""
    for name, value in slices_module.QUIET.items():
        monkeypatch.setenv(name, value)
    tpu = TPUS[generation]
    for chips, shape in SHAPES[tpu.num_axes].items():
        if chips > 256:
            continue  # they take seconds
        count = chips * (2 if tpu.counts_cores else 1)
        devices = slices_named(f"{generation}-{count}").devices()
        assert len(devices) == chips * tpu.devices_per_chip, shape
        assert devices[0].device_kind.startswith(tpu.device_kinds)


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "count", "axes"),
    [
        ("v5e-16", 1, {}),
        ("v4-16", 1, {}),
        ("v6e-64", 1, {}),
        ("v5e-16", 2, {}),
        ("v5e-16", 2, {"ensemble": 4}),
        ("v5e-16", 1, {"ensemble": 2, "model": 2}),
    ],
)
def test_every_process_of_a_slice_holds_a_part_of_each_batch(name, count, axes, monkeypatch):
    """In the order of the links alone its devices would lie apart, and training be refused."""
    for variable, value in slices_module.QUIET.items():
        monkeypatch.setenv(variable, value)
    devices = slices_named(name, count).devices()
    mesh = device_mesh(devices=devices, **axes)
    part = Layout(mesh, num_members=axes.get("ensemble", 1)).host_part
    assert part.count * 4 // axes.get("model", 1) == mesh.shape["data"]
    # Members of an ensemble are each on one slice, where they can be.
    over = mesh.devices if axes.get("ensemble", 1) >= count else mesh.devices[:0]
    for member in over:
        assert len({getattr(device, "slice_index", 0) for device in member.flat}) == 1 or axes == {}


@pytest.mark.parametrize(
    ("installed", "message"),
    [(None, "needs libtpu, 205 MB, and no TPU"), ("0.0.1", "libtpu is 0.0.1, and jax .* works")],
)
def test_libtpu_that_is_missing_or_another_is_told_with_the_command(
    installed, message, monkeypatch, tiny_file, capsys
):
    asked = importlib.metadata.version

    def version(name):
        if name != "libtpu":
            return asked(name)
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(UserError, match=message) as raised:
        check_libtpu()
    assert "-m pip install 'libtpu==" in str(raised.value)
    assert cli.main(["compile", tiny_file, "--topology", "v5e-4"]) == 1
    assert "drifa compile: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v5e-7"], "there is no such slice"),
        (["--topology", "v5e-4", "--slices", "0"], "--slices 0: there must be at least 1"),
    ],
)
def test_bad_input_ends_with_a_line(arguments, message, tiny_file, capsys):
    assert cli.main(["compile", tiny_file, *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.fixture
def tiny_file(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(
        "from drifa_jax.config import default_config, modality\n"
        "def get_config(variant=''):\n"
        "    config = default_config()\n"
        "    config.data.modalities = {'mri': modality(height=16, width=16, channels=1)}\n"
        "    return config\n"
    )
    return str(file)


def files_config(**fields):
    return from_mapping(
        {
            "data": {
                "source": "files",
                "modalities": {
                    "mri": modality(root="/nowhere", task="tumour", height=32, width=48, **fields),
                    "ct": modality(root="/nowhere", task="stroke", classes=("no", "yes")),
                },
            }
        }
    ).data


def test_data_that_are_elsewhere_are_stood_in_for_by_their_sizes():
    dataset, note = open_or_stand_in(files_config(), 8)
    assert "not on this machine" in note
    batch = next(training_batches(dataset.train, batch_size=8, seed=0))
    assert batch["images"]["mri"].shape == (8, 32, 48, 3)
    assert batch["images"]["ct"].dtype == np.uint8
    assert {task.name: task.num_classes for task in dataset.train.tasks} == {
        "tumour": 4,
        "stroke": 2,
    }


def test_table_that_is_elsewhere_cannot_be_stood_in_for():
    with pytest.raises(UserError, match="the table of mri is not on this machine"):
        open_or_stand_in(files_config(numeric_columns=("age",)), 8)


class Slice:
    """Eight devices of this machine in the place of a slice."""

    tpu = TPUS["v5e"]

    def devices(self):
        return jax.devices()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("step", "train.batch_size is 12"),
        ("evaluation", "eval.batch_size is 12"),
        ("sampler", "all checks are through"),
    ],
)
def test_batches_of_what_is_not_compiled_may_be_of_any_size(
    program, words, monkeypatch, every_device
):
    def reached(*_):
        raise UserError("all checks are through")

    monkeypatch.setattr(report, "Programs", reached)
    config = toy_config(train={"batch_size": 12}, eval={"batch_size": 12})
    with pytest.raises(UserError, match=words):
        report.compile_for(config, open_dataset(config.data), Slice(), only=[program])


def grows_by(bytes_a_record, *, fixed, limit):
    def compile_step(num_records):
        total = fixed + num_records * bytes_a_record
        compiled.append(num_records)
        memory = Memory({}, total, None if total <= limit else limit)
        return Estimate("training step", num_records, 1.0, memory)

    compiled = []
    return compile_step, compiled


@pytest.mark.parametrize("first", (16, 400))
def test_largest_batch_is_found_by_its_growth_and_compiled(first):
    """From a batch that fits and from one that does not; a multiple of the devices."""
    limit, held = 100 * GIB, {"parameters": 4 * GIB, "moments": 8 * GIB}
    step, compiled = grows_by(GIB // 3, fixed=17 * GIB, limit=limit)
    found = largest_batch(step(first), held, 8, limit, step)
    assert found.memory.fits and found.num_records == 248
    assert len(compiled) <= 3


def test_no_batch_fits_where_the_state_alone_does_not():
    limit, held = 10 * GIB, {"parameters": 8 * GIB, "moments": 16 * GIB}
    step, _ = grows_by(GIB, fixed=32 * GIB, limit=limit)
    assert largest_batch(step(8), held, 8, limit, step) is None


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 23.00G of 15.75G hbm. "
        "Exceeded hbm capacity by 7.25G.",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (23.00G) exceeds available HBM (15.75G).",
    ],
)
def test_refusal_for_want_of_memory_is_understood(message):
    assert used_and_limit(message) == (23 * GIB, 15.75 * GIB)
    assert used_and_limit("INTERNAL: something else") is None


def test_estimate_names_the_slowest_resource_and_writes_plain_values():
    memory = Memory({"parameters": 3}, 3)
    of = Estimate("step", 8, 2.0, memory, {"MXU": 0.1, "HBM": 0.3})
    assert of.bottleneck == "HBM"
    too_large = dataclasses.replace(of, memory=Memory({}, 20, 10), bounds={})
    assert too_large.to_json()["fits"] is False
    assert too_large.to_json()["memory_limit_bytes"] == 10


STEP = Estimate("training step", 256, 1.0, Memory({}, 1), {"MXU": 0.004, "HBM": 0.009})


def test_a_run_costs_at_least_its_steps_at_the_longest_bound():
    """5,700 records make 22 whole batches of 256; 30 epochs of 9 ms on 4 chips."""
    least = cost(STEP, slices_named("v5e-4"), 5700, 30, price=2.0)
    assert least.num_steps == 660
    assert least.hours == pytest.approx(660 * 0.009 / 3600)
    assert least.money == pytest.approx(660 * 0.009 / 3600 * 4 * 2.0)
    assert "5.94 s on 4 chips, which cost at least 0.0132 at 2 a chip-hour" in least.in_words()


@pytest.mark.parametrize(("name", "count", "chips"), [("v4-8", 2, 8), ("tpu7x-8", 1, 4)])
def test_what_is_paid_for_are_chips_and_not_cores(name, count, chips):
    assert cost(STEP, slices_named(name, count), 256, 1, price=1.0).num_chips == chips


@pytest.mark.parametrize(("records", "price"), [(255, 1.0), (256, -1.0), (256, float("nan"))])
def test_what_cannot_be_priced_is_said(records, price):
    with pytest.raises(UserError, match="--price"):
        cost(STEP, slices_named("v5e-4"), records, 1, price)


def test_a_step_that_does_not_fit_has_no_price():
    too_large = dataclasses.replace(STEP, bounds={})
    assert cost(too_large, slices_named("v5e-4"), 256, 1, price=1.0) is None
