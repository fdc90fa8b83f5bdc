"""Reads an exported network: needs JAX and NumPy, and nothing else of this package.

    from drifa_jax.predict.exported import load_exported
    network = load_exported("brain.drifa")
    answer = network({"mri": mri, "ct": ct}, record_ids=["a", "b"])   # uint8 [b, h, w, c]
    answer["tumour"].probabilities, answer["tumour"].predicted
    answer.out_of_distribution.p_value              # None where the export cannot tell

This file may be copied beside an exported network and used without the package. An export is a
zip archive of `card.json` (what it is), `function.stablehlo` (the program, by `jax.export`),
`parameters.npz` and, where the predictor told records out of distribution,
`out_of_distribution.npz` (the distance, and those of validation records); the card holds the
SHA-256 of the others and of itself. Exports of the first two formats are read as well.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

FORMAT = "drifa-export-3"
OLDER_FORMATS = ("drifa-export-1", "drifa-export-2")
CARD, FUNCTION, PARAMETERS = "card.json", "function.stablehlo", "parameters.npz"
OUT_OF_DISTRIBUTION = "out_of_distribution.npz"
OLDER_NAMES = {"foreign.npz": OUT_OF_DISTRIBUTION}

LARGEST_RATIO, ROOM = 20, 64 * 2**20
"""A container may declare `ROOM` bytes more than `LARGEST_RATIO` times its size: programs and
initial weights are compressed well, but a file that grows a thousandfold is no export."""

SMALLEST_PROBABILITY = 1e-12
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class ExportError(ValueError):
    """The file is no export, or was changed."""


@dataclass(frozen=True)
class Answer:
    """One task's answer for `b` records.

    Attributes:
      classes: names, in the order of the axis `k`.
      probabilities: `[b, k]`, calibrated where the export holds a calibration.
      predicted: name of the most probable class of each record.
      predictive_entropy, expected_entropy, mutual_information: `[b]`, nats, before calibration.
      sets: `[b, k]` bool, prediction sets; None without post-processing.
      refer: `[b]` bool; None without a threshold.
      samples: `[e, s, b, k]`.
    """

    classes: tuple[str, ...]
    probabilities: np.ndarray
    predicted: tuple[str, ...]
    predictive_entropy: np.ndarray
    expected_entropy: np.ndarray
    mutual_information: np.ndarray
    sets: np.ndarray | None
    refer: np.ndarray | None
    samples: np.ndarray


@dataclass(frozen=True)
class DistanceScores:
    """How far `b` records are from what the network knows.

    Attributes:
      distance: `[b]`, squared Mahalanobis distance a fused feature, mean over members.
      p_value: `[b]`, share of validation records that are as far, in (0, 1].
      flagged: `[b]` bool, whether that share is as small as the card's `flagged_below`.
    """

    distance: np.ndarray
    p_value: np.ndarray
    flagged: np.ndarray


class Answers(dict[str, Answer]):
    """What a network says of `b` records: `answers["tumour"]` is one task's answer.

    Attributes:
      out_of_distribution: how unlike the validation records each record is; None where unknown.
    """

    def __init__(self, tasks: Mapping[str, Answer], out_of_distribution: DistanceScores | None):
        super().__init__(tasks)
        self.out_of_distribution = out_of_distribution


class ExportedNetwork:
    """A network read from a file; `card` tells what it reads, answers and was made of.

    Args:
      card: as in the file.
      program: as serialised by `jax.export`.
      parameters: leaves of parameters and statistics.
      distance: arrays of the distance from validation records; None where there is none.

    Attributes:
      call: runs the program, compiled.
      rebuilt: whether this JAX could not read the program, so that the package made it anew.
    """

    def __init__(
        self,
        card: Mapping[str, Any],
        program: bytes,
        parameters: list[np.ndarray],
        distance: Mapping[str, np.ndarray] | None = None,
    ):
        self.card, self.parameters, self._distance = card, parameters, distance
        exported, self.rebuilt = _program(card, program, parameters)
        platform = jax.default_backend()
        names = {"gpu": ("cuda", "rocm", "gpu")}.get(platform, (platform,))
        if not set(names) & set(exported.platforms):
            raise ExportError(f"runs on {', '.join(exported.platforms)}, not on {platform}.")
        self.call = jax.jit(exported.call)

    def __call__(
        self,
        images: Mapping[str, np.ndarray],
        record_ids: Sequence[str] | None = None,
        present: Mapping[str, np.ndarray] | None = None,
    ) -> Answers:
        """Answers by task, and how far each record is from those that the network knows.

        Args:
          images: modality -> uint8 `[b, (d,) h, w, c]` at the size in the card; of a table, float32
            `[b, num_features]`, encoded as the card says. Modalities may be left out where the
            card says so.
          record_ids: names, part of the keys of the samples; "0", "1", ... when None.
          present: modality -> `[b]` bool, where some records lack it; their images are ignored.

        Raises:
          ValueError: naming the modality that does not fit.
        """
        pixels, present = self._read(images, present or {})
        count = len(next(iter(present.values())))
        ids = [str(i) for i in range(count)] if record_ids is None else list(record_ids)
        if len(ids) != count:
            raise ValueError(f"There are {count} records but {len(ids)} names.")
        key = jax.random.key_data(jax.random.key(self.card["seed"], impl="threefry2x32"))
        drawn = self.call(self.parameters, pixels, present, _words(ids), np.asarray(key))
        features = None
        if self._distance is not None:
            drawn, features = drawn
        return Answers(
            {task: self._answer(task, np.asarray(p, np.float64)) for task, p in drawn.items()},
            None if features is None else self._distances(np.asarray(features, np.float64)),
        )

    def _distances(self, features: np.ndarray) -> DistanceScores:
        """Scores of fused features `[e, b, d]`."""
        arrays, known = self._distance, self._distance["known"]
        squared = []
        for member, x in enumerate(features):
            whitening = arrays[f"whitening_{member}"]
            from_centres = (x @ whitening)[:, None] - (arrays[f"means_{member}"] @ whitening)[None]
            squared.append(np.min(np.sum(from_centres**2, -1), 1))
        distance = np.mean(squared, 0) / features.shape[-1]
        as_far = len(known) - np.searchsorted(known, distance, side="left")
        p_value = (as_far + 1) / (len(known) + 1)
        below = self.card["out_of_distribution"]["flagged_below"]
        return DistanceScores(distance, p_value, p_value <= below)

    def _read(self, images, given_present):
        specs = self.card["modalities"]
        if unknown := sorted({*images, *given_present} - set(specs)):
            raise ValueError(f"The modalities {unknown} are unknown; it reads {sorted(specs)}.")
        if not images:
            raise ValueError(f"There is no image; it reads {sorted(specs)}.")
        lacking = sorted(set(specs) - set(images))
        if lacking and not self.card["may_lack_modalities"]:
            raise ValueError(f"The modalities {lacking} are missing, and this network needs all.")
        counts = {name: len(np.asarray(x)) for name, x in images.items()}
        count = next(iter(counts.values()))
        if count < 1 or set(counts.values()) != {count}:
            raise ValueError(f"Every modality needs equally many records, at least 1: {counts}.")
        pixels, present = {}, {}
        for name, spec in specs.items():
            is_table = "num_features" in spec
            rest = ("num_features", "depth", "height", "width", "channels")
            shape = (count, *(spec[side] for side in rest if side in spec))
            dtype = np.dtype(np.float32 if is_table else np.uint8)
            given = np.asarray(images[name]) if name in images else np.zeros(shape, dtype)
            if given.shape != shape or given.dtype != dtype:
                raise ValueError(f"{name} is {given.dtype} {given.shape}, not {dtype} {shape}.")
            pixels[name], present[name] = given, np.full(count, name in images)
            if name in given_present:
                present[name] = self._presence(name, given_present[name], present[name])
        if not np.any(list(present.values()), axis=0).all():
            raise ValueError("Some record has no image in any modality.")
        return pixels, present

    def _presence(self, name: str, given: np.ndarray, has_images: np.ndarray) -> np.ndarray:
        held, shape = np.asarray(given), has_images.shape
        if held.dtype != bool or held.shape != shape:
            raise ValueError(f"present[{name!r}] is {held.dtype} {held.shape}, not bool {shape}.")
        if (held & ~has_images).any():
            raise ValueError(f"Some records are said to hold {name}, but it was left out.")
        if not held.all() and not self.card["may_lack_modalities"]:
            raise ValueError(f"Some records lack {name}, and this network needs all modalities.")
        return held

    def _answer(self, task: str, samples: np.ndarray) -> Answer:
        if not np.isfinite(samples).all():
            raise ValueError(f"The answer to {task!r} is not finite.")
        facts = self.card["tasks"][task]
        samples = samples / samples.sum(-1, keepdims=True)
        mean = samples.mean((0, 1))
        total, expected = _entropy(mean), _entropy(samples).mean((0, 1))
        fitted = facts["post_processing"]
        shown, sets, refer = mean, None, None
        if fitted is not None:
            shown = _calibrated(mean, fitted["calibration"])
            sets = _sets(mean, fitted["conformal"])
            threshold = fitted["referral"]["threshold"]
            refer = None if threshold is None else total > threshold
        classes = tuple(facts["classes"])
        return Answer(
            classes,
            shown,
            tuple(classes[k] for k in shown.argmax(-1)),
            total,
            expected,
            np.maximum(total - expected, 0.0),
            sets,
            refer,
            samples,
        )


def load_exported(path: str | Path) -> ExportedNetwork:
    """The network in a file.

    Raises:
      ExportError: when the file is no export, was damaged or changed, or its program has expired.
    """
    try:
        card, parts = opened(Path(path))
        leaves = _arrays(parts[PARAMETERS])
        parameters = [leaves[f"p{i}"] for i in range(len(leaves))]
        distance = _arrays(parts[OUT_OF_DISTRIBUTION]) if OUT_OF_DISTRIBUTION in parts else {}
        distance = {name: x.astype(np.float64) for name, x in distance.items()} or None
        return ExportedNetwork(card, parts[FUNCTION], parameters, distance)
    except FileNotFoundError:
        raise ExportError(f"{path}: there is no such file.") from None
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from error
    except Exception as error:  # of zip, zlib, JSON and NumPy, each with errors of its own
        raise ExportError(
            f"{path}: is no exported network, or is damaged ({error}); copy or export it again."
        ) from error


def _program(card: Mapping[str, Any], program: bytes, parameters: list[np.ndarray]):
    """The program, and whether the package, where it is installed, had to make it anew."""
    try:
        exported = jax.export.deserialize(bytearray(program))
        oldest = jax.export.minimum_supported_calling_convention_version
        if (version := exported.calling_convention_version) < oldest:
            raise ValueError(f"calling convention {version}, below {oldest}")
        if card["versions"]["jax"] != jax.__version__:
            exported.mlir_module()  # What a later JAX wrote is refused no sooner than here.
        return exported, False
    except Exception as error:  # whatever JAX says to a program of another time
        why = error
    told = f"JAX {jax.__version__} cannot read a program of JAX {card['versions']['jax']} ({why})"
    try:
        from drifa_jax.predict.program import rebuilt
    except ImportError as error:
        until = card.get("program", {}).get("readable_until_about", "an earlier day")
        raise ExportError(
            f"{told}; readable until about {until}. Use that JAX, or install drifa-jax, which "
            "builds it anew (`drifa export --refresh FILE` keeps that)."
        ) from error
    try:
        return rebuilt(card, parameters), True
    except Exception as error:
        raise ExportError(f"{told}, nor can it be built anew: {error}") from error


def opened(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The card, in the newest form, and the checked parts by their newest names."""
    with zipfile.ZipFile(path) as archive:
        _check_size(archive, path.stat().st_size)
        names = [entry.filename for entry in archive.infolist()]
        known = {OLDER_NAMES.get(name, name) for name in names} - {OUT_OF_DISTRIBUTION}
        if known != {CARD, FUNCTION, PARAMETERS} or len(set(names)) != len(names):
            raise ExportError("is a zip archive, but no exported network.")
        card = json.loads(archive.read(CARD))
        parts = {name: archive.read(name) for name in names if name != CARD}
    if not isinstance(card, dict) or card.get("format") not in (*OLDER_FORMATS, FORMAT):
        raise ExportError(f"is no export of the formats {', '.join((*OLDER_FORMATS, FORMAT))}.")
    if card.get("card_sha256") != card_digest(card):
        raise ExportError(f"{CARD} is not what was exported; the file was changed.")
    if missing := sorted(set(card["sha256"]) - set(parts)):
        raise ExportError(f"{missing[0]} is missing; the file was changed.")
    for name, data in sorted(parts.items()):
        if hashlib.sha256(data).hexdigest() != card["sha256"].get(name):
            raise ExportError(f"{name} is not what was exported; the file was changed.")
    return _newest(card), {OLDER_NAMES.get(name, name): data for name, data in parts.items()}


