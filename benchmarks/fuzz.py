"""Mutated files through every reader of this package: read, or refused by name, and nothing else.

    python benchmarks/fuzz.py                          # the table of docs/data.md, half an hour
    python benchmarks/fuzz.py --only dicom --number 500 --seed 7
    python benchmarks/fuzz.py --only png --one 123     # one input again, with its traceback

Each kind has small valid files, made here, whose bytes are flipped, cut, repeated, moved and
overwritten by what readers trip over (0, -1, the largest integers). Input `n` of a kind is a pure
function of (seed, kind, n). It is read in a process of its own kind, and may end in two ways: it is
read, or a `UserError` names the file. Counted as failures: any other exception, more than 5 seconds
(of the processor, since machines are shared) or 60 seconds on the clock, more than 1 GiB of memory
above the start, anything opened for writing outside the input's own folder, and a folder left
behind by what was refused. The script ends with exit code 1 where there is any.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from PIL import Image

from drifa_jax.config import ModalityConfig
from drifa_jax.data.record import ModalitySpec
from drifa_jax.errors import UserError

SECONDS, CLOCK_SECONDS, MEMORY_BYTES = 5.0, 60.0, 2**30
SPEC = ModalitySpec("ct", 16, 16, 1)
GOLDEN_RUN = Path(__file__).parents[1] / "tests" / "golden" / "finished" / "two-items"
TRIPS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
      name: of the mutated file.
      seeds: folder -> valid files of the kind, as bytes.
      read: path, an empty folder beside it -> what a command does with the file.
      number: of inputs in the long run.
      kept: a valid file -> how many bytes at its beginning are not changed.
    """

    name: str
    seeds: Callable[[Path], list[bytes]]
    read: Callable[[Path, Path], Any]
    number: int
    kept: Callable[[bytes], int] = lambda data: 0


def mutated(data: bytes, draw: np.random.Generator) -> bytes:
    """A file with one change, or some more."""
    changed = bytearray(data)
    for _ in range(min(8, int(draw.geometric(0.5)))):
        size = len(changed)
        if not size:
            break
        # Headers stand at the beginning, and directories at the end.
        place = int(draw.integers(0, size) if draw.random() < 0.5 else size * draw.random() ** 4)
        place = size - 1 - place if draw.random() < 0.15 else place
        length = int(draw.integers(1, max(2, min(size, 64))))
        what = draw.integers(0, 8)
        if what == 0:
            changed[place] ^= 1 << int(draw.integers(0, 8))
        elif what == 1:
            changed[place] = int(draw.integers(0, 256))
        elif what == 2:
            width = int(draw.choice([1, 2, 4, 8]))
            value = int(draw.choice(np.array(TRIPS, object))) & (2 ** (8 * width) - 1)
            changed[place : place + width] = value.to_bytes(
                width, "little" if draw.random() < 0.5 else "big"
            )
        elif what == 3:
            del changed[place : place + length]
        elif what == 4:
            changed[place:place] = draw.bytes(length)
        elif what == 5:
            changed[place:place] = changed[place : place + length] * int(draw.integers(1, 9))
        elif what == 6 and draw.random() < 0.3:
            del changed[place:]
        else:
            other = int(draw.integers(0, size))
            changed[place : place + length] = changed[other : other + length]
    return bytes(changed)


def _pictures(format: str, modes: str, **options: Any) -> Callable[[Path], list[bytes]]:
    def seeds(folder: Path) -> list[bytes]:
        del folder
        found = []
        for mode in modes.split():
            pixels = np.arange(24 * 20 * 3).reshape(24, 20, 3).astype(np.uint8)
            image = Image.fromarray(pixels).convert("L" if mode == "I;16" else mode)
            image = image.convert("I;16") if mode == "I;16" else image
            file = io.BytesIO()
            image.save(file, format, **options)
            found.append(file.getvalue())
        return found

    return seeds


def _read_picture(path: Path, folder: Path) -> None:
    from drifa_jax.data.decode import decode_file

    decode_file(path, SPEC)


