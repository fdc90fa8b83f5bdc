"""What runs withstand: kills at random moments, flipped bits, commands at once, hostile names.

    python -m benchmarks.robustness kills [--count 200]
    python -m benchmarks.robustness flips [--count 1000] [--kinds config.json ...]
    python -m benchmarks.robustness pairs
    python -m benchmarks.robustness names
    python -m benchmarks.robustness speed

Everything happens in a temporary folder with a toy network on drawn pictures. Each command is a
fork of this process, which has imported everything and started no thread of JAX, so that a try
costs a second. A line is printed for each try that did not hold, and a summary at the end.
"""

from __future__ import annotations

import abc
import argparse
import contextlib
import csv
import functools
import hashlib
import importlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

CONFIG = """
from drifa_jax.config import default_config, modality

def get_config(variant=""):
    config = default_config()
    config.data.source = "files"
    config.data.modalities = {
        "skin": modality(height=16, width=16, channels=1, root="ROOT/skin", task="lesion")
    }
    config.data.duplicates = "keep"
    config.model.backbone = config.model.readout = "toy"
    config.model.stage_mfa_parts = config.model.mifa_parts = ()
    config.train.batch_size, config.train.num_epochs = 16, 4
    config.train.checkpoint_every_steps = 2
    config.eval.batch_size = 16
    config.uncertainty.num_mc_samples = 2
    config.uncertainty.fit_decisions = False
    return config.lock()
"""
PRELOADED = (
    "absl.logging",
    "matplotlib.figure",
    "tensorboardX",
    "drifa_jax.commands.data",
    "drifa_jax.commands.evaluate",
    "drifa_jax.commands.explain",
    "drifa_jax.commands.export",
    "drifa_jax.commands.predict",
    "drifa_jax.commands.train",
    "drifa_jax.data.prepare",
    "drifa_jax.data.sources.prepared",
    "drifa_jax.evaluate.run_evaluation",
    "drifa_jax.predict.export",
    "drifa_jax.predict.predictor",
    "drifa_jax.report.evaluation_report",
    "drifa_jax.train.loop",
    "tests.train.toy",
)


class Place:
    """A folder with pictures, a configuration and what is made of them."""

    def __init__(self, folder: Path, classes: Sequence[str] = ("benign", "malignant")):
        self.folder, self.config = folder, folder / "config.py"
        self.config.write_text(CONFIG.replace("ROOT", str(folder)))
        draw = np.random.default_rng(0)
        for number, name in enumerate(classes):
            (folder / "skin" / name).mkdir(parents=True)
            for i in range(90):
                pixels = draw.integers(0, 160, (16, 16), np.uint8) + np.uint8(90 * number % 96)
                Image.fromarray(pixels).save(folder / "skin" / name / f"{i}.png")
        self._number = 0

    def start(self, *arguments: str | Path) -> Command:
        """Starts `drifa ARGUMENTS`."""
        self._number += 1
        return Command([str(a) for a in arguments], self.folder / f"said{self._number}.txt")

    def run(self, *arguments: str | Path, code: int = 0) -> str:
        """Runs it to its end; returns what it said."""
        command = self.start(*arguments)
        if command.wait() != code:
            raise AssertionError(f"{arguments} ended with {command.code()}: {command.said()}")
        return command.said()

    def train(self, run: Path) -> tuple:
        return ("train", "--config", self.config, "--workdir", run)

    def data(self) -> tuple:
        data = ("--root", self.folder / "skin", "--size", "16", "--channels", "1")
        return (*data, "--duplicates", "keep")


class Command:
    """One fork of this process that runs a command of `drifa`."""

    def __init__(self, arguments: Sequence[str], output: Path):
        self.arguments, self._output, self._code = arguments, output, None
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            _become(arguments, output)

    def code(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, seconds: float = 300) -> int:
        deadline = time.monotonic() + seconds
        while self.code() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"{self.arguments} hangs: {self.said()}")
            time.sleep(0.005)
        return self._code

    def kill(self) -> None:
        if self.code() is None:
            os.kill(self.pid, signal.SIGKILL)

    def said(self) -> str:
        return self._output.read_text(errors="replace") if self._output.exists() else ""


