"""`drifa predict` and `drifa export` from the command line."""

from __future__ import annotations

import csv

import jax
import pytest

from drifa_jax.cli import main
from drifa_jax.predictions.files import flat_rows


@pytest.fixture(autouse=True)
def same_cache(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)


def test_predict_prints_a_table_and_writes_a_csv(run, predictor, folder, tmp_path, capsys):
    out = tmp_path / "out.csv"
    assert main(["predict", str(run), str(folder), "--csv", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "case3" in shown and "SYNTHETIC" in shown and "Research use only" in shown
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["record_id"] for row in rows] == ["case0", "case1", "case2", "case3"]
    images = {m: [folder / m / f"case{n}.png" for n in range(4)] for m in ("mri", "ct")}
    expected = flat_rows(predictor(images, [row["record_id"] for row in rows]))
    assert [row["tumour/set"] for row in rows] == [row["tumour/set"] for row in expected]


def test_nothing_is_written_where_one_image_is_damaged(run, predictor, folder, tmp_path, capsys):
    (folder / "mri" / "case9.png").write_bytes(b"no image")
    (folder / "ct" / "case9.png").write_bytes(b"no image")
    try:
        assert main(["predict", str(run), str(folder), "--csv", str(tmp_path / "out.csv")]) == 1
    finally:
        (folder / "mri" / "case9.png").unlink()
        (folder / "ct" / "case9.png").unlink()
    assert "case9.png: is not an image" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_export_writes_and_verifies(run, predictor, tmp_path, capsys):
    out = tmp_path / "net.drifa"
    assert main(["export", str(run), str(out)]) == 0
    assert "largest difference" in capsys.readouterr().err
    assert main(["export", str(run), str(out)]) == 1
    assert "exists; choose another name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "nowhere", "x.png"], "nowhere is not a run directory"),
        (["predict", "RUN"], "Give images: mri=FILE ct=FILE"),
        (["predict", "RUN", "x.png", "--samples", "0"], "--samples is 0"),
        (["predict", "RUN", "x.png", "--alpha", "1"], "--alpha is 1.0"),
        (["predict", "RUN", "x.png", "--csv", "out.txt"], "must end in .csv"),
        (["predict", "RUN", "x.png", "--csv", "no/out.csv"], "folder no does not exist"),
        (["predict", "RUN", "x.png", "--colour"], "unknown argument '--colour'"),
        (["export", "RUN", "no/net.drifa"], "folder no does not exist"),
        (["export", "RUN", "net.drifa", "--samples", "0"], "--samples is 0"),
    ],
)
def test_wrong_arguments_are_one_message(run, predictor, arguments, message, capsys):
    assert main([str(run) if a == "RUN" else a for a in arguments]) == 1
    assert message in capsys.readouterr().err


def test_flags_may_stand_between_run_and_images(run, predictor, folder, tmp_path, capsys):
    out = tmp_path / "out.csv"
    images = [f"{m}={folder / m / 'case0.png'}" for m in ("mri", "ct")]
    arguments = ["predict", str(run), "--no-decisions", images[0], "--csv", str(out), images[1]]
    assert main(arguments) == 0
    with out.open() as file:
        (row,) = csv.DictReader(file)
    assert row["tumour/set"] == "" and row["tumour/calibration"] == "none"


def test_a_pipe_gets_plain_lines_after_the_files(run, predictor, folder, tmp_path):
    """`drifa predict ... | head -1`: who reads stops early, and the files are whole."""
    import subprocess
    import sys

    out = tmp_path / "out.csv"
    command = [sys.executable, "-m", "drifa_jax.cli", "predict", str(run), str(folder)]
    shell = " ".join([*command, "--csv", str(out), "| head -1"])
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    assert done.stdout.startswith("tumour (trained on SYNTHETIC data)")
    assert len(out.read_text().splitlines()) == 5


def test_names_reach_the_console_as_text(capsys):
    from drifa_jax.commands.predict import printable

    assert printable("nodule [malignant] x[/b]") == "nodule [malignant] x[/b]"
    assert printable("a\x1b[2Jb\u202ec") == "a\ufffd[2Jb\ufffdc"


def test_an_exported_file_predicts(run, predictor, folder, tmp_path, capsys):
    out = tmp_path / "net.drifa"
    assert main(["export", str(run), str(out)]) == 0
    assert main(["predict", str(out), str(folder), "--csv", str(tmp_path / "out.csv")]) == 0
    assert "case3" in capsys.readouterr().out
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 5
    assert main(["predict", str(out), str(folder), "--samples", "9"]) == 1
    assert "--samples: " in capsys.readouterr().err
