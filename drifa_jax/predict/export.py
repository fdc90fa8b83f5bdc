"""Writes a predictor as one file that any machine with JAX and NumPy can run."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from drifa_jax.console import RESEARCH_NOTE
from drifa_jax.data.record import Spec, TabularSpec, VolumeSpec
from drifa_jax.errors import UserError
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
)
from drifa_jax.predict.predictor import Predictor, fused_features
from drifa_jax.predict.reading import Reading
from drifa_jax.uncertainty.mc_dropout import make_sampler
from drifa_jax.whole_files import written_whole

PLATFORMS = ("cpu", "cuda", "tpu")
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
    program, parameters = _program(predictor)
    parts = {
        FUNCTION: program,
        PARAMETERS: _packed({f"p{i}": leaf for i, leaf in enumerate(parameters)}),
    }
    if (detector := predictor.detector) is not None:
        parts[OUT_OF_DISTRIBUTION] = _packed(detector.to_arrays())
    card = _card(predictor)
    card["sha256"] = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    card["card_sha256"] = card_digest(card)
    try:
        with written_whole(path) as partial:
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(CARD, json.dumps(card, indent=2, allow_nan=False))
                for name, data in parts.items():
                    archive.writestr(name, data)
            differences = verify(predictor, partial)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}).") from error
    return card, differences


def verify(predictor: Predictor, path: Path) -> Differences:
    """How a file's answers differ from the live network's, on random images.

    Raises:
      UserError: when they differ by more than rounding explains, or the file cannot be read.
    """
    draw = np.random.default_rng(0)
    specs = predictor.description.modalities
    ids = ["first", "second", "third"]
    pixels = {
        s.name: draw.normal(size=(3, *s.shape)).astype(np.float32)
        if isinstance(s, TabularSpec)
        else draw.integers(0, 256, (3, *s.shape), np.uint8)
        for s in specs
    }
    present = {s.name: np.ones(3, bool) for s in specs}
    try:
        answers = load_exported(path)(pixels, ids)
    except ExportError as error:
        raise UserError(str(error)) from error
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


def _packed(arrays: dict[str, np.ndarray]) -> bytes:
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    return packed.getvalue()


def _program(predictor: Predictor) -> tuple[bytes, list[np.ndarray]]:
    restored = predictor.restored
    # One sample a pass: the program cannot know the memory of the machine that runs it.
    sampler = make_sampler(restored.network, num_samples=predictor.num_samples, samples_per_pass=1)
    leaves, structure = jax.tree.flatten((restored.params, restored.statistics))
    masks = predictor.description.may_lack_modalities

    def program(leaves, pixels, present, words, key_data):
        state = jax.tree.unflatten(structure, leaves)
        key = jax.random.wrap_key_data(key_data, impl="threefry2x32")
        held = present if masks else None
        samples = sampler(*state, pixels, key, words, None, held)
        if predictor.detector is None:
            return samples
        return samples, fused_features(restored.network, *state, pixels, held)

    (count,) = jax.export.symbolic_shape("b")
    specs = predictor.description.modalities
    exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(
        [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves],
        {s.name: jax.ShapeDtypeStruct((count, *s.shape), s.dtype) for s in specs},
        {s.name: jax.ShapeDtypeStruct((count,), jnp.bool_) for s in specs},
        jax.ShapeDtypeStruct((count, 2), jnp.uint32),
        jax.ShapeDtypeStruct((2,), jnp.uint32),
    )
    return bytes(exported.serialize()), [np.asarray(leaf) for leaf in leaves]


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
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
    }
