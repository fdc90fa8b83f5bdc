"""`drifa evaluate` on a run of a real (tiny) network, from the command line."""

from __future__ import annotations

import json
import shutil

import jax
import pytest

from drifa_jax.cli import main
from drifa_jax.evaluate import records
from drifa_jax.predict import streaming


@pytest.fixture(autouse=True)
def small_batches_and_standard_promotion(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.setattr(streaming, "LARGEST_BATCH", 4)
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy") / "tiny"
    shutil.copytree(finished_run, folder)
    return folder


def evaluate(run, *more):
    return main(["evaluate", str(run), "--samples", "2", "--resamples", "100", *more])


def test_it_writes_everything_with_explanations_and_leaves_nothing_behind(run, capsys):
    assert evaluate(run) == 0
    folder = run / "evaluation"
    assert {path.name for path in folder.iterdir()} == {
        "figures",
        "metrics.json",
        "predictions.csv",
        "predictions.parquet",
        "report.html",
    }
    assert not [p for p in run.iterdir() if p.name.startswith(".evaluation") and p.is_dir()]
    document = json.loads((folder / "metrics.json").read_text())
    assert document["num_records"] == 20
    # The same network without dropout was tested at the end of training; here it is sampled.
    assert set(document["tasks"]) == set(json.loads((run / "metrics.json").read_text())["tasks"])
    page = (folder / "report.html").read_text()
    for title in ("Grad-CAM gallery", "Embedding of the fused features", "lesion shows in"):
        assert title in page
    assert document["cost"]["flops"] > document["cost"]["num_parameters"]
    assert "Not a medical device" in capsys.readouterr().err


def test_an_interruption_keeps_the_old_report_and_the_work_done(run, monkeypatch, capsys):
    before = (run / "evaluation" / "report.html").read_text()
    original, calls = records._answer_chunk, []

    def interrupted(predictor, source, rows):
        calls.append(rows)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(predictor, source, rows)

    monkeypatch.setattr(records, "_answer_chunk", interrupted)
    monkeypatch.setattr(records, "RECORDS_A_CHUNK", 8)
    assert evaluate(run, "--no-explanations", "--seed", "1") == 130
    assert "goes on" in capsys.readouterr().err
    assert (run / "evaluation" / "report.html").read_text() == before
    monkeypatch.setattr(records, "_answer_chunk", original)
    assert evaluate(run, "--no-explanations", "--seed", "1") == 0
    assert "8 of them had been predicted" in capsys.readouterr().err
    assert (run / "evaluation" / "report.html").read_text() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--samples", "0"], "--samples is 0"),
        (["RUN", "--resamples", "5"], "--resamples is 5"),
        (["nowhere"], "nowhere is not a run directory"),
        (["RUN", "--out", "no/where"], "the folder no does not exist"),
        (["RUN", "--out", "holds_files"], "holds files but no report.html"),
    ],
)
def test_wrong_arguments_are_answered_in_words(
    run, arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "holds_files").mkdir()
    (tmp_path / "holds_files" / "thesis.tex").write_text("x")
    assert main(["evaluate", *[str(run) if a == "RUN" else a for a in arguments]]) == 1
    assert message in capsys.readouterr().err
    assert (tmp_path / "holds_files" / "thesis.tex").exists()