def _become(arguments: Sequence[str], output: Path) -> None:
    code = 1
    try:
        from drifa_jax.cli import main

        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        code = main(arguments)
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextmanager
def place(**options) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="drifa-robustness-") as folder:
        yield Place(Path(folder), **options)


# --- kills -----------------------------------------------------------------------------------


def kills(options: argparse.Namespace) -> None:
    """Kills commands at random moments, and compares what the same commands then make."""
    moments = random.Random(options.seed)
    with place() as at:
        finished = at.folder / "finished"
        seconds = {}
        for _ in range(2):  # the first one compiles
            shutil.rmtree(finished, ignore_errors=True)
            began = time.monotonic()
            at.run(*at.train(finished))
            seconds["train"] = time.monotonic() - began
        kinds = [
            Training(at, finished),
            Evaluating(at, finished),
            Exporting(at, finished),
            Preparing(at, finished),
        ]
        for kind in kinds:
            kind.undisturbed()
            began = time.monotonic()
            kind.undisturbed()
            seconds[kind.name] = time.monotonic() - began
        print("seconds undisturbed:", {k: round(s, 1) for k, s in seconds.items()}, flush=True)
        killed, ended, broken = Counter(), Counter(), Counter()
        deadline = time.monotonic() + options.minutes * 60
        number = 0
        while sum(killed.values()) < options.count and time.monotonic() < deadline:
            kind = kinds[number % len(kinds)]
            number += 1
            kind.fresh()
            try:
                for _ in range(kind.kills_in_a_row):
                    command = at.start(*kind.arguments())
                    time.sleep(moments.uniform(0, seconds[kind.name]))
                    command.kill()
                    if command.wait() != -signal.SIGKILL:
                        ended[kind.name] += 1
                        break
                    killed[kind.name] += 1
                    kind.check_killed()
                kind.finish()
                kind.check()
            except AssertionError as error:
                broken[kind.name] += 1
                print(f"{kind.name}: {error}", flush=True)
        print("| command | kills | ended before its kill | did not hold |\n|---|---|---|---|")
        for kind in kinds:
            print(f"| {kind.name} | {killed[kind.name]} | {ended[kind.name]} | ", end="")
            print(f"{broken[kind.name]} |")
        print(f"{sum(killed.values())} kills, {sum(broken.values())} did not hold", flush=True)


