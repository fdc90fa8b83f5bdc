"""The mesh and what does not fit it. What it computes: tests/train/test_program.py."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from drifa_jax import sharding
from drifa_jax.errors import UserError
from drifa_jax.sharding import HostPart, Layout, device_mesh, layout_of
from tests.train.toy import toy_config

pytestmark = pytest.mark.usefixtures("every_device")


def test_all_devices_are_on_the_data_axis_unless_asked_otherwise():
    assert dict(device_mesh().shape) == {"ensemble": 1, "data": 8, "model": 1}
    assert dict(device_mesh(ensemble=2, model=2).shape) == {"ensemble": 2, "data": 2, "model": 2}


@pytest.mark.parametrize("axes", ({"data": 4}, {"ensemble": 3}, {"data": 8, "model": 2}))
def test_mesh_that_does_not_fit_the_devices_is_refused(axes):
    with pytest.raises(UserError, match=r"does not fit the 8 devices; the product must be 8"):
        device_mesh(**axes)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"train": {"batch_size": 12}}, r"train.batch_size is 12, which 8 devices cannot share"),
        ({"eval": {"batch_size": 4}}, r"eval.batch_size is 4, .* use a multiple of 8"),
        (
            {"ensemble": {"num_members": 3}, "mesh": {"ensemble": 2}},
            r"num_members is 3, which the mesh.ensemble of 2 does not divide",
        ),
        ({"mesh": {"ensemble": 2}}, r"num_members is 1"),
    ],
)
def test_what_does_not_divide_over_the_mesh_is_named(groups, message):
    with pytest.raises(UserError, match=message):
        layout_of(toy_config(**groups))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"ensemble": {"num_members": 0}}, "ensemble.num_members is 0; it must be at least 1"),
        ({"mesh": {"data": -1}}, "mesh.data is -1"),
        ({"distributed": {"coordinator": "host"}}, "it must be HOST:PORT or auto"),
        ({"distributed": {"lost_seconds": 0}}, "distributed.lost_seconds is 0"),
        ({"profile": {"steps": "5"}}, "profile.steps is '5'; it must be FIRST-LAST"),
    ],
)
def test_fields_out_of_range_are_named(groups, message):
    with pytest.raises(UserError, match=message):
        toy_config(**groups)


def test_one_process_reads_every_member_and_the_whole_batch():
    layout = Layout(device_mesh(ensemble=2), num_members=4)
    assert layout.host_part == HostPart(range(4), 0, 1)


def test_small_arrays_stay_whole_and_large_ones_are_cut_where_they_divide(monkeypatch):
    monkeypatch.setattr(sharding, "LARGE", 64)
    layout = Layout(device_mesh(ensemble=2, model=2), num_members=2, shard_state=True)
    shapes = {"small": (2, 5), "kernel": (2, 3, 3, 4, 8), "odd": (2, 9, 9)}
    specs = layout.state({k: jax.ShapeDtypeStruct(s, np.float32) for k, s in shapes.items()})
    specs = {name: tuple(of.sharding.spec) for name, of in specs.items()}
    assert specs["small"] == ("ensemble", None)
    assert specs["kernel"] == ("ensemble", None, None, "data", "model")
    assert specs["odd"] == ("ensemble", None, None)


@pytest.mark.parametrize(("slices", "cuts"), [((0, 0), True), ((0, 1), False)])
def test_no_piece_of_the_state_crosses_the_network_between_slices(slices, cuts):
    devices = np.array([SimpleNamespace(slice_index=number) for number in slices])
    mesh = SimpleNamespace(shape={"data": 2}, devices=devices.reshape(1, 2, 1))
    assert Layout(mesh).cuts_state == cuts
    assert not Layout(mesh, shard_state=False).cuts_state
