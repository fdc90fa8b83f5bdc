"""What is remembered of each member."""

from __future__ import annotations

import json

import numpy as np
import pytest

from drifa_jax.config import TrainConfig
from drifa_jax.train import progress
from drifa_jax.train.progress import MemberProgress


def test_progress_survives_a_checkpoint():
    members = [MemberProgress.at_start(TrainConfig()) for _ in range(2)]
    members[1].after_epoch(0.5, 3)
    members[0].sums["tumour/loss"] = 1.25
    text = json.dumps(progress.to_json(members))
    assert progress.from_json(json.loads(text)) == members


def test_epoch_means_divide_by_all_records_of_the_epoch():
    member = MemberProgress.at_start(TrainConfig())
    for loss, count in ((6.0, 2.0), (2.0, 6.0)):
        member.add({"tumour": {"loss": loss, "correct": 1.0, "count": count}}, ["tumour"])
    assert member.means(["tumour"]) == {"tumour/loss": 1.0, "tumour/accuracy": 0.25}
    assert member.sums == {}


def test_member_that_stopped_early_can_no_longer_win():
    member = MemberProgress.at_start(TrainConfig())
    losses = (0.5, 0.6, 0.7, 0.1)
    assert [member.after_epoch(loss, 2) for loss in losses] == [0.5, 0.6, 0.7, float("inf")]
    assert member.stopped
    assert member.plateau.best == 0.5


@pytest.mark.parametrize("shape", ((), (3,)))
def test_sums_of_one_member_are_taken_out(shape):
    sums = {"total": np.full(shape, 2.0), "tumour": {"loss": np.full(shape, 3.0)}}
    assert progress.of_member(sums, 0) == {"total": 2.0, "tumour": {"loss": 3.0}}


def test_ensembles_log_their_mean_and_every_member():
    of = progress.averaged([{"total": 1.0}, {"total": 3.0}])
    assert of == {"total": 2.0, "members": [{"total": 1.0}, {"total": 3.0}]}
    assert progress.averaged([{"total": 1.0}]) == {"total": 1.0}