def _dicom_seeds(folder: Path) -> list[bytes]:
    from pydicom.data import get_testdata_file

    names = (
        *("CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "SC_rgb_jpeg_dcmtk.dcm", "color-pl.dcm"),
        *("MR_small_RLE.dcm", "emri_small.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm", "image_dfl.dcm"),
    )
    found = [get_testdata_file(name, download=False) for name in names]
    return [Path(path).read_bytes() for path in found if path and Path(path).stat().st_size < 5e5]


def _read_dicom(path: Path, folder: Path) -> None:
    from drifa_jax.data.readers import dicom

    header = dicom.read_header(path)
    dicom.read_frame(path, header.planes[-1].frame)


def _nifti_seeds(folder: Path) -> list[bytes]:
    import nibabel

    voxels = np.arange(9 * 8 * 7).reshape(9, 8, 7)
    found = []
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        for dtype in (np.uint8, np.int16, np.float32):
            nibabel.save(kind(voxels.astype(dtype), np.diag([2, 2, 3, 1])), folder / "v.nii")
            found.append((folder / "v.nii").read_bytes())
    return found


def _nifti_gz_seeds(folder: Path) -> list[bytes]:
    import gzip

    return [gzip.compress(data, mtime=0) for data in _nifti_seeds(folder)]


def _read_nifti(path: Path, folder: Path) -> None:
    from drifa_jax.data.readers import nifti

    numbers = nifti.slice_numbers(path)
    nifti.read_image(path, numbers[0], SPEC, fit="stretch")


def _npz_seeds(folder: Path) -> list[bytes]:
    arrays = {}
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        arrays[f"{split}_images"] = np.arange(count * 64, dtype=np.uint8).reshape(count, 8, 8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2)[:, None]
    found = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, **arrays)
        found.append(file.getvalue())
    return found


def _modality(path: Path, format: str, **fields: Any) -> ModalityConfig:
    return ModalityConfig(
        height=16, width=16, channels=1, root=str(path), format=format, task="dx", **fields
    )


def _read_npz(path: Path, folder: Path) -> None:
    from drifa_jax.data.sources.opening import scan_modality

    records = scan_modality("ct", _modality(path, "npz", classes=("a", "b")))
    _ = records[0], records[len(records) - 1]


def _zip_seeds(folder: Path) -> list[bytes]:
    found = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            for name in ("a/1.png", "a/2.png", "b/1.png", "b/deep/2.png"):
                archive.writestr(name, _pictures("PNG", "L")(folder)[0])
        found.append(file.getvalue())
    return found


def _read_archive(path: Path, folder: Path) -> None:
    from drifa_jax.data.archive import unpack

    out = folder / "unpacked"
    try:
        unpack(path, out)
    except UserError:
        if any(folder.iterdir()):
            raise AssertionError(f"left behind: {sorted(folder.iterdir())}") from None
        raise


def _table_text(folder: Path) -> list[bytes]:
    rows = [f"r{k},im{k}.png,{'ab'[k % 2]},{k % 4},{20 + k}" for k in range(8)]
    text = "\n".join(["id,image,label,patient,age", *rows]) + "\n"
    quoted = text.replace("a,", '"a, ""quoted""",')
    return [text.encode(), text.replace(",", ";").encode("utf-8-sig"), quoted.encode()]


def _xlsx_seeds(folder: Path) -> list[bytes]:
    import openpyxl

    book = openpyxl.Workbook()
    for line in _table_text(folder)[0].decode().splitlines():
        book.active.append(line.split(","))
    book.save(folder / "t.xlsx")
    return [(folder / "t.xlsx").read_bytes()]


def _parquet_seeds(folder: Path) -> list[bytes]:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [line.split(",") for line in _table_text(folder)[0].decode().splitlines()]
    table = pa.table({name: list(cells) for name, *cells in zip(*rows, strict=True)})
    parquet.write_table(table, folder / "t.parquet")
    return [(folder / "t.parquet").read_bytes()]


