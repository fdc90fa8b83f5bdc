"""From a request's files and fields to an answered and an explained case, within the limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np

from drifa_jax.data.record import TabularSpec
from drifa_jax.errors import UserError
from drifa_jax.predict.reading import Stored
from drifa_jax.predict.streaming import fingerprints, read_images
from drifa_jax.serve.answers import what_lacks
from drifa_jax.serve.archive_objects import ArchiveObject, archive_objects, sources_of
from drifa_jax.serve.cases import Answered, Case, Held
from drifa_jax.serve.decoding import Decoded, Decoders
from drifa_jax.serve.engine import AnyPredictor, Engine, Explained
from drifa_jax.serve.memory_files import check_system
from drifa_jax.serve.metrics import Metrics, resident_bytes
from drifa_jax.serve.options import Limits, Refused
from drifa_jax.serve.uploads import Form, read_request


class Service:
    """A network that answers cases, and what it takes to keep doing so.

    Args:
      predictor: of runs, or of an exported file.
      limits: see there.
      lacks: why there is no post-processing, where it is known.

    Attributes:
      description: of what the network reads and answers.
      stopping: set where no further case is taken.
    """

    def __init__(self, predictor: AnyPredictor, limits: Limits, lacks: str = ""):
        check_system()
        self.predictor, self.limits, self._lacks = predictor, limits, lacks
        self.description = predictor.description
        self._specs = {spec.name: spec for spec in self.description.modalities}
        self.stopping = False
        self._open, self._bytes = 0, 0
        self.held = Held(limits.held_cases, limits.held_bytes, limits.held_seconds)
        self.objects = Held(limits.held_cases, limits.held_bytes, limits.held_seconds)
        self.metrics = Metrics(
            {
                "ready": ("Whether cases are answered.", lambda: float(self.engine.ready.is_set())),
                "open_cases": ("Cases that are read, wait or are answered.", lambda: self._open),
                "held_cases": ("Answered cases kept in memory.", lambda: len(self.held)),
                "resident_bytes": ("Memory of the server's process.", resident_bytes),
            }
        )
        self.engine = Engine(
            predictor, limits.batch, lambda count: self.metrics.observe("batch_cases", count)
        )
        self.decoders = Decoders(
            self.description, limits, lambda: self.metrics.count("decoder_restarts")
        )

    def close(self, seconds: float = 10.0) -> bool:
        """Answers what waits and ends its processes; whether the network's thread ended."""
        self.stopping = True
        ended = self.engine.stop(seconds)
        self.decoders.close()
        return ended

    async def form(
        self, chunks: AsyncIterator[bytes], content_type: str, length: int | None
    ) -> Form:
        """The body of a request; see `read_request`."""
        return await read_request(chunks, content_type, length, self.limits)

    @contextmanager
    def admitted(self, length: int | None) -> Iterator[None]:
        """Room for one more case.

        Args:
          length: of the request, as the client gives it; None is taken for the most.

        Raises:
          Refused: 503 where the server does not answer now, 429 where too many wait.
        """
        limits = self.limits
        if self.stopping:
            raise Refused(503, "The server is stopping.", "stopping", 10)
        if self.engine.failure is not None:
            raise Refused(503, "The network could not be compiled; see the server's log.", "failed")
        if not self.engine.ready.is_set():
            done, total = self.engine.compiled, self.engine.to_compile
            raise Refused(503, f"The network is being compiled: {done} of {total}.", "compiling", 5)
        if self._open >= limits.queue:
            raise Refused(429, f"{self._open} cases wait already; try again soon.", "queue", 1)
        size = limits.upload_bytes if length is None else min(max(length, 0), limits.upload_bytes)
        if self._open and self._bytes + size > limits.upload_bytes * limits.uploads_in_memory:
            raise Refused(503, "Uploads fill the memory set aside; try again soon.", "memory", 2)
        self._open += 1
        self._bytes += size
        try:
            yield
        finally:
            self._open -= 1
            self._bytes -= size

    async def answered(self, form: Form) -> tuple[Answered, dict[str, Any]]:
        """What the network says of a case, and what else a request in JSON asks for.

        Raises:
          Refused: with what is wrong, or what took too long.
        """
        began = time.monotonic()
        rows, rest, numbers = self._fields(form)
        decoded = Decoded({}, {}, {}, {})
        if form.json is not None or form.files or form.study:
            decoded = await self.decoders.decode(form, numbers)
        decoding = time.monotonic() - began
        rest |= decoded.rest
        case = self._case(decoded, rows | rest.pop("rows", {}), rest.pop("record_id", None))
        answered = await self._awaited(self.engine.answer(case))
        answered.seconds["decoding"] = decoding
        self._measure(answered)
        return answered, rest

    async def study(self, form: Form) -> tuple[Answered, list[ArchiveObject]]:
        """The answer to a study, and the objects that belong into its archive; raises Refused."""
        if not form.study:
            raise Refused(415, "Send a study as multipart/related of DICOM files.", "media_type")
        answered, rest = await self.answered(form)
        explained = await self.explained(answered)
        try:
            sources = sources_of(rest["sources"])
            made = await asyncio.to_thread(
                archive_objects, self.predictor, answered, explained, sources
            )
        except UserError as error:
            raise Refused(422, str(error), "study") from error
        return answered, made

    async def explained(self, answered: Answered) -> Explained:
        """Why; raises Refused."""
        if self.stopping:
            raise Refused(503, "The server is stopping.", "stopping", 10)
        if self.engine.waiting_explanations >= self.limits.explanations:
            raise Refused(429, "Too many explanations wait; try again soon.", "queue", 2)
        began = time.monotonic()
        explained = await self._awaited(self.engine.explain(answered))
        self.metrics.count("explanations")
        self.metrics.observe("explanation_seconds", time.monotonic() - began)
        return explained

    def lacks(self, answered: Answered) -> list[str]:
        """What the network cannot say."""
        return what_lacks(self.predictor, answered.predictions, self._lacks)

    def fields_of(self, modality: str) -> tuple[str, ...]:
        """Names of the fields of a tabular modality, a column each."""
        return tuple(
            f"{modality}.{column}" for column in self.description.readings[modality].columns
        )

    def _fields(self, form: Form) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
        """Rows by modality, the rest, and the slice of each modality that one was asked of."""
        known = ", ".join(self._specs)
        if unknown := [name for name in form.files if name not in self._specs]:
            raise Refused(
                422,
                f"The form gives files as {', '.join(repr(n[:40]) for n in unknown[:5])}; this "
                f"network reads {known}. Name each file's field after its modality.",
                "modality",
            )
        rows: dict[str, dict[str, str]] = {}
        rest: dict[str, Any] = {}
        numbers: dict[str, int] = {}
        tables = {n for n, spec in self._specs.items() if isinstance(spec, TabularSpec)}
        for name, text in form.fields.items():
            modality, _, column = name.partition(".")
            if name in ("record_id", "explain"):
                rest[name] = text.strip() == "true" if name == "explain" else text
            elif modality in tables and name in self.fields_of(modality):
                rows.setdefault(modality, {})[column] = text
            elif modality in self._specs and column == "slice" and modality not in tables:
                numbers |= _slice(modality, text)
            else:
                raise Refused(
                    422,
                    f"The form has a field {name[:60]!r}, which means nothing here; see "
                    "/openapi.json. A file needs a file name in its part.",
                    "field",
                )
        return (
            {m: row for m, row in rows.items() if any(map(str.strip, row.values()))},
            rest,
            numbers,
        )

    def _case(self, decoded: Decoded, rows: dict[str, Any], record_id: Any) -> Case:
        if record_id is not None and (not isinstance(record_id, str) or len(record_id) > 200):
            raise Refused(422, "record_id is a text of at most 200 letters.", "field")
        images = {m: [Stored(x, m)] for m, x in decoded.pixels.items()}
        images |= {m: [row] for m, row in rows.items()}
        if not images:
            known = ", ".join(self._specs)
            raise Refused(422, f"The case is empty; this network reads {known}.", "empty")
        try:
            pixels, present = read_images(self.description, images)
        except UserError as error:
            said = (
                str(error)
                .replace("Record 0", "The case")
                .replace("Some records lack", "The case lacks")
            )
            raise Refused(422, said, "case") from error
        name = record_id or fingerprints(pixels, present)[0]
        encodings = {m: self.description.readings[m].encoding for m in rows}
        return Case(
            name,
            {m: np.ascontiguousarray(x[0]) for m, x in pixels.items()},
            {m: bool(held[0]) for m, held in present.items()},
            {m: encodings[m].decode(pixels[m][0]) for m in rows},
            decoded.pictures,
            decoded.facts,
        )

    async def _awaited(self, future: Future) -> Any:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.answer_seconds)
        except TimeoutError:
            raise Refused(
                503,
                f"The case waited {self.limits.answer_seconds:g} s and was given up.",
                "late",
                5,
            ) from None

    def _measure(self, answered: Answered) -> None:
        metrics, predictions = self.metrics, answered.predictions
        metrics.count("cases")
        for name, seconds in answered.seconds.items():
            metrics.observe(f"{name}_seconds", seconds)
        for task, found in predictions.tasks.items():
            if found.refer is not None and found.refer[0]:
                metrics.count("referred", task=task)
        scores = predictions.out_of_distribution
        if scores is not None and scores.flagged[0]:
            metrics.count("unlike_training")


def _slice(modality: str, text: str) -> dict[str, int]:
    if not text.strip():
        return {}
    if not text.strip().isdecimal() or len(text.strip()) > 9:
        raise Refused(422, f"{modality}.slice is not the number of a slice.", "field")
    return {modality: int(text)}
