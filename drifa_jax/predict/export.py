"""Writes a predictor as one file that any machine with JAX and NumPy can run."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from drifa_jax.console import RESEARCH_NOTE
from drifa_jax.data.record import Spec, TabularSpec, VolumeSpec
from drifa_jax.errors import UserError
from drifa_jax.models.description import describe_network
from drifa_jax.post_processing.out_of_distribution import FLAGGED_BELOW
from drifa_jax.predict.exported import (
    CARD,
    FORMAT,
    FUNCTION,
    OUT_OF_DISTRIBUTION,
    PARAMETERS,
    ExportError,
    card_digest,
    load_exported,
    opened,
)
from drifa_jax.predict.predictor import Predictor
from drifa_jax.predict.program import (
    PLATFORMS,
    SIDES,
    facts_of,
    leaf_names,
    program_of,
    rebuilt,
)
from drifa_jax.predict.reading import Reading
from drifa_jax.whole_files import written_whole

TOLERANCE = 1e-5
"""Largest difference of a probability between the live and the exported network: the rounding
of float32 convolutions that are compiled for another batch size."""

DISTANCE_TOLERANCE = 1e-3
"""Largest relative difference of a distance from known records: whitening magnifies the
rounding above in directions in which features hardly vary."""


class Differences(NamedTuple):
    """Between the live and the exported network.

    Attributes:
      probability: largest difference of a sample's probability.
      distance: largest relative difference of a distance; None where there are none.
    """

    probability: float
    distance: float | None


def export(predictor: Predictor, path: Path) -> tuple[dict[str, Any], Differences]:
    """Writes a predictor to a file, reads it back and compares; returns its card and how it does.

    The program takes any number of records and runs on cpu, cuda and tpu. Images must already
    have the network's size; their scaling is inside the program.

    Raises:
      UserError: when the file cannot be written, or does not answer as the live network does;
        no file is left then.
    """
    restored = predictor.restored
    leaves = [np.asarray(x) for x in jax.tree.leaves((restored.params, restored.statistics))]
    card = _card(predictor)
    program = program_of(
        restored.network,
        leaves,
        card["modalities"],
        num_samples=predictor.num_samples,
        may_lack_modalities=predictor.description.may_lack_modalities,
        with_features=predictor.detector is not None,
    )
    parts = {PARAMETERS: _packed({f"p{i}": leaf for i, leaf in enumerate(leaves)})}
    if (detector := predictor.detector) is not None:
        parts[OUT_OF_DISTRIBUTION] = _packed(detector.to_arrays())
    with _written(path, card, program, parts) as partial:
        differences = verify(predictor, partial)
    return card, differences


def refresh(path: Path) -> tuple[dict[str, Any], float | None]:
    """Writes the program of a file anew, for this JAX; all else stays as it was.

    Returns:
      The card, and the largest difference of a probability between the old program and the new
      one; None where this JAX cannot read the old one.

    Raises:
      UserError: when the file is damaged, describes no network or cannot be written, or the new
        program answers otherwise; the file stays as it was then.
    """
    try:
        old = load_exported(path)
        card, parts = opened(path)
        program = rebuilt(card, old.parameters)
        parts.pop(FUNCTION)
        card["versions"] |= _versions()
        with _written(path, card, program, parts) as partial:
            new = load_exported(partial)
            pixels, ids = _noise(card)
            before, after = old(pixels, ids), new(pixels, ids)
            difference = max(
                float(np.abs(before[t].samples - after[t].samples).max()) for t in before
            )
            if not difference <= TOLERANCE:
                raise UserError(
                    f"{path}: the new program differs from the old one by {difference:.1e} in a "
                    f"probability, more than {TOLERANCE:.0e}; the file stays as it was."
                )
    except ExportError as error:
        raise UserError(str(error)) from error
    return card, None if old.rebuilt else difference


@contextmanager
def _written(path: Path, card: dict[str, Any], program, parts: dict[str, bytes]) -> Iterator[Path]:
    """A file beside `path`, which takes its place when the block ends well; completes the card."""
    parts = {FUNCTION: bytes(program.serialize()), **parts}
    card["program"] = facts_of(program)
    card["sha256"] = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    card["card_sha256"] = card_digest(card)
    try:
        with written_whole(path) as partial:
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(CARD, json.dumps(card, indent=2, allow_nan=False))
                for name, data in parts.items():
                    archive.writestr(name, data)
            yield partial
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}).") from error


def verify(predictor: Predictor, path: Path) -> Differences:
    """How a file's answers differ from the live network's, on random images.

    Raises:
      UserError: when they differ by more than rounding explains, or the file cannot be read.
    """
    try:
        network = load_exported(path)
        pixels, ids = _noise(network.card)
        answers = network(pixels, ids)
    except ExportError as error:
        raise UserError(str(error)) from error
    present = {name: np.ones(len(ids), bool) for name in pixels}
    live = predictor.samples(pixels, present, ids)
    difference = max(float(np.abs(answers[t].samples - p).max()) for t, p in live.items())
    if not difference <= TOLERANCE:
        raise UserError(
            f"{path}: the exported network differs from the live one by {difference:.1e} in a "
            f"probability, more than {TOLERANCE:.0e}; it was not kept."
        )
    detector, scores = predictor.detector, answers.out_of_distribution
    if (detector is None) != (scores is None):
        raise UserError(f"{path}: only one of file and live network measures distances.")
    if detector is None:
        return Differences(difference, None)
    distance = detector(predictor.features(pixels, present)).distance
    relative = float(np.max(np.abs(scores.distance / distance - 1)))
    # Rounding may carry a distance past that of a validation record, but no further.
    most, least = (detector.p_value(distance * (1 + d * DISTANCE_TOLERANCE)) for d in (-1, 1))
    p = scores.p_value
    if not (relative <= DISTANCE_TOLERANCE and (least <= p).all() and (p <= most).all()):
        raise UserError(
            f"{path}: the exported network differs from the live one by {relative:.1e} of a "
            f"distance, more than {DISTANCE_TOLERANCE:.0e}; it was not kept."
        )
    return Differences(difference, relative)


def _noise(card: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Three random records that a card's network reads, and their names."""
    draw = np.random.default_rng(0)
    pixels = {}
    for name, sides in card["modalities"].items():
        shape = (3, *(sides[side] for side in SIDES if side in sides))
        is_table = "num_features" in sides
        pixels[name] = (
            draw.normal(size=shape).astype(np.float32)
            if is_table
            else draw.integers(0, 256, shape, np.uint8)
        )
    return pixels, ["first", "second", "third"]


