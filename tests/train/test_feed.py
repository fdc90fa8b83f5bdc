"""Batches arrive ahead of their steps; waiting for them is noticed, and the cure is named."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from drifa_jax.data.dataset import open_dataset
from drifa_jax.errors import UserError
from drifa_jax.sharding import layout_of
from drifa_jax.train import feed as feed_module
from drifa_jax.train.feed import Feed, check_records, member_streams, waiting_warning
from tests.train.toy import toy_config

pytestmark = pytest.mark.usefixtures("every_device")


@pytest.fixture(scope="module")
def experiment():
    config = toy_config()
    return SimpleNamespace(config=config, dataset=open_dataset(config.data))


def test_batches_are_those_of_the_stream_in_order(experiment):
    layout = layout_of(experiment.config)
    feed = Feed(experiment, layout, 3)
    (stream,) = member_streams(experiment, layout, 3)
    for _ in range(3):
        batch, placed = feed.next(lambda: True)
        expected = next(stream)
        np.testing.assert_array_equal(batch["index"], expected["index"])
        np.testing.assert_array_equal(placed["images"]["mri"], expected["images"]["mri"])
        assert len(placed["images"]["mri"].sharding.device_set) == jax.device_count()
    feed.close()


def slow(monkeypatch, seconds):
    def streams(*_):
        def endless():
            while True:
                time.sleep(seconds)
                yield {"images": {"mri": np.zeros((8, 2), np.uint8)}, "index": np.arange(8)}

        yield endless()

    monkeypatch.setattr(feed_module, "member_streams", lambda *a: list(streams(*a)))


def test_only_waiting_with_idle_devices_counts(experiment, monkeypatch):
    slow(monkeypatch, 0.2)
    feed = Feed(experiment, layout_of(experiment.config), 0)
    feed.next(lambda: False)
    assert feed.waited == 0
    feed.next(lambda: True)
    assert 0.1 < feed.waited < 1.0
    feed.close()


def test_error_of_the_data_reaches_the_loop(experiment, monkeypatch):
    def broken():
        raise UserError("mri/7.png: cannot be read")
        yield

    monkeypatch.setattr(feed_module, "member_streams", lambda *_: [broken()])
    feed = Feed(experiment, layout_of(experiment.config), 0)
    with pytest.raises(UserError, match=r"mri/7.png"):
        feed.next(lambda: True)
    feed.close()


def test_waiting_names_the_share_and_a_number_of_workers_that_fits(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert waiting_warning(1.0, 10.0, 0) is None
    assert "30% of this epoch: raise --config.data.num_workers (now 0" in waiting_warning(3, 10, 0)
    assert "try 4" in waiting_warning(3, 10, 2)
    assert "try 7" in waiting_warning(3, 10, 5)
    assert "8 cores are busy" in waiting_warning(3, 10, 7)


def test_more_devices_than_records_are_refused():
    with pytest.raises(UserError, match=r"8 devices .* of 4 processes share .* only 5 training"):
        check_records(5, num_devices=8, num_processes=4)
    check_records(8, num_devices=8, num_processes=4)