class _Kind(abc.ABC):
    """One command that is killed; what it makes is compared with what it made undisturbed."""

    name = ""
    kills_in_a_row = 1

    def __init__(self, at: Place, finished: Path):
        self.at, self.finished = at, finished
        self.folder = at.folder / f"of-{self.name}"

    def undisturbed(self) -> None:
        self.fresh()
        self.finish()
        self.wanted = self.made()

    def fresh(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def finish(self) -> None:
        self.at.run(*self.arguments())

    def check(self) -> None:
        made = self.made()
        # More may be left, such as a checkpoint that a killed run had no time to delete.
        different = sorted(name for name in self.wanted if made.get(name) != self.wanted[name])
        assert not different, f"other results after kills: {different}"

    def check_killed(self) -> None:  # noqa: B027 - of most commands nothing more
        """What must be true right after a kill: nothing under its own name is half written."""

    @abc.abstractmethod
    def arguments(self) -> tuple:
        """What the command is called with."""

    @abc.abstractmethod
    def made(self) -> dict[str, object]:
        """What it left, by name."""


class Training(_Kind):
    name = "train"
    kills_in_a_row = 4

    def arguments(self) -> tuple:
        return self.at.train(self.folder / "run")

    def check_killed(self) -> None:
        run = self.folder / "run"
        for name in ("config.json", "network.json", "preprocessing.json", "environment.json"):
            if (run / name).exists():
                json.loads((run / name).read_text())

    def made(self) -> dict[str, object]:
        run = self.folder / "run"
        found = {n: digest(run / n) for n in ("metrics.jsonl", "metrics.json", "predictions.csv")}
        for path in sorted((run / "checkpoints").iterdir()):
            for item in ("model", "training"):
                # A kill may leave half of one that was being deleted.
                if (written := path / f"{item}_index" / "metadata").is_file():
                    index = json.loads(written.read_text())
                    found[f"{path.name}/{item}"] = index["identity"], index["checksums"]
        return found | {"names": names_in(run)}


class _OfRun(_Kind):
    """A command that reads a finished run, a copy of it."""

    def fresh(self) -> None:
        super().fresh()
        shutil.copytree(self.finished, self.folder / "run")


class Evaluating(_OfRun):
    name = "evaluate"

    def arguments(self) -> tuple:
        flags = ("--resamples", "100", "--no-explanations")
        return ("evaluate", self.folder / "run", *flags)

    def check_killed(self) -> None:
        folder = self.folder / "run" / "evaluation"
        if folder.exists():
            assert set(names_in(folder)) == set(self.wanted["names"]), "half an evaluation"

    def made(self) -> dict[str, object]:
        folder = self.folder / "run" / "evaluation"
        tasks = json.loads((folder / "metrics.json").read_text())["tasks"]
        return {
            "metrics": tasks,
            "predictions": digest(folder / "predictions.csv"),
            "names": names_in(folder),
            "run": [n for n in os.listdir(self.folder / "run") if "partial" in n or ".new" in n],
        }


class Exporting(_OfRun):
    name = "export"

    def arguments(self) -> tuple:
        return ("export", self.folder / "run", self.folder / "net.drifa")

    def finish(self) -> None:
        if not (self.folder / "net.drifa").exists():
            super().finish()

    def check_killed(self) -> None:
        if (self.folder / "net.drifa").exists():
            self.check()

    def made(self) -> dict[str, object]:
        with zipfile.ZipFile(self.folder / "net.drifa") as archive:
            assert archive.testzip() is None
            card = json.loads(archive.read("card.json"))
            parameters = archive.read("parameters.npz")
        tasks = json.dumps(card["tasks"], sort_keys=True)
        left = sorted(set(os.listdir(self.folder)) - {"run", "net.drifa"})
        return {"tasks": tasks, "parameters": hashlib.sha256(parameters).hexdigest(), "left": left}


class Preparing(_Kind):
    name = "prepare"
    kills_in_a_row = 3

    def arguments(self) -> tuple:
        return ("data", "prepare", *self.at.data(), "--output", self.folder / "set")

    def check_killed(self) -> None:
        if (self.folder / "set" / "prepared.json").exists():
            self.check()

    def made(self) -> dict[str, object]:
        folder = self.folder / "set"
        return {name: digest(folder / name) for name in names_in(folder)}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "absent"


def names_in(folder: Path) -> list[str]:
    """Names of files, without those that carry times, random ids or numbers of processes."""
    paths = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    hidden = ("checkpoints", "tensorboard", "tmp")
    return sorted(str(p) for p in paths if p.parts[0] not in hidden)


# --- flipped bits ----------------------------------------------------------------------------


def flips(options: argparse.Namespace) -> None:
    """Flips one bit of a file of each kind again and again, and reads it.

    A flip is refused (an error for the user that names the file), changes nothing that is read, or
    changes something in silence, which must not happen. Any other exception is a defect too. Files
    of a kind are hit by their sizes.
    """
    with place() as at:
        made = _made_for_flips(at)
        print("| file | flips | refused | nothing changed | changed | other errors |")
        print("|---|---|---|---|---|---|", flush=True)
        for kind in options.kinds or made:
            # In a process of its own: a library may crash.
            output = at.folder / "flips.txt"
            pid = os.fork()
            if not pid:
                _flip_many(kind, *made[kind], options.count, options.seed, output)
            _, status = os.waitpid(pid, 0)
            if code := os.waitstatus_to_exitcode(status):
                print(f"| {kind} | the process ended with {code} |")
            print(output.read_text(), end="", flush=True)


def _made_for_flips(at: Place) -> dict[str, tuple]:
    """Kind -> its files, and a function that says what is read of them."""
    import h5py
    import safetensors.numpy
    import torch

    from drifa_jax.data.readers import containers
    from drifa_jax.data.sources.prepared import open_prepared
    from drifa_jax.data.split_manifest import load_split
    from drifa_jax.errors import UserError
    from drifa_jax.interop import keras, network_files
    from drifa_jax.models.description import load_description
    from drifa_jax.post_processing import saved
    from drifa_jax.predict import exported
    from drifa_jax.predict.described import Description
    from drifa_jax.predictions.files import read_predictions, to_arrow
    from drifa_jax.sealed_files import read_sealed
    from drifa_jax.train.metrics_log import read_metrics
    from drifa_jax.train.run_directory import saved_config

    run, net, prepared = at.folder / "run", at.folder / "net.drifa", at.folder / "set"
    at.run(*at.train(run))
    at.run("evaluate", run, "--resamples", "100", "--no-explanations")
    at.run("export", run, net)
    at.run("data", "prepare", *at.data(), "--output", prepared)
    draw = np.random.default_rng(0)
    arrays = {name: draw.normal(size=(20, 30)).astype(np.float32) for name in "abc"}
    others = {k: at.folder / f"other.{k}" for k in ("npz", "h5", "keras", "safetensors", "pth")}
    np.savez_compressed(others["npz"], **arrays)
    torch.save({name: torch.from_numpy(x) for name, x in arrays.items()}, others["pth"])
    with h5py.File(others["h5"], "w") as file:
        for name, values in arrays.items():
            file[f"layers/{name}"] = values
    with zipfile.ZipFile(others["keras"], "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Functional"}))
        archive.write(others["h5"], "model.weights.h5")
    checksum = {network_files.CHECKSUM: network_files._checksum(arrays)}
    safetensors.numpy.save_file(arrays, others["safetensors"], metadata=checksum)
    (rules,) = run.glob("post_processing-*.json")
    identity = json.loads(rules.read_text())["identity"]

    def post_processing():
        found = saved.read(rules, {"lesion": ("benign", "malignant")}, identity)
        if found is None:
            raise UserError("of other weights: fitted anew")
        return repr(found)

    def prepared_set():
        return [
            (split, record.record_id, record.group_id, sorted(record.labels.items()), pixels)
            for split, records in open_prepared(prepared).items()
            for record in map(records.__getitem__, range(len(records)))
            for pixels in [[x.tobytes() for x in record.images.values()]]
        ]

    def numbers(found):
        return {name: np.asarray(values).tobytes() for name, values in found.items()}

    def keras_archive():
        config, weights = keras._open_archive(others["keras"])
        return config, numbers(containers.read_hdf5(others["keras"], weights, "layers"))

    def exported_network():
        network = exported.load_exported(net)
        return network.card, [x.tobytes() for x in network._parameters]

    newest = run / "checkpoints" / "28"
    readers = {
        "config.json": ([run / "config.json"], lambda: saved_config(run)),
        "preprocessing.json": (
            [run / "preprocessing.json"],
            lambda: Description.from_json(read_sealed(run / "preprocessing.json", "-")),
        ),
        "network.json": ([run / "network.json"], lambda: load_description(run)),
        "metrics.jsonl": ([run / "metrics.jsonl"], lambda: read_metrics(run)),
        "splits/*.json": (
            [run / "splits" / "skin.json"],
            lambda: load_split(run / "splits" / "skin.json"),
        ),
        "predictions.parquet": (
            [run / "predictions.parquet"],
            lambda: to_arrow(read_predictions(run / "predictions.parquet")).to_pydict(),
        ),
        "post_processing-*.json, .npz": ([rules, rules.with_suffix(".npz")], post_processing),
        "prepared set": (_files(prepared), prepared_set),
        ".drifa": ([net], exported_network),
        "weights.safetensors": (
            [others["safetensors"]],
            lambda: numbers(network_files.read_safetensors(others["safetensors"])),
        ),
        ".npz": ([others["npz"]], lambda: numbers(containers.read_npz(others["npz"]))),
        ".pth": ([others["pth"]], lambda: numbers(containers.read_torch(others["pth"]))),
        ".keras": ([others["keras"]], keras_archive),
        ".weights.h5, which has no checksums": (
            [others["h5"]],
            lambda: numbers(keras._read_datasets(others["h5"], others["h5"])),
        ),
    }
    for item in ("model", "training"):
        files = _files(newest / item, newest / f"{item}_index")
        readers[f"checkpoint, {item}"] = files, functools.partial(_checkpoint, run, item)
    return readers


