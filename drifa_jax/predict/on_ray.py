"""Prediction of any number of records on a Ray cluster, into a folder of partitions.

    cases ─ blocks ─ decode (a task each, CPUs) ─ predict and write (actors, one a device) ─ folder

A partition is a block of `streaming.stream`, so that every batch holds the same records in the
same places as in the local command, and the answers are the same to the last bit on the same kind
of device. Ray Data moves the blocks, holds decoding back while the actors are busy, and does again
what was lost with a worker or a node; a partition is whole or absent, so nothing else can be lost.

Test: tests/predict/test_on_ray.py.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from drifa_jax.console import progress, say
from drifa_jax.digests import digest
from drifa_jax.errors import UserError
from drifa_jax.extras import fitting, install_command
from drifa_jax.predict.described import Description
from drifa_jax.predict.inputs import Cases
from drifa_jax.predict.reading import Item, Stored
from drifa_jax.predict.streaming import RECORDS_A_BLOCK, read_images
from drifa_jax.predictions.partitions import Partitions, opened_partitions
from drifa_jax.predictions.table import Predictions, Provenance

SECONDS_TO_CONNECT = 5
MOST_LOST_STARTS = 10
"""Actors that may be lost one after the other while they open the run."""
MOST_TOLD = 10
"""Unreadable partitions that a message names."""


class Answering(Protocol):
    """A `Predictor` or an `ExportedPredictor`."""

    description: Description
    provenance: Provenance

    def predict(self, pixels, present, record_ids) -> Predictions: ...


Open = Callable[[], Answering]
"""Opens a predictor; it is called on the workers, so that pickle must know it by name."""


@dataclass(frozen=True)
class Described:
    """What the workers answer with.

    Attributes:
      description: of what they read.
      provenance: of their answers.
      device: kind of the device of an actor.
      jax: version.
    """

    description: Description
    provenance: Provenance
    device: str
    jax: str


class Cluster:
    """A Ray cluster that this process is connected to."""

    def __init__(self, ray):
        self.ray = ray
        resources = ray.cluster_resources()
        self.nodes = sum(node["Alive"] for node in ray.nodes())
        for name, asked in (("GPU", {"num_gpus": 1}), ("TPU", {"resources": {"TPU": 1}})):
            if (count := int(resources.get(name, 0))) > 0:
                self.devices, self._of_actor = count, {"num_cpus": 0, **asked}
                break
        else:
            # JAX takes all cores of a node, so one actor is as many as a node can use.
            self.devices = self.nodes
            self._of_actor = {"num_cpus": 0}

    def describe(self, open_predictor: Open) -> Described:
        """What the workers say of themselves; fits the post-processing where that is to be done.

        Raises:
          UserError: where they cannot open the predictor.
        """
        # A device is free again only when the process that used it has ended.
        remote = self.ray.remote(**self._of_actor, max_calls=1)(_described)
        with self._told():
            found = self.ray.get(remote.remote(open_predictor, os.getcwd()))
        return _or_error(found)

    def predict(
        self, open_predictor: Open, described: Described, cases: Cases, folder: Path
    ) -> Partitions:
        """Predicts all partitions that the folder lacks.

        Raises:
          UserError: where the folder is of something else, or records cannot be read; all
            partitions without such a record are written then.
        """
        starts = range(0, len(cases.record_ids), RECORDS_A_BLOCK)
        belongs_to = _belongs_to(described, cases)
        with opened_partitions(folder, len(starts), belongs_to) as partitions:
            absent = partitions.absent()
            if found := len(starts) - len(absent):
                say(f"{folder}: {found} of {len(starts)} partitions are there already.")
            if absent:
                work = [_block(cases, number, starts[number]) for number in absent]
                self._run(open_predictor, described, work, partitions)
        return partitions

    def _run(self, open_predictor, described, work, partitions) -> None:
        data = self.ray.data
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.max_consecutive_actor_init_deaths = MOST_LOST_STARTS
        place = os.getcwd()
        blocks = data.from_items(work, override_num_blocks=len(work)).map(
            _read,
            fn_args=(described.description, place),
            num_cpus=1,
        )
        answered = blocks.map(
            _Answering,
            fn_constructor_args=(open_predictor, described.provenance, partitions, place),
            compute=data.ActorPoolStrategy(
                size=min(self.devices, len(work)), max_tasks_in_flight_per_actor=2
            ),
            **self._of_actor,
        )
        errors = {}
        with self._told(), progress("predicted partitions", len(work)) as advance:
            for row in answered.iter_rows():
                if row["error"]:
                    errors[int(row["number"])] = row["error"]
                advance(1)
        if errors:
            told = [f"  {partitions.path(n).name}: {errors[n]}" for n in sorted(errors)]
            raise UserError(
                f"{len(errors)} of {partitions.count} partitions could not be predicted:\n"
                + "\n".join(told[:MOST_TOLD])
                + ("\n  and others" if len(told) > MOST_TOLD else "")
                + "\nThe others are written. Put this right and start the same command again."
            )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What Ray raises, as one message."""
        try:
            yield
        except self.ray.exceptions.RayError as error:
            text = str(error)
            if "ModuleNotFoundError" in text or "ImportError" in text:
                line = next(x for x in text.splitlines()[::-1] if "Error" in x)
                raise UserError(
                    f"A node of the cluster lacks a package ({line.strip()}). Install drifa-jax "
                    f"with the extra ray, the same release as here, on every node."
                ) from error
            lines = [line for line in text.splitlines() if line.strip()]
            raise UserError(
                f"Ray gave up ({type(error).__name__}: {lines[-1].strip() if lines else ''}). What "
                "was written stays; start the same command again."
            ) from error


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """The cluster at an address, for as long as the block runs.

    Args:
      address: "auto" for the cluster that this machine belongs to (or `RAY_ADDRESS`), "HOST:PORT",
        or "local" to start one of this machine alone.

    Raises:
      UserError: where Ray is not installed or of another version, or no cluster answers.
    """
    chosen = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    _check_reachable(chosen)
    ray = fitting("ray", "Prediction on a cluster (--engine ray)", "ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options = {"include_dashboard": False} if chosen == "local" else {}
    try:
        ray.init(chosen, logging_level="ERROR", log_to_driver=False, **options)
    except ConnectionError as error:
        raise UserError(
            f"--address {address}: no Ray cluster runs on this machine. Start the command on a "
            "machine of the cluster, give --address HOST:PORT of its head, or --address local."
        ) from error
    except RuntimeError as error:
        if "ersion" not in str(error):
            raise
        theirs = str(error).strip().replace("\n", " ")
        raise UserError(
            f"--address {address}: the cluster runs other versions ({theirs}). Every machine "
            f"needs the same Python and Ray: {install_command('ray')}"
        ) from error
    try:
        import ray.data

        yield Cluster(ray)
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself waits minutes for a cluster that is not there, and then ends the process."""
    if "://" in address:
        raise UserError(
            f"--address {address}: give HOST:PORT of the cluster's head, from a machine of the "
            "cluster (or start the command with `ray job submit`)."
        )
    host, colon, port = address.rpartition(":")
    if not colon:
        if address not in ("auto", "local"):
            raise UserError(f"--address {address}: must be auto, local or HOST:PORT.")
        return
    try:
        socket.create_connection((host, int(port)), SECONDS_TO_CONNECT).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"--address {address}: no Ray cluster answers there ({error}). `ray status` on its "
            "head says whether it runs; the port is that of `ray start --head` (6379)."
        ) from error


def _belongs_to(described: Described, cases: Cases) -> dict[str, Any]:
    """What the partitions are of. Places of runs may differ, their weights may not."""
    provenance = described.provenance.to_json()
    runs = provenance.pop("runs")
    asked = {name: [_named(item) for item in part] for name, part in cases.images.items()}
    return {
        "records": len(cases.record_ids),
        "records_a_partition": RECORDS_A_BLOCK,
        "manifest": digest([list(cases.record_ids), asked]),
        "runs": [Path(run).name for run in runs],
        **provenance,
        "device": described.device,
        "jax": described.jax,
    }


def _named(item: Item) -> Any:
    """What tells one record's part of a modality from another."""
    if isinstance(item, str | Path):
        return os.path.abspath(item)
    if isinstance(item, Stored):
        return hashlib.blake2b(item.pixels.tobytes(), digest_size=16).hexdigest()
    return None if item is None else dict(item)


def _block(cases: Cases, number: int, start: int) -> dict[str, Any]:
    rows = slice(start, start + RECORDS_A_BLOCK)
    images = {name: part[rows] for name, part in cases.images.items()}
    asked = pickle.dumps((start, cases.record_ids[rows], images))
    return {"number": number, "asked": asked}


def _read(row: Mapping[str, Any], description: Description, place: str) -> dict[str, Any]:
    """On a CPU: a block's pixels, or why they cannot be read."""
    try:
        _go_to(place)
        start, record_ids, images = pickle.loads(row["asked"])
        held, error = pickle.dumps((*read_images(description, images, start), record_ids)), ""
    except UserError as problem:
        held, error = b"", str(problem)
    return {"number": row["number"], "held": held, "error": error}


class _Answering:
    """On a device: answers blocks and writes their partitions."""

    def __init__(self, open_predictor: Open, provenance: Provenance, partitions, place: str):
        _go_to(place)
        self._predictor = _opened(open_predictor)
        self._provenance, self._partitions = provenance, partitions

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        number, error = row["number"], row["error"]
        if not error:
            try:
                self._answer(int(number), *pickle.loads(row["held"]))
            except UserError as problem:
                error = str(problem)
        return {"number": number, "error": error}

    def _answer(self, number: int, pixels, present, record_ids: Sequence[str]) -> None:
        predictions = self._predictor.predict(pixels, present, record_ids)
        if predictions.provenance.identity != self._provenance.identity:
            raise UserError("the run was changed while its answers were computed.")
        self._partitions.write(number, replace(predictions, provenance=self._provenance))


def _described(open_predictor: Open, place: str) -> Described | str:
    import jax

    try:
        _go_to(place)
        predictor = _opened(open_predictor)
    except UserError as error:
        return str(error)
    device = jax.devices()[0].device_kind
    return Described(predictor.description, predictor.provenance, device, jax.__version__)


def _or_error(found: Described | str) -> Described:
    if isinstance(found, str):
        raise UserError(found)
    return found


def _opened(open_predictor: Open) -> Answering:
    from drifa_jax.compilation import use_compilation_cache

    use_compilation_cache()
    return open_predictor()


def _go_to(place: str) -> None:
    """Into the folder of the command, so that relative names mean the same on every node."""
    try:
        os.chdir(place)
    except OSError as error:
        raise UserError(
            f"the node {socket.gethostname()} has no folder {place} ({error.strerror}); runs, "
            "images and output must lie where all nodes find them under the same name."
        ) from error
