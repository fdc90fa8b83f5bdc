"""Folders in buckets; the bucket is a folder of this machine, behind pyarrow's own interface.

`pytest -m buckets tests/test_buckets.py` asks servers that emulate S3 and Google's storage
(`pip install 'moto[server]' gcp-storage-emulator`, into any environment on the path).
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from pyarrow import fs

from drifa_jax import buckets, cli
from drifa_jax.buckets import BucketFolder, local_copy, local_folder, url_of
from drifa_jax.config import DataConfig, ModalityConfig
from drifa_jax.data.dataset import open_dataset
from drifa_jax.data.sources.opening import scan_modality
from drifa_jax.errors import UserError
from drifa_jax.processes import SaidByAll
from drifa_jax.train.bucket_run import BucketRun, TakenOver, kept_in_bucket

URL = "s3://scans/runs/brain"


class Server:
    """What is asked of pyarrow's file systems; folders need not be made first."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._system = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
        self.get_file_info = self._system.get_file_info
        self.open_input_stream = self._system.open_input_stream
        self.delete_file = self._system.delete_file

    def open_output_stream(self, path):
        (self._folder / path).parent.mkdir(parents=True, exist_ok=True)
        return self._system.open_output_stream(path)


@pytest.fixture
def scans(tmp_path, monkeypatch) -> Path:
    """The folder that stands for the bucket `scans`; copies go below the test's own folder."""
    (tmp_path / "server" / "scans").mkdir(parents=True)
    monkeypatch.setattr(buckets, "_file_system", lambda *_: Server(tmp_path / "server"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "server" / "scans"


def written(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def held(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_bucket_is_named_by_its_scheme_also_where_a_path_swallowed_a_slash():
    assert url_of("gs://scans/a/b/") == "gs://scans/a/b"
    assert url_of(Path("s3://scans/a")) == "s3://scans/a"
    assert url_of("/gs/scans") is url_of("gs") is url_of(Path("runs/s3:/x")) is None


def test_a_copy_follows_the_bucket_and_keeps_what_was_written_beside_it(scans):
    there = written(scans / "set", **{"a.txt": "1", "b/c.txt": "2"})
    copy = local_copy("s3://scans/set")
    (copy / "own.txt").write_text("kept")
    unchanged = (copy / "a.txt").stat().st_ino
    written(there, **{"b/c.txt": "other"})
    written(there, **{"d.txt": "3"})
    (there / "b/c.txt").rename(there / "b/e.txt")
    assert local_copy("s3://scans/set") == copy
    shown = {name: text for name, text in held(copy).items() if not name.startswith(".")}
    assert shown == {"a.txt": "1", "b/e.txt": "other", "d.txt": "3", "own.txt": "kept"}
    assert (copy / "a.txt").stat().st_ino == unchanged


def test_data_are_read_from_a_bucket(scans):
    for label in ("no", "yes"):
        (scans / "mri" / label).mkdir(parents=True)
        for number in range(2):
            pixels = np.full((8, 8), 40 * number, np.uint8)
            Image.fromarray(pixels).save(scans / "mri" / label / f"{number}.png")
    config = ModalityConfig(height=8, width=8, channels=1, root="s3://scans/mri", task="tumour")
    assert len(scan_modality("mri", config)) == 4


def test_a_bucket_of_several_modalities_and_their_tables_is_listed_once(scans, monkeypatch):
    rows = "".join(f"r{k},{k}.png,{'ab'[k % 2]},{k}\n" for k in range(12))
    written(scans / "set", **{"t.csv": f"id,image,label,age\n{rows}"})
    for k in range(12):
        Image.fromarray(np.full((8, 8), 20 * k, np.uint8)).save(scans / "set" / f"{k}.png")
    listed, files = [], BucketFolder.files
    monkeypatch.setattr(BucketFolder, "files", lambda self: listed.append(self.url) or files(self))
    columns = {"id_column": "id", "image_column": "image", "label_column": "label"}
    modality = ModalityConfig(
        height=8,
        width=8,
        channels=1,
        root="s3://scans/set",
        format="manifest",
        table="t.csv",
        task="kind",
        numeric_columns=("age",),
        **columns,
    )
    config = DataConfig(
        source="files",
        modalities={"a": modality, "b": modality},
        pairing="paired",
        duplicates="keep",
        validation_fraction=0.3,
        test_fraction=0.3,
    )
    dataset = open_dataset(config)
    assert set(dataset.tables) == {"a_table", "b_table"} and listed == ["s3://scans/set"]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("AWS Error ACCESS_DENIED during HeadObject operation", "no right"),
        ("AWS Error NETWORK_CONNECTION during ListObjectsV2", "cannot be reached"),
        ("google::cloud::Status(PERMISSION_DENIED: Permanent error", "no right"),
    ],
)
def test_a_bucket_that_refuses_is_told_in_one_line(scans, monkeypatch, said, meant):
    def refuse(*_):
        raise OSError(said)

    folder = BucketFolder(URL)
    monkeypatch.setattr(folder._system, "get_file_info", refuse)
    with pytest.raises(UserError, match=f"{URL} cannot be read: .*{meant}"):
        folder.files()


def test_a_bucket_that_is_not_there_is_no_empty_folder(scans):
    assert BucketFolder("s3://scans/nothing").files() == {}
    for url, told in (("s3://other/x", "no such bucket"), ("s3://scans/nothing", "holds nothing")):
        with pytest.raises(UserError, match=told):
            local_copy(url)


def test_only_whole_checkpoints_are_sent_and_only_listed_ones_brought(scans, tmp_path):
    there = scans / "runs/brain"
    folder = written(
        tmp_path / "local",
        **{
            "checkpoints/4/model": "four",
            "checkpoints/8.orbax-checkpoint-tmp/model": "ei",
            "metrics.jsonl": "...",
            ".lock": "",
        },
    )
    run = BucketRun(URL, folder)
    run.bring()  # Nothing is there yet, so the run begins anew.
    assert not (folder / "checkpoints").exists()
    written(folder, **{"checkpoints/4/model": "four", "metrics.jsonl": "..."})
    written(folder, **{"checkpoints/8.orbax-checkpoint-tmp/model": "ei", ".lock": ""})
    run.send()
    assert held(there).keys() == {
        *("checkpoints/4/model", "checkpoints.json", "metrics.jsonl", "owner.json")
    }
    # The next one, of which a kill left half in the bucket.
    shutil.move(folder / "checkpoints/8.orbax-checkpoint-tmp", folder / "checkpoints/8")
    written(there, **{"checkpoints/8/mo": "e"})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    BucketRun(URL, elsewhere).bring()
    assert {name for name in held(elsewhere) if not name.startswith(".")} == {
        *("checkpoints/4/model", "metrics.jsonl")
    }


def test_a_checkpoint_that_the_run_deleted_goes_from_the_bucket_after_the_next_is_there(
    scans, tmp_path
):
    folder = tmp_path / "local"
    folder.mkdir()
    run = BucketRun(URL, folder)
    run.bring()
    written(folder, **{"checkpoints/4/model": "four"})
    run.send()
    shutil.rmtree(folder / "checkpoints/4")
    written(folder, **{"checkpoints/8/model": "eight"})
    run.send()
    there = held(scans / "runs/brain")
    assert {name for name in there if name.startswith("checkpoints/")} == {"checkpoints/8/model"}
    assert json.loads(there["checkpoints.json"]) == [8]


def test_who_starts_a_run_last_owns_it(scans, tmp_path):
    runs = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        runs.append(BucketRun(URL, tmp_path / name))
        runs[-1].bring()
    written(tmp_path / "first", **{"metrics.jsonl": "late"})
    with pytest.raises(TakenOver, match="started again elsewhere"):
        runs[0].send()
    assert "metrics.jsonl" not in held(scans / "runs/brain")
    runs[1].send()


def test_a_machine_that_wrote_last_goes_on_with_its_own_folder(scans):
    with kept_in_bucket(URL) as folder:
        written(folder, **{"checkpoints/4/model": "four"})
    written(folder, **{"checkpoints/8/model": "not sent before the kill"})
    with kept_in_bucket(URL) as again:
        assert again == folder == local_folder(URL)
        assert (again / "checkpoints/8/model").is_file()


def test_what_ended_a_run_is_told_even_if_the_bucket_fails_too(scans, capsys):
    with pytest.raises(ZeroDivisionError), kept_in_bucket(URL):
        written(scans / "runs/brain", **{"owner.json": "another"})
        raise ZeroDivisionError
    assert "started again elsewhere" in capsys.readouterr().err


def test_several_processes_cannot_train_into_a_bucket(scans, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(SaidByAll, match="gcsfuse"), kept_in_bucket(URL):
        pass


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "run", "--out", "gs://scans/report"),
        ("export", "run", "gs://scans/brain.drifa"),
        ("plan", "gs://scans/mri"),
        ("plan", "mri", "gs://scans/ct"),
        ("run", "plan.py", "--workdir", "gs://scans/run"),
    ],
)
def test_what_no_bucket_can_take_is_said(arguments, capsys):
    assert cli.main(arguments) == 1
    told = capsys.readouterr().err
    assert "gs://scans/" in told and "mount the bucket" in told


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(params=["s3", "gs", "s3 without rights"])
def emulated(request, monkeypatch, tmp_path):
    """The scheme of a server that runs, and holds the bucket `scans`."""
    name, port = request.param, free_port()
    address = f"http://127.0.0.1:{port}"
    program = shutil.which("gcp-storage-emulator" if name == "gs" else "moto_server")
    if program is None:
        pytest.skip("needs moto_server and gcp-storage-emulator on the path")
    arguments = ("start", "--host=127.0.0.1", f"--port={port}", "--in-memory")
    if name != "gs":
        arguments = ("-H", "127.0.0.1", "-p", str(port))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for variable, value in {
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": address,
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,
        # One request makes the bucket; from then on keys are looked at.
        **({"INITIAL_NO_AUTH_ACTION_COUNT": "1"} if "without" in name else {}),
    }.items():
        monkeypatch.setenv(variable, value)
    with subprocess.Popen([program, *arguments], stderr=subprocess.DEVNULL) as server:
        try:
            make = urllib.request.Request(f"{address}/scans", method="PUT")
            if name == "gs":
                make = urllib.request.Request(
                    f"{address}/storage/v1/b?project=p",
                    data=b'{"name": "scans"}',
                    headers={"Content-Type": "application/json"},
                )
            for _ in range(600):
                try:
                    urllib.request.urlopen(make, timeout=5).close()
                    break
                except (ConnectionError, urllib.error.URLError):
                    time.sleep(0.1)
            yield name
        finally:
            server.send_signal(signal.SIGKILL)


@pytest.mark.buckets
def test_a_run_goes_through_an_emulated_server(emulated, tmp_path):
    scheme, _, without_rights = emulated.partition(" ")
    url = f"{scheme}://scans/runs/brain"
    if without_rights:
        with pytest.raises(UserError, match=f"{url} cannot be read: .*credentials"):
            BucketFolder(url).files()
        return
    with pytest.raises(UserError, match="no such bucket"):
        BucketFolder(f"{scheme}://elsewhere/x").files()
    with kept_in_bucket(url) as folder:
        written(folder, **{"checkpoints/4/model": "four", "metrics.jsonl": "..." * 100_000})
    shutil.rmtree(folder.parents[3])
    assert held(local_copy(url))["metrics.jsonl"] == "..." * 100_000
    shutil.rmtree(folder.parents[3])
    with kept_in_bucket(url) as folder:
        assert (folder / "checkpoints/4/model").read_text() == "four"
        shutil.rmtree(folder / "checkpoints/4")
        written(folder, **{"checkpoints/8/model": "eight"})
    assert json.loads(BucketFolder(url).read("checkpoints.json")) == [8]
    assert "checkpoints/4/model" not in BucketFolder(url).files()