def _files(*folders: Path) -> list[Path]:
    found = [p for folder in folders for p in sorted(folder.rglob("*")) if p.is_file()]
    return [p for p in found if p.stat().st_size and p.name != "split.json"]


@functools.cache
def _template(run: Path):
    from drifa_jax.data.dataset import open_dataset
    from drifa_jax.train import checkpoint_items
    from drifa_jax.train.experiment import build_experiment
    from drifa_jax.train.run_directory import saved_config
    from drifa_jax.train.state import abstract_state

    config = saved_config(run)
    experiment = build_experiment(config, open_dataset(config.data, run / "splits"))
    checkpoint_items.STRAGGLER_SECONDS = 0.0
    return abstract_state(experiment.network, experiment.optimizer, 1)


def _checkpoint(run: Path, item: str):
    """An item of the newest checkpoint as bytes, and what its index says."""
    from drifa_jax.errors import UserError
    from drifa_jax.train import checkpoint, checkpoint_items
    from drifa_jax.train.packing import named

    like = {"model": checkpoint._model, "training": checkpoint._training}[item](_template(run))
    try:
        tree, index = checkpoint_items.read_item(run / "checkpoints", 28, item, like, 0)
    except checkpoint_items.Damaged as damage:
        raise UserError(str(damage)) from damage
    values = {name: np.asarray(x).tobytes() for name, x in named(tree).items()}
    return values, index.get("validation_loss"), index.get("progress"), index.get("description")


