"""A folder of predictions: parts that are whole or absent, of one thing alone."""

from __future__ import annotations

import numpy as np
import pytest

from drifa_jax.errors import UserError
from drifa_jax.predictions.files import to_arrow
from drifa_jax.predictions.partitions import LOCK, STAGING, opened_partitions, read_partitions
from drifa_jax.predictions.table import Predictions, from_member_probabilities

OF = {"identity": "a", "seed": 0}


def predictions(start: int) -> Predictions:
    probabilities = np.random.default_rng(start).dirichlet(np.ones(3), (1, 2))
    ids = (f"record-{start}", f"record-{start + 1}")
    return Predictions(ids, {"tumour": from_member_probabilities("abc", probabilities)})


def test_parts_are_written_in_any_order_and_read_in_theirs(tmp_path):
    with opened_partitions(tmp_path / "out", 2, OF) as partitions:
        partitions.write(1, predictions(2))
        assert partitions.absent() == [0]
    with opened_partitions(tmp_path / "out", 2, OF) as partitions:
        partitions.write(0, predictions(0))
        assert next(partitions.summary()).startswith("tumour: ")
    found = read_partitions(tmp_path / "out")
    assert found.record_ids == tuple(f"record-{n}" for n in range(4))
    assert to_arrow(found.take([2, 3])).equals(to_arrow(predictions(2)))


def test_what_a_killed_start_left_aside_goes(tmp_path):
    with opened_partitions(tmp_path / "out", 1, OF):
        pass
    left = tmp_path / "out" / STAGING / "abc"
    left.mkdir(parents=True)
    (left / "part-000000.parquet").write_bytes(b"half")
    with opened_partitions(tmp_path / "out", 1, OF) as partitions:
        assert not left.exists() and partitions.absent() == [0]


def test_a_part_that_cannot_be_written_leaves_nothing(tmp_path):
    with opened_partitions(tmp_path / "out", 1, OF) as partitions:
        with pytest.raises(TypeError):
            partitions.write(0, None)
        assert partitions.absent() == [0]
        assert not list((tmp_path / "out" / STAGING).iterdir())


@pytest.mark.parametrize("other", [{**OF, "seed": 1}, {**OF, "identity": "b"}])
def test_a_folder_of_something_else_is_refused_by_name(tmp_path, other):
    with opened_partitions(tmp_path / "out", 1, OF):
        pass
    (name,) = (n for n in OF if other[n] != OF[n])
    message = f"holds other predictions \\({name} {OF[name]!r}, not {other[name]!r}\\)"
    with pytest.raises(UserError, match=message), opened_partitions(tmp_path / "out", 1, other):
        pass


def test_a_folder_of_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files \(notes\.txt\)"):
        with opened_partitions(tmp_path, 1, OF):
            pass
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", LOCK}


def test_a_second_process_is_kept_out(tmp_path):
    with opened_partitions(tmp_path / "out", 1, OF):
        with pytest.raises(UserError, match="another process writes its predictions"):
            with opened_partitions(tmp_path / "out", 1, OF):
                pass