def _read_manifest(path: Path, folder: Path) -> None:
    from drifa_jax.data.sources.opening import open_modality
    from drifa_jax.data.splits import shares

    for k in range(8):
        (folder / f"im{k}.png").write_bytes(_pictures("PNG", "L")(folder)[0])
    config = _modality(
        folder, "manifest", table=str(path), id_column="id", image_column="image",
        group_column="patient",
    )  # fmt: skip
    for records in open_modality("ct", config, shares(0.2, 0.2)).values():
        _ = records[0]


def _network() -> Any:
    from drifa_jax.models.description import NetworkDescription
    from drifa_jax.network_options import NetworkOptions

    return NetworkDescription(
        {"mri": 1}, {"dx": 2}, NetworkOptions(width=2, backbone="resnet10", padding="same")
    )


def _safetensors_seeds(folder: Path) -> list[bytes]:
    from safetensors.numpy import save

    from drifa_jax.interop.torch_weights import torch_slots

    return [save({s.name: np.zeros(s.shape, np.float32) for s in torch_slots(_network())})]


def _read_safetensors(path: Path, folder: Path) -> None:
    from drifa_jax.interop.torch_weights import read_torch

    read_torch(path, _network())


def _hdf5_seeds(folder: Path) -> list[bytes]:
    import h5py

    with h5py.File(folder / "w.h5", "w") as file:
        for k in range(3):
            file[f"layers/conv2d_{k}/vars/0"] = np.zeros((3, 3, 1, 2), np.float32)
            file.create_dataset(
                f"layers/dense_{k}/vars/0", data=np.ones((40, 4), np.float32), compression="gzip"
            )
    return [(folder / "w.h5").read_bytes()]


def _keras_seeds(folder: Path) -> list[bytes]:
    layers = [{"class_name": "Conv2D", "config": {"name": "conv2d"}, "inbound_nodes": []}]
    content = {"class_name": "Functional", "config": {"name": "m", "layers": layers}}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("config.json", json.dumps(content))
        archive.writestr("model.weights.h5", _hdf5_seeds(folder)[0])
    return [file.getvalue()]


def _read_keras(path: Path, folder: Path) -> None:
    from drifa_jax.interop.keras import read_keras

    read_keras(path, _network())


def _drifa_seeds(folder: Path) -> list[bytes]:
    from drifa_jax.predict.export import export
    from drifa_jax.predict.predictor import load

    export(load(GOLDEN_RUN, num_samples=2, post_processing=False), folder / "g.drifa")
    return [(folder / "g.drifa").read_bytes()]


def _read_drifa(path: Path, folder: Path) -> None:
    from drifa_jax.predict.exported_predictor import ExportedPredictor

    ExportedPredictor(path, post_processing=False)


def _run_seeds(folder: Path) -> list[bytes]:
    """Each file of a finished run, with its name before it."""
    files = sorted(path for path in GOLDEN_RUN.rglob("*") if path.is_file())
    names = [path.relative_to(GOLDEN_RUN).as_posix().encode() for path in files]
    return [
        struct.pack("<H", len(name)) + name + path.read_bytes()
        for name, path in zip(names, files, strict=True)
        if path.name != "answers.json"
    ]


def _name_length(data: bytes) -> int:
    return 2 + struct.unpack("<H", data[:2])[0]


def _read_run(path: Path, folder: Path) -> None:
    from drifa_jax.predict.restored import restore

    data = path.read_bytes()
    length = _name_length(data)
    changed = folder / "run" / os.fsdecode(data[2:length])
    shutil.copytree(GOLDEN_RUN, folder / "run")
    changed.write_bytes(data[length:])
    restore([folder / "run"])