def _flip_many(kind, files, read, count, seed, output: Path) -> None:
    from drifa_jax.errors import UserError
    from drifa_jax.predict.exported import ExportError

    moments, outcomes = random.Random(seed), Counter()
    lines, code = [], 70
    try:
        wanted = read()
        sizes = [path.stat().st_size for path in files]
        for _ in range(count):
            (path,) = moments.choices(files, sizes)
            content = path.read_bytes()
            place = moments.randrange(8 * len(content))
            changed = bytearray(content)
            changed[place // 8] ^= 1 << place % 8
            path.write_bytes(changed)
            try:
                outcome = "same" if read() == wanted else "changed"
            except (UserError, ExportError):
                outcome = "refused"
            except Exception as error:
                outcome = "other"
                lines.append(f"{kind}, {path.name}, bit {place}: {error!r}"[:300])
            if outcome == "changed" and "no checksums" not in kind:
                lines.append(f"{kind}, {path.name}, bit {place}: changed in silence")
            outcomes[outcome] += 1
            path.write_bytes(content)
        cells = [outcomes[name] for name in ("refused", "same", "changed", "other")]
        lines.append(f"| {kind} | {count} | " + " | ".join(map(str, cells)) + " |")
        code = 0
    except BaseException as error:
        lines.append(f"{kind}: {error!r}")
    finally:
        output.write_text("\n".join(lines) + "\n")
        os._exit(code)


# --- two commands on one run -----------------------------------------------------------------


def pairs(options: argparse.Namespace) -> None:
    """Starts every two commands on one run at once, and compares what they leave."""
    with place() as at:
        whole, part = at.folder / "whole", at.folder / "part"
        at.run(*at.train(whole))
        _train_a_part(at, part)
        moments = random.Random(options.seed)
        names = ("train", "evaluate", "export", "predict", "explain", "prepare")
        broken = 0
        print("| first | second | exit codes | held |\n|---|---|---|---|", flush=True)
        for first, second in itertools.combinations_with_replacement(names, 2):
            folder = at.folder / f"{first}-{second}"
            run = folder / "run"
            shutil.copytree(part if "train" in (first, second) else whole, run)
            one = at.start(*_arguments(at, first, folder, 1))
            time.sleep(moments.uniform(0, 0.1 if first == "prepare" else 1.5))
            other = at.start(*_arguments(at, second, folder, 2))
            codes = one.wait(), other.wait()
            problems = [
                command.said()[-600:]
                for command in (one, other)
                if command.code() not in (0, 1)
                or "Traceback" in command.said()
                or (command.code() and f"drifa {command.arguments[0]}: " not in command.said())
            ]
            if 0 not in codes:
                problems.append(f"neither ended well: {one.said()[-300:]}{other.said()[-300:]}")
            if "train" in (first, second):
                problems += _differences(run, whole)
            left = [n for n in names_in(folder) if "/." in f"/{n}" and not n.endswith("lock")]
            problems += [f"left behind: {left}"] * bool(left)
            broken += bool(problems)
            print(f"| {first} | {second} | {codes} | {'no' if problems else 'yes'} |")
            print("".join(f"{problem}\n" for problem in problems), end="", flush=True)
            shutil.rmtree(folder)
        print(f"{broken} pairs did not hold", flush=True)


def _arguments(at: Place, name: str, folder: Path, number: int) -> tuple:
    run = folder / "run"
    images = at.folder / "skin" / "benign"
    return {
        "train": at.train(run),
        "evaluate": ("evaluate", run, "--resamples", "100", "--no-explanations"),
        "export": ("export", run, folder / f"{number}.drifa"),
        "predict": ("predict", run, images, "--csv", folder / f"{number}.csv"),
        "explain": ("explain", run, "--out", folder / "explained"),
        "prepare": ("data", "prepare", *at.data(), "--output", folder / "set"),
    }[name]


def _train_a_part(at: Place, run: Path) -> None:
    """A run that was ended after its first epoch."""
    command = at.start(*at.train(run))
    while not (run / "checkpoints" / "7").is_dir():
        assert command.code() is None, command.said()
        time.sleep(0.005)
    os.kill(command.pid, signal.SIGTERM)
    command.wait()
    assert not (run / "metrics.json").exists(), "it was faster than the signal"


def _differences(run: Path, whole: Path) -> list[str]:
    names = ("metrics.jsonl", "metrics.json", "predictions.csv")
    return [f"{n} is another" for n in names if digest(run / n) != digest(whole / n)]


# --- hostile names ---------------------------------------------------------------------------

HOSTILE = (
    "nodule [benign]",
    "nodule [malignant]",
    "x[_b]",
    "<script>alert(1)<script>",
    "=HYPERLINK(1)",
    "@sum",
    "$\\frac{$",
    "esc\x1b[31m",
    "right\u202eleft",
    '";rm -rf',
    "a,b",
    ":warning:",
)
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]")


