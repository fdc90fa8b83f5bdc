"""Prediction on a Ray cluster: the local command's table, in partitions that a start completes.

What runs on the workers is called here without a cluster; `pytest -m ray` starts one. Nodes and
commands that are killed in mid-run: `python -m benchmarks.ray_predict RUN`.
"""

from __future__ import annotations

import io
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from drifa_jax import extras
from drifa_jax.cli import main
from drifa_jax.errors import UserError
from drifa_jax.predict import on_ray, streaming
from drifa_jax.predict.inputs import find_cases
from drifa_jax.predict.predictor import load
from drifa_jax.predict.streaming import RECORDS_A_BLOCK
from drifa_jax.predictions.files import read_predictions, to_arrow
from drifa_jax.predictions.partitions import opened_partitions, read_partitions
from drifa_jax.predictions.table import joined

COUNT = RECORDS_A_BLOCK + 4
"""Two partitions, the second one small."""


@pytest.fixture
def manifest(folder, tmp_path):
    """A table of many records, which share a few pictures; one is damaged if its name is given."""

    def write(damaged: int | None = None):
        lines = ["record_id,mri,ct"]
        for row in range(COUNT):
            mri, ct = (folder / m / f"case{row % 4}.png" for m in ("mri", "ct"))
            if row == damaged:
                mri = tmp_path / "damaged.png"
            lines.append(f"record-{row},{mri},{ct}")
        path = tmp_path / "manifest.csv"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


class Opened:
    """Opens a run, as the command does on a worker."""

    def __init__(self, run):
        self.run = run

    def __call__(self):
        return load(self.run)


def command(run, manifest, out) -> subprocess.CompletedProcess:
    """The command in a process of its own, as Ray leaves threads and warnings behind."""
    arguments = ["predict", str(run), str(manifest), "--engine", "ray"]
    where = ["--address", "local", "--out", str(out)]
    return subprocess.run(
        [sys.executable, "-m", "drifa_jax.cli", *arguments, *where],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_block_on_the_workers_is_a_block_of_the_local_stream(
    run, predictor, manifest, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    described = on_ray._described(Opened(run), str(tmp_path))
    cases = find_cases([str(manifest())], described.description.readings)
    with opened_partitions(tmp_path / "out", 2, on_ray._belongs_to(described, cases)) as out:
        actor = on_ray._Answering(Opened(run), described.provenance, out, str(tmp_path))
        for number in (1, 0):
            asked = on_ray._block(cases, number, number * RECORDS_A_BLOCK)
            held = on_ray._read(asked, described.description, str(tmp_path))
            assert actor(held) == {"number": number, "error": ""}
    expected = joined(list(predictor.stream(cases.images, cases.record_ids)))
    found = read_partitions(tmp_path / "out")
    assert to_arrow(found).equals(to_arrow(expected), check_metadata=True)


def test_a_block_with_a_damaged_picture_writes_nothing_and_says_which(
    run, predictor, manifest, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    cases = find_cases([str(manifest(damaged=3))], predictor.description.readings)
    held = on_ray._read(on_ray._block(cases, 0, 0), predictor.description, str(tmp_path))
    assert "damaged.png: is not an image" in held["error"]
    with opened_partitions(tmp_path / "out", 2, {}) as out:
        actor = on_ray._Answering(Opened(run), predictor.provenance, out, str(tmp_path))
        assert actor(held)["error"] == held["error"]
        assert out.absent() == [0, 1]


def test_a_run_that_changed_since_the_start_answers_nothing(
    run, second_run, predictor, manifest, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    cases = find_cases([str(manifest())], predictor.description.readings)
    held = on_ray._read(on_ray._block(cases, 1, 256), predictor.description, str(tmp_path))
    with opened_partitions(tmp_path / "out", 2, {}) as out:
        actor = on_ray._Answering(Opened(second_run), predictor.provenance, out, str(tmp_path))
        assert "the run was changed" in actor(held)["error"]
        assert out.absent() == [0, 1]


def test_another_seed_or_order_of_records_is_another_folder(predictor, manifest, tmp_path):
    described = on_ray.Described(predictor.description, predictor.provenance, "cpu", "0")
    cases = find_cases([str(manifest())], predictor.description.readings)
    ours = on_ray._belongs_to(described, cases)
    swapped = replace(cases, record_ids=cases.record_ids[::-1])
    assert on_ray._belongs_to(described, swapped)["manifest"] != ours["manifest"]
    reseeded = replace(described, provenance=replace(predictor.provenance, seed=1))
    assert on_ray._belongs_to(reseeded, cases) == {**ours, "seed": 1}


def test_a_node_without_the_folder_of_the_command_says_so(run, tmp_path):
    answer = on_ray._described(Opened(run), str(tmp_path / "absent"))
    assert "has no folder" in answer and "must lie where all nodes find them" in answer


@pytest.mark.ray
def test_a_second_start_completes_the_table_of_the_local_command_to_the_last_bit(
    run, predictor, manifest, tmp_path, monkeypatch
):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")
    table, out = manifest(damaged=3), tmp_path / "predictions"

    first = command(run, table, out)
    assert first.returncode == 1, first.stderr
    assert "part-000000.parquet: " in first.stderr
    assert "damaged.png: is not an image" in first.stderr
    assert [path.name for path in out.glob("part-*")] == ["part-000001.parquet"]
    with pytest.raises(UserError, match="lacks 1 of 2 parts"):
        read_partitions(out)

    damaged.write_bytes(picture())
    second = command(run, table, out)
    assert second.returncode == 0, second.stderr
    assert "1 of 2 partitions are there already" in second.stderr

    # Workers are processes of their own, without the small batches of this folder's tests.
    monkeypatch.setattr(streaming, "LARGEST_BATCH", 16)
    local = tmp_path / "local.parquet"
    assert main(["predict", str(run), str(table), "--parquet", str(local)]) == 0
    ours, theirs = to_arrow(read_partitions(out)), to_arrow(read_predictions(local))
    assert ours.equals(theirs, check_metadata=True)


def picture() -> bytes:
    held = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(held, "png")
    return held.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "ray"], "needs --out FOLDER"),
        (["--engine", "ray", "--csv", "a.csv"], "--csv: --engine ray writes a folder"),
        (["--engine", "ray", "--out", "no/where"], "the folder no does not exist"),
        (["--out", "here"], "--out is the folder of --engine ray"),
        (["--engine", "ray", "--out", "x", "--address", "ray://a:1"], "give HOST:PORT"),
        (["--engine", "ray", "--out", "x", "--address", "a:b"], "no Ray cluster answers there"),
        (["--engine", "ray", "--out", "x", "--address", "somewhere"], "must be auto, local or"),
    ],
)
def test_wrong_flags_are_one_message(run, arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(run), "manifest.csv", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_cluster_that_is_not_there_is_told_at_once(run, capsys, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        arguments = ["--engine", "ray", "--out", str(tmp_path / "x"), "--address", address]
        assert main(["predict", str(run), "manifest.csv", *arguments]) == 1
    assert f"--address {address}: no Ray cluster answers there" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_version_that_does_not_fit_is_told_with_the_cure(monkeypatch):
    monkeypatch.setattr(extras, "_required", lambda extra: ["numpy[all]<1"])
    with pytest.raises(UserError, match=r"needs numpy <1, and .* is installed: .*pip install"):
        extras.fitting("numpy", "Prediction on a cluster", "ray")


def test_where_ray_is_absent_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--engine ray\) needs ray: .*pip install"):
        with on_ray.connected("local"):
            pass
