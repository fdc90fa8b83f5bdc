"""Planted shifts alarm where they were planted; a page says what it is made of."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from drifa_jax.cli import main
from drifa_jax.monitor.monitoring import monitor
from drifa_jax.monitor.page import verdict, write_monitoring
from drifa_jax.monitor.tables import Monitored
from drifa_jax.post_processing.out_of_distribution import (
    fit_detector,
    left_out_distances,
    left_out_scores,
)
from drifa_jax.predictions.files import write_predictions
from drifa_jax.predictions.table import joined

SIZE = 60
SHIFTS = {
    "unlike": {"unlike": 0.5},
    "tumour/entropy": {"sureness": 1.0},
    "tumour/class meningioma": {"classes": (0.1, 0.8, 0.1)},
    "missing ct": {"missing": 0.4},
}


def over_time(deployment, *, labels=True, **shift) -> Monitored:
    """Four periods without a shift and two with it."""
    parts = [deployment(SIZE, 10 + k, name=f"p{k}") for k in range(4)]
    parts += [deployment(SIZE, 20 + k, name=f"q{k}", **shift) for k in range(2)]
    whole = joined(parts)
    if not labels:
        bare = {t: dataclasses.replace(a, truth=None) for t, a in whole.tasks.items()}
        whole = dataclasses.replace(whole, tasks=bare)
    names = tuple(f"2024-{month:02d}" for month in range(1, 7))
    return Monitored(whole, np.repeat(np.arange(6), SIZE), names)


@pytest.fixture(scope="module")
def shifted(reference, deployment):
    return monitor(reference, over_time(deployment, sureness=1.0), num_histories=400)


def test_a_deployment_without_a_shift_raises_no_alarm(reference, deployment):
    found = monitor(reference, over_time(deployment), num_histories=400)
    assert not found.alarms
    assert verdict(found).startswith("No alarm")


@pytest.mark.parametrize("key", SHIFTS)
def test_a_planted_shift_alarms_in_its_periods_alone(key, reference, deployment):
    table = over_time(deployment, labels=False, **SHIFTS[key])
    found = monitor(reference, table, num_histories=400)
    alarmed = {(t, found.statistics[s].key) for _, t, s in found.alarms}
    assert {(4, key), (5, key)} <= alarmed
    assert {t for t, _ in alarmed} == {4, 5}


def test_labels_tell_accuracy_and_coverage_with_intervals(shifted):
    found = shifted.labelled["tumour"]
    assert found.counts.tolist() == [SIZE] * 6
    for values in (found.accuracy, found.coverage, found.calibration_error):
        assert np.isfinite(values).all()
    assert (found.accuracy[:, 1] <= found.accuracy[:, 0]).all()
    assert (found.accuracy[:, 0] <= found.accuracy[:, 2]).all()
    assert found.accuracy[4:, 0].max() < found.accuracy[:4, 0].min()
    assert found.promised == pytest.approx(0.9)
    keys = {shifted.statistics[s].key for _, _, s in shifted.alarms}
    assert "tumour/accuracy" in keys


def test_a_site_is_told_apart_and_held_against_its_own_records(reference, deployment):
    table = over_time(deployment, labels=False)
    north = np.arange(len(table.predictions)) % 2 == 0
    unlike = table.predictions.out_of_distribution
    p_value = np.where(north, unlike.p_value, unlike.p_value / 20)
    sites = tuple("north" if here else "south" for here in north)
    predictions = dataclasses.replace(
        table.predictions,
        attributes={"site": sites, "scanner": ("one",) * len(sites)},
        out_of_distribution=dataclasses.replace(unlike, p_value=p_value),
    )
    known = dataclasses.replace(
        reference,
        predictions=dataclasses.replace(
            reference.predictions, attributes={"site": ("north",) * 60 + ("",) * 140}
        ),
    )
    found = monitor(known, dataclasses.replace(table, predictions=predictions), num_histories=200)
    # One scanner alone is no part of anything.
    assert [place.name for place in found.places] == ["all records", "site north", "site south"]
    assert found.places[1].held_against == "its own 60 validation records"
    assert found.places[2].held_against.startswith("all 200 validation records")
    series = {
        found.places[k].name for k, _, s in found.alarms if found.statistics[s].key == "unlike"
    }
    assert "site south" in series and "site north" not in series


def test_the_page_and_its_json_say_the_same(shifted, tmp_path):
    write_monitoring(shifted, tmp_path / "out")
    page = (tmp_path / "out" / "monitoring.html").read_text()
    document = json.loads((tmp_path / "out" / "monitoring.json").read_text())
    assert document["alarm"] and len(document["alarms"]) == len(shifted.alarms)
    assert f"ALARM: {len(shifted.alarms)} of" in page
    assert not re.search(r"(src|href)=\"(?!#|data:)", page)
    assert page.count("<svg") == page.count('role="img"') > len(shifted.statistics)
    for name in shifted.monitored.periods:
        assert name in page


def test_names_of_sites_and_periods_are_text(reference, deployment, tmp_path):
    table = over_time(deployment, labels=False)
    evil = "<script>alert(1)</script>"
    sites = tuple(evil if k % 2 else "b" for k in range(len(table.predictions)))
    found = monitor(
        reference,
        dataclasses.replace(
            table,
            predictions=dataclasses.replace(table.predictions, attributes={"site": sites}),
            periods=(evil, *table.periods[1:]),
        ),
        num_histories=100,
    )
    write_monitoring(found, tmp_path / "out")
    assert "<script" not in (tmp_path / "out" / "monitoring.html").read_text()


def test_validation_records_are_as_near_as_new_ones_would_be():
    """P-values of fits that saw a record are too large; left out they are those of new records."""
    draw = np.random.default_rng(0)
    features, present = draw.normal(size=(1, 120, 30)), {"mri": np.ones(120, bool)}
    known = left_out_distances(features, present)
    scores = left_out_scores(known)
    assert abs(scores.p_value.mean() - 0.5) < 0.01
    assert abs(scores.flagged.mean() - 0.05) < 0.01
    detector = fit_detector(features, present)
    np.testing.assert_array_equal(detector.known, np.sort(known))
    assert detector(features).p_value.mean() > scores.p_value.mean() + 0.02


@pytest.fixture
def watch(reference, deployment, monkeypatch, tmp_path, finished_run):
    """The command on the made-up run; returns its exit code."""
    monkeypatch.setattr("drifa_jax.monitor.reference.reference_of", lambda *_: reference)
    monkeypatch.chdir(tmp_path)
    for k, shift in enumerate([{}, {}, {"unlike": 0.6}], start=1):
        part = deployment(SIZE, 30 + k, name=f"m{k}", **shift)
        bare = {t: dataclasses.replace(a, truth=None) for t, a in part.tasks.items()}
        write_predictions(dataclasses.replace(part, tasks=bare), tmp_path / f"2024-0{k}.parquet")
    return lambda *arguments: main(["monitor", str(finished_run), *arguments])


def test_the_exit_code_tells_an_alarm(watch, tmp_path, capsys):
    assert watch("2024-01.parquet", "2024-02.parquet", "--out", "a") == 0
    assert "No alarm" in capsys.readouterr().out
    files = [f"2024-0{k}.parquet" for k in (1, 2, 3)]
    assert watch(*files, "--out", "b", "--json") == 3
    document = json.loads(capsys.readouterr().out)
    assert document["periods"] == ["2024-01", "2024-02", "2024-03"]
    assert {alarm["period"] for alarm in document["alarms"]} == {"2024-03"}
    assert (tmp_path / "b" / "monitoring.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give predictions"),
        (["nowhere.parquet"], "does not exist"),
        (["2024-01.parquet", "--rate", "0"], "must be from"),
        (["2024-01.parquet", "--by", "site"], "--by site: no such column"),
        (["2024-01.parquet", "--out", "full"], "holds files but no"),
    ],
)
def test_what_does_not_fit_is_an_error_and_no_alarm(arguments, message, watch, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("")
    assert watch(*arguments) == 1
    assert message in capsys.readouterr().err


def test_a_run_with_few_validation_records_is_refused(finished_run, deployment, tmp_path, capsys):

    run = shutil.copytree(finished_run, tmp_path / "run")
    write_predictions(deployment(20, 1), tmp_path / "a.parquet")
    assert (
        main(["monitor", str(run), str(tmp_path / "a.parquet"), "--out", str(tmp_path / "o")]) == 1
    )
    assert "12 validation records; at least 50" in capsys.readouterr().err
    # They are kept in the run and need its data no more.
    assert len(list(run.glob("validation-*.parquet"))) == 1