def names(options: argparse.Namespace) -> None:
    """Trains on classes of such names, and looks for them in everything that is written."""
    del options
    with place(classes=HOSTILE) as at:
        run, out = at.folder / "run", at.folder / "out"
        out.mkdir()
        images = at.folder / "skin" / HOSTILE[0]
        for arguments in (
            at.train(run),
            ("evaluate", run, "--resamples", "100", "--no-explanations"),
            ("predict", run, images, "--csv", out / "a.csv"),
            ("explain", run, "--out", out / "explained"),
            ("export", run, out / "net.drifa"),
            ("data", "stats", *at.data()[:-2]),
            ("data", "prepare", *at.data(), "--output", out / "set"),
        ):
            command = at.start(*arguments)
            code, said = command.wait(), command.said()
            obeyed = "Traceback" in said or OBEYED.search(said)
            print(f"{arguments[0]}: exit code {code}, {'OBEYED' if obeyed else 'plain text'}")
            if code or obeyed:
                print(repr(said[-1500:]))
        checked, bad = 0, []
        for path in [*run.rglob("*"), *out.rglob("*")]:
            if path.suffix in (".html", ".svg"):
                checked += 1
                text = path.read_text()
                bad += [path.name] * ("<script>alert" in text or "\x1b" in text)
            elif path.suffix == ".csv":
                checked += 1
                with path.open(newline="") as file:
                    cells = [cell for row in csv.reader(file) for cell in row]
                bad += [path.name] * any(cell.startswith(("=", "@", "+")) for cell in cells)
        print(f"{len(HOSTILE)} names, {checked} files, obeyed: {bad or 'none'}", flush=True)


# --- speed -----------------------------------------------------------------------------------


