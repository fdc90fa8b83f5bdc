"""The process that decodes: every kind of file, and whatever is made to break a reader."""

from __future__ import annotations

import asyncio
import io
import os
import struct
import subprocess
import sys
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from drifa_jax.data.readers.any_file import read_any
from drifa_jax.data.record import ModalitySpec, VolumeSpec
from drifa_jax.predict.reading import Reading, read_item
from drifa_jax.predict.restored import Description
from drifa_jax.serve.decoding import Decoders
from drifa_jax.serve.memory_files import MemoryFile
from drifa_jax.serve.options import Limits, Refused
from drifa_jax.serve.uploads import Form, Upload
from tests.data.readers.dicom_writing import write
from tests.serve.conftest import png, wait_for

MRI = ModalitySpec("mri", 16, 16, 1)
SCAN = VolumeSpec("scan", 4, 8, 8, 1)


def upload(content: bytes, suffix: str) -> Upload:
    file = MemoryFile()
    file.write(content)
    return Upload(file, suffix)


@contextmanager
def started(limits: Limits = Limits(decoders=1), **readings: Reading):  # noqa: B008
    specs = tuple(spec for spec in (MRI, SCAN) if spec.name in readings)
    restarts = []
    decoders = Decoders(
        Description(specs, readings, {}, False, False, ""), limits, lambda: restarts.append(1)
    )
    decoders.restarts = restarts

    def decode(numbers=None, **files):
        form = Form(files={m: [upload(*one) for one in several] for m, several in files.items()})
        try:
            return asyncio.run(decoders.decode(form, numbers or {}))
        finally:
            form.close()

    decoders.ask = decode
    yield decoders
    decoders.close()


@pytest.fixture(scope="module")
def decoders():
    with started(mri=Reading("any"), scan=Reading("any", volume=True)) as found:
        yield found


def refusal(ask, **files) -> Refused:
    with pytest.raises(Refused) as raised:
        ask(**files)
    return raised.value


def nifti_file(path: Path) -> bytes:
    import nibabel

    values = np.arange(10 * 12 * 8, dtype=np.int16).reshape(10, 12, 8)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0])), path)
    return path.read_bytes()


def test_a_picture_is_read_as_by_predict(decoders):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20), np.uint8)
    found = decoders.ask(mri=[(png(pixels), ".png")])
    assert found.pixels["mri"].shape == MRI.shape
    assert found.facts["mri"]["size"] == [30, 20]


def test_dicom_is_read_as_by_predict_and_its_window_told(decoders, tmp_path):
    path = tmp_path / "a.dcm"
    pixels = np.arange(400, dtype=np.int16).reshape(20, 20)
    write(path, pixels, WindowCenter=100, WindowWidth=150, Modality="CT")
    found = decoders.ask(mri=[(path.read_bytes(), "")])
    np.testing.assert_array_equal(found.pixels["mri"], read_any(str(path), MRI, fit="stretch"))
    facts = found.facts["mri"]
    assert facts["window"] == "window of the file: centre 100, width 150"
    assert "says that it is CT" in facts["notes"][0]


def test_a_slice_of_a_volume_is_read_as_by_predict(decoders, tmp_path):
    path = tmp_path / "a.nii.gz"
    content = nifti_file(path)
    found = decoders.ask({"mri": 3}, mri=[(content, ".nii.gz")])
    expected = read_any(f"{path}:3", MRI, fit="stretch")
    np.testing.assert_array_equal(found.pixels["mri"], expected)
    assert (found.facts["mri"]["slice"], found.facts["mri"]["slices"]) == (3, 8)
    assert decoders.ask(mri=[(content, ".nii.gz")]).facts["mri"]["slice"] == 4


def test_a_volume_is_read_as_by_predict(decoders, tmp_path):
    path = tmp_path / "a.nii"
    found = decoders.ask(scan=[(nifti_file(path), ".nii")])
    expected = read_item(path, SCAN, Reading("any", volume=True), "scan")
    np.testing.assert_array_equal(found.pixels["scan"], expected)


def test_a_series_is_read_from_its_files(decoders, tmp_path):
    files = []
    for number in range(3):
        path = tmp_path / f"{number}.dcm"
        write(
            path,
            np.full((12, 12), 10 * number, np.int16) + np.arange(12, dtype=np.int16),
            ImagePositionPatient=[0, 0, number],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[1, 1],
            SeriesInstanceUID="1.2.3",
            InstanceNumber=number,
        )
        files.append((path.read_bytes(), ".dcm"))
    found = decoders.ask(scan=files)
    expected = read_item(tmp_path, SCAN, Reading("any", volume=True), "scan")
    np.testing.assert_array_equal(found.pixels["scan"], expected)


def test_a_bomb_of_deflated_dicom_is_refused(decoders):
    from pydicom.dataset import FileMetaDataset
    from pydicom.filewriter import write_file_meta_info

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    meta.MediaStorageSOPInstanceUID = "1.2"
    file = io.BytesIO(bytes(128) + b"DICM")
    file.seek(132)
    write_file_meta_info(file, meta)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    # After a full flush the same bytes may be repeated: 600 MiB in as many kilobytes.
    file.write((packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)) * 600)
    assert len(file.getvalue()) < 2**20
    said = refusal(decoders.ask, mri=[(file.getvalue(), ".dcm")])
    assert said.status == 422 and "decompression bomb" in said.reason


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(decoders):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    huge = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99)))
    assert "decompression bomb" in refusal(decoders.ask, mri=[(huge, ".png")]).reason


def test_one_case_leaves_nothing_for_the_next(decoders):
    decoders.ask(mri=[(png(np.zeros((9, 9), np.uint8)), ".png")])
    process = decoders._idle.get()
    decoders._idle.put(process)
    wait_for(lambda: not list(Path(process._folder).iterdir()))


def test_who_decodes_may_write_no_file(tmp_path):
    code = (
        "import os, signal, sys; from drifa_jax.serve.decoder import _limit; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); _limit(5, 3 * 2**30); "
        "os.write(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY), b'a case')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "written")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert "File too large" in ran.stderr
    assert (tmp_path / "written").read_bytes() == b""


def test_a_case_beyond_its_memory_or_time_is_refused_and_the_next_is_read():
    large = png(np.zeros((9000, 9000), np.uint8))
    small = png(np.zeros((9, 9), np.uint8))
    with started(Limits(decoders=1, decode_bytes=400 * 2**20), mri=Reading()) as few:
        said = refusal(few.ask, mri=[(large, ".png")])
        assert said.status == 422 and ("memory" in said.reason)
        assert few.ask(mri=[(small, ".png")]).pixels["mri"].shape == MRI.shape


def test_a_decoder_that_hangs_is_ended_and_started_again():
    with started(Limits(decoders=1, decode_seconds=0.5), mri=Reading()) as decoders:
        process = decoders._idle.get()
        os.kill(process._process.pid, 19)  # it stops, as one that waits for ever would
        decoders._idle.put(process)
        began = time.monotonic()
        assert (
            "within 0.5 s"
            in refusal(decoders.ask, mri=[(png(np.zeros((9, 9), np.uint8)), "")]).reason
        )
        assert time.monotonic() - began < 10 and decoders.restarts == [1]
        assert decoders.ask(mri=[(png(np.zeros((9, 9), np.uint8)), ".png")]).facts