KINDS = {
    "png": Kind("f.png", _pictures("PNG", "1 L P RGB RGBA I;16"), _read_picture, 3000),
    "jpeg": Kind("f.jpg", _pictures("JPEG", "L RGB CMYK", quality=80), _read_picture, 2500),
    "tiff": Kind("f.tif", _pictures("TIFF", "1 L RGB I;16 F"), _read_picture, 2000),
    "tiff-lzw": Kind(
        "f.tif", _pictures("TIFF", "L RGB", compression="tiff_lzw"), _read_picture, 1000
    ),
    "webp": Kind("f.webp", _pictures("WEBP", "RGB RGBA"), _read_picture, 500),
    "gif": Kind("f.gif", _pictures("GIF", "L P"), _read_picture, 500),
    "jp2": Kind("f.jp2", _pictures("JPEG2000", "L RGB"), _read_picture, 500),
    "dicom": Kind("f.dcm", _dicom_seeds, _read_dicom, 3000),
    "nifti": Kind("f.nii", _nifti_seeds, _read_nifti, 2000),
    "nifti-gz": Kind("f.nii.gz", _nifti_gz_seeds, _read_nifti, 1000),
    "npz": Kind("f.npz", _npz_seeds, _read_npz, 2000),
    "zip": Kind("f.zip", _zip_seeds, _read_archive, 1500),
    "csv": Kind("f.csv", _table_text, _read_manifest, 1500),
    "xlsx": Kind("f.xlsx", _xlsx_seeds, _read_manifest, 500),
    "parquet": Kind("f.parquet", _parquet_seeds, _read_manifest, 1000),
    "hdf5": Kind("f.h5", _hdf5_seeds, _read_keras, 1000),
    "keras": Kind("f.keras", _keras_seeds, _read_keras, 500),
    "safetensors": Kind("f.safetensors", _safetensors_seeds, _read_safetensors, 1000),
    "drifa": Kind("f.drifa", _drifa_seeds, _read_drifa, 500),
    "run": Kind("f.run", _run_seeds, _read_run, 100, _name_length),
}

FOREIGN = ("hdf5", "keras")
"""Whose seeds are whole files of another network, which are refused at the end."""

_writes: list[str] = []


def _watch(event: str, arguments: tuple) -> None:
    """An audit hook: remembers what is opened for writing, made, moved or removed."""
    if event == "open":
        path, mode, flags = arguments
        writes = isinstance(mode, str) and set(mode) & set("wax+")
        if writes or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _writes.append(str(path))
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink"):
        # A name relative to an open folder is of what `shutil.rmtree` has entered.
        if event not in ("os.remove", "os.rmdir") or arguments[-1] == -1:
            _writes.append(str(arguments[0]))


def attempt(kind: Kind, data: bytes, folder: Path) -> str:
    """How one input ends: "read", "refused", or a failure in words.

    Test: tests/fuzz/test_files.py.
    """
    path, beside = folder / kind.name, folder / "beside"
    beside.mkdir()
    path.write_bytes(data)
    _writes.clear()
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.read(path, beside)
        ended = "read"
    except UserError as error:
        ended = "refused" if str(error).strip() else "FAILED: refused without a word"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)
        own = [f for f in place if "drifa_jax" in f.filename] or place
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
        ended = f"FAILED: {type(error).__name__} at {where}: {str(error)[:120]}"
    seconds = time.process_time() - start
    if seconds > SECONDS:
        ended = f"FAILED: took {seconds:.1f} s ({ended})"
    allowed = (str(folder), "/dev/null", tempfile.gettempdir() + "/drifa-fuzz")
    outside = [w for w in _writes if not os.path.abspath(w).startswith(allowed) and not w.isdigit()]
    if outside:
        ended = f"FAILED: wrote {outside[0]} ({ended})"
    return ended


def input_of(seeds: list[bytes], name: str, seed: int, number: int) -> bytes:
    """Input `number` of a kind."""
    draw = np.random.Generator(np.random.Philox(key=[seed, int.from_bytes(name.encode()[:7])]))
    draw = np.random.Generator(draw.bit_generator.jumped(number + 1))
    data = seeds[number % len(seeds)]
    kept = KINDS[name].kept(data)
    return data[:kept] + mutated(data[kept:], draw)