def speed(options: argparse.Namespace) -> None:
    """Checkpoints written and read, and predictors started, with checksums and without."""
    import statistics
    from unittest import mock

    import jax

    from drifa_jax.config import from_mapping, modality
    from drifa_jax.data.dataset import open_dataset
    from drifa_jax.predict.restored import describe, restore
    from drifa_jax.train import checkpoint, checkpoint_items
    from drifa_jax.train.experiment import build_experiment
    from drifa_jax.train.run_directory import CONFIG_FILE
    from drifa_jax.train.state import abstract_state, initial_state

    picture = modality(height=32, width=32, channels=1)
    phantoms = {"num_train": 8, "num_validation": 4, "num_test": 4}
    config = from_mapping(
        {
            "data": {"modalities": {"mri": picture, "ct": picture}, "phantoms": phantoms},
            "model": {"width": options.width, "backbone": "resnet18"},
            "train": {"batch_size": 8},
        }
    )
    dataset = open_dataset(config.data)
    experiment = build_experiment(config, dataset)
    state = initial_state(*experiment.network.init(jax.random.key(0)), experiment.optimizer)
    template = abstract_state(experiment.network, experiment.optimizer, 1)
    description = describe(config.data, dataset).to_json()
    millions = sum(x.size for x in jax.tree.leaves(state.params)) / 1e6
    seconds: dict[tuple[str, bool], list[tuple[float, float]]] = {}

    def write(run: Path) -> None:
        with checkpoint.Checkpoints(run / "checkpoints", description=description) as saved:
            saved.save(state, {}, [1.0])
            saved.wait()

    def read(run: Path) -> None:
        with checkpoint.Checkpoints(run / "checkpoints") as saved:
            saved.newest(template)

    parts = {
        "checkpoint written": write,
        "checkpoint read": read,
        "run restored for prediction": lambda run: restore([run]),
    }
    for turn in range(options.repeats + 1):
        for with_sums in (True, False) if turn % 2 else (False, True):
            with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
                if not with_sums:
                    for module in (checkpoint, checkpoint_items):
                        nothing = mock.patch.object(module, "checksums", lambda stored: {})
                        stack.enter_context(nothing)
                (Path(folder) / CONFIG_FILE).write_text(config.to_json())
                for name, function in parts.items():
                    began = time.perf_counter(), time.process_time()
                    function(Path(folder))
                    taken = time.perf_counter() - began[0], time.process_time() - began[1]
                    seconds.setdefault((name, with_sums), []).append(taken)
    print(f"{millions:.1f} million parameters, medians of {options.repeats}")
    print("| | wall, with and without (s) | speed | CPU, with and without (s) | speed |")
    print("|---|---|---|---|---|")
    for name in parts:
        cells = []
        for clock in (0, 1):
            checked, plain = (
                statistics.median(taken[clock] for taken in seconds[name, with_sums][1:])
                for with_sums in (True, False)
            )
            cells += [f"{checked:.3f}, {plain:.3f}", f"{plain / checked:.2f}"]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def prepared_process() -> None:
    """Everything that commands import, once, before any fork."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    for name in PRELOADED:
        importlib.import_module(name)
    from tests.train.attempts import keep_all_programs

    # A second of drawing, and hundreds of tiny programs, in every try.
    sys.modules["drifa_jax.report.learning"].learning_curves = lambda *_, **__: None
    sys.modules["drifa_jax.compilation"].use_compilation_cache = keep_all_programs
    # Several shards of a small set.
    sys.modules["drifa_jax.data.prepare"].prepare.__kwdefaults__["shard_size"] = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("kills")
    action.add_argument("--count", type=int, default=200)
    action.add_argument("--minutes", type=float, default=60)
    action = actions.add_parser("flips")
    action.add_argument("--count", type=int, default=1000)
    action.add_argument("--kinds", nargs="*")
    actions.add_parser("pairs")
    actions.add_parser("names")
    action = actions.add_parser("speed")
    action.add_argument("--width", type=int, default=64)
    action.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    prepared_process()
    {"kills": kills, "flips": flips, "pairs": pairs, "names": names, "speed": speed}[
        options.action
    ](options)


if __name__ == "__main__":
    main()