def _packed(arrays: dict[str, np.ndarray]) -> bytes:
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    return packed.getvalue()


def _modality_card(spec: Spec, reading: Reading) -> dict[str, Any]:
    if isinstance(spec, TabularSpec):
        return {
            "num_features": spec.num_features,
            "features": list(reading.encoding.feature_names),
            "encoding": dataclasses.asdict(reading.encoding),
        }
    card = {name: value for name, value in dataclasses.asdict(spec).items() if name != "name"}
    if isinstance(spec, VolumeSpec):
        card["spacing"] = list(reading.spacing)
    return card | {"fit": reading.fit, "format": reading.format, "window": reading.window}


def _card(predictor: Predictor) -> dict[str, Any]:
    restored, description = predictor.restored, predictor.description
    classes = {task: len(names) for task, names in description.tasks.items()}
    network = describe_network(restored.config, description.modalities, classes)
    fitted = {} if predictor.post_processing is None else predictor.post_processing.tasks
    return {
        "format": FORMAT,
        "notice": RESEARCH_NOTE,
        "synthetic": description.synthetic,
        "trained_on": description.data,
        "modalities": {
            s.name: _modality_card(s, description.readings[s.name]) for s in description.modalities
        },
        "preprocessing": "uint8 0..255 at the size above (area averaging where the image "
        "shrinks, else linear; volumes run upwards, backwards and to the patient's left); the "
        "program divides by 255",
        "may_lack_modalities": description.may_lack_modalities,
        "tasks": {
            task: {
                "classes": list(classes),
                "post_processing": fitted[task].to_json() if task in fitted else None,
            }
            for task, classes in description.tasks.items()
        },
        "out_of_distribution": None
        if (detector := predictor.detector) is None
        else {
            "measure": "squared Mahalanobis distance a fused feature, without dropout",
            "num_validation": len(detector.known),
            "flagged_below": FLAGGED_BELOW,
        },
        "identity": predictor.identity,
        "num_members": predictor.num_members,
        "num_samples": predictor.num_samples,
        "seed": predictor.seed,
        "platforms": list(PLATFORMS),
        "runs": [run.name for run in restored.runs],
        "steps": list(restored.steps),
        "config": json.loads(restored.config.to_json()),
        "network": network.to_json(),
        "leaves": leaf_names(restored.network),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    own = importlib.metadata.version("drifa-jax")
    return {"jax": jax.__version__, "numpy": np.__version__, "drifa_jax": own}
