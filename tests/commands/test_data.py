"""`drifa data` from its flags to its files and exit codes."""

from __future__ import annotations

import argparse
import json
import re

import numpy as np
import pytest
from PIL import Image

from drifa_jax.commands import data
from drifa_jax.data.sources.prepared import open_prepared
from drifa_jax.errors import UserError


def drifa_data(*arguments, overrides=()):
    parser = argparse.ArgumentParser()
    data.add_arguments(parser)
    options = parser.parse_args([str(a) for a in arguments])
    options.overrides = list(overrides)
    return data.run(options)


@pytest.fixture
def scans(tmp_path):
    """Class folders with official splits; one test image is also a training image."""
    generator = np.random.Generator(np.random.Philox(0))
    for folder, count in (("Training", 8), ("Testing", 3)):
        for kind in ("ill", "well"):
            (tmp_path / "scans" / folder / kind).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (24, 24), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "scans" / folder / kind / f"{number}.png")
    twin = tmp_path / "scans" / "Training" / "ill" / "0.png"
    (tmp_path / "scans" / "Testing" / "ill" / "0.png").write_bytes(twin.read_bytes())
    return tmp_path / "scans"


def flags(root):
    return ("--root", root, "--size", 24, "--channels", 1, "--modality", "ct", "--task", "stroke")


def test_prepare_removes_duplicates_and_writes_a_table_and_the_split(scans, tmp_path, capsys):
    assert drifa_data("prepare", *flags(scans), "--output", tmp_path / "set") == 0
    splits = open_prepared(tmp_path / "set")
    assert sum(len(source) for source in splits.values()) == 21
    assert len(splits["test"]) == 6
    assert "Training/ill/0.png" in (tmp_path / "set-duplicates.csv").read_text()
    assert json.loads((tmp_path / "set" / "split.json").read_text())["seed"] == 0
    assert "21 records written" in capsys.readouterr().err


def test_prepare_keeps_the_set_as_distributed_when_asked(scans, tmp_path):
    drifa_data("prepare", *flags(scans), "--output", tmp_path / "set", "--duplicates", "keep")
    assert sum(len(source) for source in open_prepared(tmp_path / "set").values()) == 22


def test_prepare_tells_or_quarantines_broken_files(scans, tmp_path, capsys):
    (scans / "Training" / "well" / "3.png").write_bytes(b"words")
    with pytest.raises(UserError, match=r"1 problem [\s\S]*well/3\.png[\s\S]*quarantine"):
        drifa_data("prepare", *flags(scans), "--output", tmp_path / "a")
    policy = ("--on-problem", "quarantine")
    assert drifa_data("prepare", *flags(scans), "--output", tmp_path / "b", *policy) == 0
    listed = tmp_path / "b" / "quarantine.csv"
    assert "well/3.png" in listed.read_text()
    assert f"What was left out is listed in {listed}." in capsys.readouterr().err


def test_verify_fails_on_leaks_and_passes_after_prepare(scans, tmp_path, capsys):
    report = tmp_path / "report.json"
    assert drifa_data("verify", *flags(scans), "--json", report) == 1
    said = capsys.readouterr().out
    assert "ERROR   duplicates: 1 held-out records are pixel-identical" in said
    content = json.loads(report.read_text())
    assert content["synthetic"] is False
    assert {c["name"]: c["status"] for c in content["checks"]}["duplicates"] == "error"
    drifa_data("prepare", *flags(scans), "--output", tmp_path / "set")
    assert drifa_data("verify", "--root", tmp_path / "set", "--format", "prepared") == 0


def test_stats_counts_classes_and_levels(scans, capsys):
    assert drifa_data("stats", *flags(scans)) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["splits"]["test"]["classes"] == {"stroke": {"ill": 3, "well": 3}}
    assert content["splits"]["test"]["modalities"]["ct"]["shape"] == [24, 24, 1]
    assert 120 < content["splits"]["train"]["modalities"]["ct"]["mean"] < 135