def _newest(card: dict[str, Any]) -> dict[str, Any]:
    """A card of an older format in the words of this one."""
    if card["format"] == FORMAT:
        return card
    older = card.get("foreign")
    return card | {
        "tasks": {
            task: {"classes": facts["classes"], "post_processing": facts["decisions"]}
            for task, facts in card["tasks"].items()
        },
        "out_of_distribution": older and {**older, "flagged_below": older["foreign_below"]},
    }


def _check_size(archive: zipfile.ZipFile, held: int) -> None:
    """Refuses what would grow beyond reason, before it is allocated."""
    declared = sum(entry.file_size for entry in archive.infolist())
    if declared > LARGEST_RATIO * held + ROOM:
        raise ExportError(f"declares {declared:,} bytes in {held:,}; no export does.")


def card_digest(card: Mapping[str, Any]) -> str:
    """SHA-256 of a card without its own digest."""
    text = json.dumps({k: v for k, v in card.items() if k != "card_sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _arrays(packed: bytes) -> dict[str, np.ndarray]:
    """The arrays of an `.npz`, whose headers may not declare more than the file holds."""
    found = {}
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        _check_size(archive, len(packed))
        for entry in archive.infolist():
            data = io.BytesIO(archive.read(entry))
            shape, fortran, dtype = HEADERS[np.lib.format.read_magic(data)](data)
            if dtype.hasobject or math.prod(shape) * dtype.itemsize > entry.file_size:
                raise ExportError(f"{entry.filename} declares an array that it does not hold.")
            values = np.frombuffer(data.read(), dtype).reshape(shape, order="CF"[fortran])
            found[entry.filename.removesuffix(".npy")] = values
    return found


def _words(record_ids: Sequence[str]) -> np.ndarray:
    digests = [hashlib.blake2b(str(i).encode(), digest_size=8).digest() for i in record_ids]
    return np.frombuffer(b"".join(digests), np.uint32).reshape(len(digests), 2)


def _entropy(p: np.ndarray) -> np.ndarray:
    return np.maximum(-np.sum(p * np.log(np.where(p > 0, p, 1.0)), -1), 0.0)


def _softmax(x: np.ndarray) -> np.ndarray:
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def _calibrated(p: np.ndarray, fitted: Mapping[str, Any]) -> np.ndarray:
    constants, logs = fitted["constants"], np.log(np.maximum(p, SMALLEST_PROBABILITY))
    if fitted["method"] == "temperature":
        return _softmax(logs / constants["temperature"])
    if fitted["method"] == "vector":
        return _softmax(np.asarray(constants["scale"]) * logs + np.asarray(constants["shift"]))
    if fitted["method"] == "isotonic":
        curves = [np.interp(p[..., k], x, y) for k, (x, y) in enumerate(constants["knots"])]
        raw = np.stack(curves, -1)
        total = raw.sum(-1, keepdims=True)
        return np.where(total > 0, raw / np.where(total > 0, total, 1.0), p)
    return p


def _sets(p: np.ndarray, fitted: Mapping[str, Any]) -> np.ndarray:
    thresholds = np.array([math.inf if t is None else t for t in fitted["thresholds"]])
    if fitted["method"] == "lac":
        return 1.0 - p <= thresholds
    order = np.argsort(-p, axis=1, kind="stable")
    ranked = np.cumsum(np.take_along_axis(p, order, 1), 1)
    if fitted["method"] == "raps":
        beyond = np.arange(1, p.shape[1] + 1) - fitted["free_classes"]
        ranked = ranked + fitted["penalty"] * np.maximum(beyond, 0)
    scores = np.empty_like(ranked)
    np.put_along_axis(scores, order, ranked, 1)
    return scores <= thresholds
