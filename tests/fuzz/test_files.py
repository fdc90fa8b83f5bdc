"""Mutated files are read, or refused by name; `benchmarks/fuzz.py` is the long run of the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
# Runs and exports cost a second each; the long run has them.
KINDS = (
    *("png", "jpeg", "tiff", "tiff-lzw", "webp", "gif", "jp2", "dicom", "nifti", "nifti-gz"),
    *("npz", "zip", "csv", "xlsx", "parquet", "hdf5", "keras", "safetensors"),
)
NUMBER = 12


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks up the module that it stands in.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "fuzz_benchmark", module)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", KINDS)
def test_mutated_files_are_read_or_refused_by_name(name, fuzz, tmp_path):
    kind = fuzz.KINDS[name]
    (tmp_path / "seeds").mkdir()
    seeds = kind.seeds(tmp_path / "seeds")
    endings = []
    for number in range(NUMBER):
        folder = tmp_path / str(number)
        folder.mkdir()
        endings.append(fuzz.attempt(kind, fuzz.input_of(seeds, name, 1, number), folder))
    assert set(endings) <= {"read", "refused"}, endings


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"hdf5", "keras"}))
def test_the_files_that_are_mutated_are_valid(name, fuzz, tmp_path):
    kind = fuzz.KINDS[name]
    (tmp_path / "seeds").mkdir()
    for number, data in enumerate(kind.seeds(tmp_path / "seeds")):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert fuzz.attempt(kind, data, folder) == "read"


def test_other_exceptions_and_remains_are_failures(fuzz, tmp_path):
    def wrong(path, folder):
        raise KeyError("name")

    (tmp_path / "a").mkdir()
    ended = fuzz.attempt(fuzz.Kind("f", list, wrong, 1), b"", tmp_path / "a")
    assert ended.startswith("FAILED: KeyError at test_files.py")


def test_an_input_is_a_function_of_seed_kind_and_number(fuzz):
    seeds = [bytes(range(256))]
    assert fuzz.input_of(seeds, "png", 1, 5) == fuzz.input_of(seeds, "png", 1, 5)
    others = {
        fuzz.input_of(seeds, *asked) for asked in (("png", 1, 6), ("png", 2, 5), ("gif", 1, 5))
    }
    assert len(others | {fuzz.input_of(seeds, "png", 1, 5)}) == 4
    draw = np.random.Generator(np.random.Philox(0))
    assert fuzz.mutated(b"", draw) == b""