@pytest.mark.parametrize("suffix", [".png", ".html"])
def test_view_draws_a_contact_sheet(scans, tmp_path, suffix):
    path = tmp_path / f"sheet{suffix}"
    assert drifa_data("view", *flags(scans), "--output", path) == 0
    if suffix == ".png":
        with Image.open(path) as sheet:
            assert sheet.height > 5 * 96
    else:
        text = path.read_text()
        assert text.count("<tr>") == 1 + 6
        assert "paper" in text


def test_view_marks_phantoms_as_synthetic(tmp_path):
    path = tmp_path / "sheet.html"
    overrides = [
        ("data.phantoms.num_train", "40"),
        ("data.phantoms.num_validation", "20"),
        ("data.phantoms.num_test", "20"),
    ]
    config = ("--config", "configs/brain.py:quick")
    drifa_data("view", *config, "--output", path, "--per-class", 1, overrides=overrides)
    assert "SYNTHETIC" in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("stats",), "Give either --config FILE.py or --root FOLDER"),
        (("stats", "--root", "x", "--config", "y"), "Give either"),
        (("stats", "--root", "nowhere"), "nowhere does not exist"),
        (("view", "--root", "x", "--output", "sheet.gif"), "must end in .png or .html"),
        (("view", "--root", "x", "--output", "s.png", "--augmentation", "wild"), "choose one of"),
    ],
)
def test_wrong_flags_are_named(arguments, words):
    with pytest.raises(UserError, match=words):
        drifa_data(*arguments)


def test_overrides_need_a_configuration(scans):
    with pytest.raises(UserError, match="give --config as well"):
        drifa_data("stats", *flags(scans), overrides=[("data.split_seed", "1")])


@pytest.fixture
def folders(tmp_path):
    def write(counts):
        generator = np.random.Generator(np.random.Philox(1))
        for folder, count in counts.items():
            (tmp_path / "drawn" / folder).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (16, 16), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "drawn" / folder / f"{number}.png")
        return tmp_path / "drawn"

    return write


def test_verify_shows_names_as_text_that_a_terminal_does_not_obey(folders, capsys):
    root = folders({"\x1b[31mred": 6, "nor\u202emal": 6})
    drifa_data("verify", "--root", root, "--size", 16, "--channels", 1)
    told = capsys.readouterr()
    assert "[31mred" in told.out
    assert not {"\x1b", "\u202e"} & set(told.out + told.err)


def test_what_is_left_out_or_guessed_is_told_by_verify_and_prepare(folders, tmp_path, capsys):
    root = folders({"scans": 12})
    rows = "".join(f"r{k},scans/{k}.png,{('x', 'X', 'y')[k % 3]}\n" for k in range(12))
    (root / "t.csv").write_text("id,image,label\n" + rows + "r12,,y\n")
    given = ["--root", root, "--format", "manifest", "--table", "t.csv", "--size", 16]
    given += ["--id-column", "id", "--image-column", "image", "--channels", 1]
    assert drifa_data("verify", *given) == 0
    assert drifa_data("prepare", *given, "--output", tmp_path / "set") == 0
    told = capsys.readouterr()
    for line in ("left out: 1 rows without image", "'x' and 'X' of label are one class"):
        assert line in told.out
        assert f"NOTE: {root / 't.csv'}: {line}" in told.err
    assert drifa_data("verify", "--root", tmp_path / "set", "--format", "prepared") == 0
    assert "left out: 1 rows without image" in capsys.readouterr().out


def test_one_class_is_refused_by_verify_and_prepare_as_by_train(folders, tmp_path, capsys):
    given = ["--root", folders({"all": 12}), "--size", 16, "--channels", 1]
    words = r"has one class only \(all\), so there is nothing to tell apart"
    assert drifa_data("verify", *given) == 1
    assert re.search(words, capsys.readouterr().out)
    with pytest.raises(UserError, match=words):
        drifa_data("prepare", *given, "--output", tmp_path / "set")
    assert not (tmp_path / "set").exists()
