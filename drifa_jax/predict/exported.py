"""Reads an exported network: needs JAX and NumPy, and nothing else of this package.

    from drifa_jax.predict.exported import load_exported
    network = load_exported("brain.drifa")
    answer = network({"mri": mri, "ct": ct}, record_ids=["a", "b"])   # uint8 [b, h, w, c]
    answer["tumour"].probabilities, answer["tumour"].predicted
    answer.foreign.p_value                          # None where the export cannot tell

This file may be copied beside an exported network and used without the package. An export is a
zip archive of `card.json` (what it is), `function.stablehlo` (the program, by `jax.export`),
`parameters.npz` and, where the predictor told foreign records, `foreign.npz` (the distance, and
those of validation records); the card holds the SHA-256 of the others. Exports of the first
format hold no distance, and are read as such.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

FORMAT = "drifa-export-2"
READ_FORMATS = ("drifa-export-1", FORMAT)
CARD, FUNCTION, PARAMETERS = "card.json", "function.stablehlo", "parameters.npz"
FOREIGN = "foreign.npz"
SMALLEST_PROBABILITY = 1e-12


class ExportError(ValueError):
    """The file is no export, or not the one that was written."""


@dataclass(frozen=True)
class Answer:
    """One task's answer for `b` records.

    Attributes:
      classes: names, in the order of the axis `k`.
      probabilities: `[b, k]`, calibrated where the export holds rules.
      predicted: name of the most probable class of each record.
      predictive_entropy, expected_entropy, mutual_information: `[b]`, nats, before calibration.
      sets: `[b, k]` bool, prediction sets; None without rules.
      refer: `[b]` bool; None without rules.
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
class ForeignScores:
    """How far `b` records are from what the network knows.

    Attributes:
      distance: `[b]`, squared Mahalanobis distance a fused feature, mean over members.
      p_value: `[b]`, share of validation records that are as far, in (0, 1].
      foreign: `[b]` bool, whether that share is as small as the card's `foreign_below`.
    """

    distance: np.ndarray
    p_value: np.ndarray
    foreign: np.ndarray


@dataclass(frozen=True)
class Answers(Mapping[str, Answer]):
    """What a network says of `b` records: `answers["tumour"]` is one task's answer.

    Attributes:
      tasks: task -> answer.
      foreign: how unlike the validation records each record is; None where the export was made
        without rules, of too few validation records, or in the first format.
    """

    tasks: Mapping[str, Answer]
    foreign: ForeignScores | None = None

    def __getitem__(self, task: str) -> Answer:
        return self.tasks[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)