def _work(name: str, seed: int, numbers: range, pipe: Any) -> None:
    """A process that reads inputs and tells how each ended."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    kind = KINDS[name]
    with tempfile.TemporaryDirectory(prefix="drifa-fuzz") as top:
        home = Path(top) / "seeds"
        home.mkdir()
        seeds = kind.seeds(home)
        # The first reading loads libraries, which is no cost of an input.
        for k, data in enumerate(seeds):
            (Path(top) / f"valid{k}").mkdir()
            pipe.send((-1, attempt(kind, data, Path(top) / f"valid{k}")))
        sys.addaudithook(_watch)
        floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        for number in numbers:
            folder = Path(top) / str(number)
            folder.mkdir()
            pipe.send((number, ""))
            ended = attempt(kind, input_of(seeds, name, seed, number), folder)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - floor
            if grown > MEMORY_BYTES:
                ended = f"FAILED: took {grown / 2**30:.1f} GiB ({ended})"
            pipe.send((number, ended))
            shutil.rmtree(folder, ignore_errors=True)
            if grown > MEMORY_BYTES:
                break
    pipe.send((-2, ""))


def run_kind(name: str, number: int, seed: int) -> tuple[Counter, list[str]]:
    """How the inputs of one kind ended, and every failure."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    context, following = multiprocessing.get_context("spawn"), 0
    while following < number:
        ours, theirs = context.Pipe()
        numbers = range(following, number)
        process = context.Process(target=_work, args=(name, seed, numbers, theirs), daemon=True)
        process.start()
        theirs.close()
        begun, patience = None, 600.0
        while True:
            try:
                if not ours.poll(patience):
                    failures.append(f"{name} {begun}: FAILED: hung for {patience:.0f} s")
                    break
                place, ended = ours.recv()
            except EOFError:
                failures.append(f"{name} {begun}: FAILED: the process died")
                break
            if place == -2:
                break
            if place == -1:
                if ended != "read" and name not in FOREIGN:
                    failures.append(f"{name}: a valid file ended as: {ended}")
                    counts["failed"] += 1
                continue
            begun, patience = place, CLOCK_SECONDS
            if ended:
                following = place + 1
                counts["failed" if ended.startswith("FAILED") else ended] += 1
                if ended.startswith("FAILED"):
                    failures.append(f"{name} {place}: {ended}")
        process.kill()
        process.join()
        if begun is None:
            raise SystemExit(f"{name}: the process ended before its first input: {failures}")
        if following <= begun:
            following, counts["failed"] = begun + 1, counts["failed"] + 1
    return counts, failures


def main() -> int:
    """Runs the kinds and prints the table; 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--number", type=int, help="inputs of each kind; as the table otherwise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", type=int, help="read this input alone, and show its traceback")
    options = parser.parse_args()
    if options.one is not None:
        kind, folder = KINDS[options.only[0]], Path(tempfile.mkdtemp(prefix="drifa-fuzz"))
        data = input_of(kind.seeds(folder), options.only[0], options.seed, options.one)
        (folder / kind.name).write_bytes(data)
        (folder / "beside").mkdir()
        print(folder / kind.name)
        kind.read(folder / kind.name, folder / "beside")
        return 0
    everything: list[str] = []
    total: Counter[str] = Counter()
    print("| kind | inputs | read | refused | failed | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in options.only:
        start = time.perf_counter()
        counts, failures = run_kind(name, options.number or KINDS[name].number, options.seed)
        everything += failures
        total += counts
        figures = [counts[key] for key in ("read", "refused", "failed")]
        row = " | ".join(map(str, [name, sum(figures), *figures]))
        print(f"| {row} | {time.perf_counter() - start:.0f} |", flush=True)
        for failure in failures[:20]:
            print(f"    {failure}", file=sys.stderr, flush=True)
    print(
        f"| all | {sum(total[k] for k in ('read', 'refused', 'failed'))} | "
        + " | ".join(str(total[key]) for key in ("read", "refused", "failed"))
        + " | |"
    )
    return 1 if everything else 0


if __name__ == "__main__":
    sys.exit(main())