class ExportedNetwork:
    """A network read from a file; `card` tells what it reads, answers and was made of.

    Args:
      card: as in the file.
      program: as serialised by `jax.export`.
      parameters: leaves of parameters and statistics.
      distance: arrays of the distance that tells foreign records; None where there is none.
    """

    def __init__(
        self,
        card: Mapping[str, Any],
        program: bytes,
        parameters: list[np.ndarray],
        distance: Mapping[str, np.ndarray] | None = None,
    ):
        self.card = card
        self._distance = distance
        exported = jax.export.deserialize(bytearray(program))
        platform = jax.default_backend()
        names = {"gpu": ("cuda", "rocm", "gpu")}.get(platform, (platform,))
        if not set(names) & set(exported.platforms):
            raise ExportError(
                f"The export runs on {', '.join(exported.platforms)}, not on {platform}."
            )
        self._call = jax.jit(exported.call)
        self._parameters = parameters

    def __call__(
        self,
        images: Mapping[str, np.ndarray],
        record_ids: Sequence[str] | None = None,
        present: Mapping[str, np.ndarray] | None = None,
    ) -> Answers:
        """Answers by task, and how foreign each record is.

        Args:
          images: modality -> uint8 `[b, h, w, c]` at the size in the card; of a table, float32
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
        drawn = self._call(self._parameters, pixels, present, _words(ids), np.asarray(key))
        features = None
        if self._distance is not None:
            drawn, features = drawn
        return Answers(
            {task: self._answer(task, np.asarray(p, np.float64)) for task, p in drawn.items()},
            None if features is None else self._foreign(np.asarray(features, np.float64)),
        )

    def _foreign(self, features: np.ndarray) -> ForeignScores:
        """Scores of fused features `[e, b, d]`."""
        of, known = self._distance, self._distance["known"]
        squared = []
        for member, x in enumerate(features):
            whitening = of[f"whitening_{member}"]
            from_centres = (x @ whitening)[:, None] - (of[f"means_{member}"] @ whitening)[None]
            squared.append(np.min(np.sum(from_centres**2, -1), 1))
        distance = np.mean(squared, 0) / features.shape[-1]
        as_far = len(known) - np.searchsorted(known, distance, side="left")
        p_value = (as_far + 1) / (len(known) + 1)
        return ForeignScores(distance, p_value, p_value <= self.card["foreign"]["foreign_below"])

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
            rest = ("num_features",) if is_table else ("height", "width", "channels")
            shape = (count, *(spec[side] for side in rest))
            dtype = np.dtype(np.float32 if is_table else np.uint8)
            given = np.asarray(images[name]) if name in images else np.zeros(shape, dtype)
            if given.shape != shape or given.dtype != dtype:
                raise ValueError(
                    f"{name} is {given.dtype} {given.shape}; it must be {dtype} {shape}."
                )
            pixels[name], present[name] = given, np.full(count, name in images)
            if name in given_present:
                present[name] = self._presence(name, given_present[name], present[name])
        if not np.any(list(present.values()), axis=0).all():
            raise ValueError("Some record has no image in any modality.")
        return pixels, present

    def _presence(self, name: str, given: np.ndarray, has_images: np.ndarray) -> np.ndarray:
        held = np.asarray(given)
        if held.dtype != bool or held.shape != has_images.shape:
            raise ValueError(
                f"present[{name!r}] is {held.dtype} {held.shape}; it must be bool "
                f"{has_images.shape}."
            )
        if (held & ~has_images).any():
            raise ValueError(f"Some records are said to hold {name}, but it was left out.")
        if not held.all() and not self.card["may_lack_modalities"]:
            raise ValueError(f"Some records lack {name}, and this network needs all modalities.")
        return held

    def _answer(self, task: str, samples: np.ndarray) -> Answer:
        if not np.isfinite(samples).all():
            raise ValueError(f"The answer to {task!r} is not finite.")
        of = self.card["tasks"][task]
        samples = samples / samples.sum(-1, keepdims=True)
        mean = samples.mean((0, 1))
        total, expected = _entropy(mean), _entropy(samples).mean((0, 1))
        rules = of["decisions"]
        shown, sets, refer = mean, None, None
        if rules is not None:
            shown = _calibrated(mean, rules["calibration"])
            sets = _sets(mean, rules["conformal"])
            refer = total > rules["referral"]["threshold"]
        classes = tuple(of["classes"])
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
      ExportError: when the file is no export, was damaged or changed, or needs a newer JAX.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            if names - {FOREIGN} != {CARD, FUNCTION, PARAMETERS}:
                raise ExportError(f"{path}: is a zip archive, but no exported network.")
            card = json.loads(archive.read(CARD))
            parts = {name: archive.read(name) for name in names - {CARD}}
    except FileNotFoundError as error:
        raise ExportError(f"{path}: there is no such file.") from error
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(f"{path}: is no exported network, or is damaged ({error}).") from error
    if not isinstance(card, dict) or card.get("format") not in READ_FORMATS:
        raise ExportError(f"{path}: is no export of the formats {' and '.join(READ_FORMATS)}.")
    if card.get("card_sha256") != card_digest(card):
        raise ExportError(f"{path}: {CARD} is not what was exported; the file was changed.")
    if missing := sorted(set(card["sha256"]) - set(parts)):
        raise ExportError(f"{path}: {missing[0]} is missing; the file was changed.")
    for name, data in sorted(parts.items()):
        if hashlib.sha256(data).hexdigest() != card["sha256"].get(name):
            raise ExportError(f"{path}: {name} is not what was exported; the file was changed.")
    leaves = _arrays(parts[PARAMETERS])
    parameters = [leaves[f"p{i}"] for i in range(len(leaves))]
    distance = None
    if FOREIGN in parts:
        distance = {n: x.astype(np.float64) for n, x in _arrays(parts[FOREIGN]).items()}
    try:
        return ExportedNetwork(card, parts[FUNCTION], parameters, distance)
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from error
    except Exception as error:
        raise ExportError(
            f"{path}: JAX {jax.__version__} cannot read a program that JAX "
            f"{card['versions']['jax']} wrote; use that version or a newer one. ({error})"
        ) from error


def card_digest(card: Mapping[str, Any]) -> str:
    """SHA-256 of a card without its own digest."""
    text = json.dumps({k: v for k, v in card.items() if k != "card_sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _arrays(packed: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        return dict(arrays)


def _words(record_ids: Sequence[str]) -> np.ndarray:
    digests = [hashlib.blake2b(str(i).encode(), digest_size=8).digest() for i in record_ids]
    return np.frombuffer(b"".join(digests), np.uint32).reshape(len(digests), 2)


def _entropy(p: np.ndarray) -> np.ndarray:
    return np.maximum(-np.sum(p * np.log(np.where(p > 0, p, 1.0)), -1), 0.0)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _calibrated(p: np.ndarray, rules: Mapping[str, Any]) -> np.ndarray:
    of, logs = rules["constants"], np.log(np.maximum(p, SMALLEST_PROBABILITY))
    if rules["method"] == "temperature":
        return _softmax(logs / of["temperature"])
    if rules["method"] == "vector":
        return _softmax(np.asarray(of["scale"]) * logs + np.asarray(of["shift"]))
    if rules["method"] == "isotonic":
        curves = [np.interp(p[..., k], x, y) for k, (x, y) in enumerate(of["knots"])]
        raw = np.stack(curves, -1)
        total = raw.sum(-1, keepdims=True)
        return np.where(total > 0, raw / np.where(total > 0, total, 1.0), p)
    return p


def _sets(p: np.ndarray, rules: Mapping[str, Any]) -> np.ndarray:
    thresholds = np.array([math.inf if t is None else t for t in rules["thresholds"]])
    if rules["method"] == "lac":
        return 1.0 - p <= thresholds
    order = np.argsort(-p, axis=1, kind="stable")
    ranked = np.cumsum(np.take_along_axis(p, order, 1), 1)
    if rules["method"] == "raps":
        beyond = np.arange(1, p.shape[1] + 1) - rules["free_classes"]
        ranked = ranked + rules["penalty"] * np.maximum(beyond, 0)
    scores = np.empty_like(ranked)
    np.put_along_axis(scores, order, ranked, 1)
    return scores <= thresholds
