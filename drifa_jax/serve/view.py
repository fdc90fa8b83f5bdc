"""What a page shows of a case: words and numbers that need no more arithmetic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from drifa_jax.data.record import TabularSpec
from drifa_jax.inline_pictures import data_uri
from drifa_jax.post_processing.out_of_distribution import FLAGGED_BELOW
from drifa_jax.predict.restored import Description
from drifa_jax.predictions.table import Predictions, TaskPredictions
from drifa_jax.serve.cases import Answered
from drifa_jax.serve.engine import Explained
from drifa_jax.serve.overlays import overlay, picture_size

TIMES = " \N{MULTIPLICATION SIGN} "


def result_view(
    description: Description, answered: Answered, explained: Explained | None, lacks: list[str]
) -> dict[str, Any]:
    """Of an answered case; `explained` is None as long as that is not known."""
    predictions = answered.predictions
    return {
        "record_id": answered.case.record_id,
        "tasks": [_task(task, found, explained) for task, found in predictions.tasks.items()],
        "likeness": _likeness(predictions),
        "pictures": _pictures(description, answered, explained),
        "rows": answered.case.rows,
        "absent": [name for name, held in answered.case.present.items() if not held],
        "without": _without(answered, explained),
        "extrapolates": explained is not None and explained.extrapolates,
        "explained": explained is not None,
        "has_maps": explained is not None
        and any(explanation.maps for explanation in explained.tasks.values()),
        "lacks": lacks,
        "provenance": predictions.provenance,
        "summary": "; ".join(
            f"{task}: {found.labels[0]}, {percent(found.probabilities[0].max())}"
            for task, found in predictions.tasks.items()
        ),
    }


def percent(p: float) -> str:
    """A probability in words: certainty is never claimed."""
    if p > 0.995 or p < 0.005:
        return "over 99 %" if p > 0.5 else "under 1 %"
    return f"{100 * p:.0f} %"


def _task(task: str, found: TaskPredictions, explained: Explained | None) -> dict[str, Any]:
    p, measures = found.probabilities[0], found.uncertainty
    most = math.log(len(found.classes))
    in_set = found.set_of(0)
    data, model = float(measures.expected_entropy[0]), float(measures.mutual_information[0])
    explanation = None if explained is None else explained.tasks.get(task)
    return {
        "name": task,
        "predicted": found.labels[0],
        "percent": percent(p.max()),
        "classes": [
            {
                "name": name,
                "percent": percent(p[k]),
                "width": f"{100 * p[k]:.1f}",
                "in_set": in_set is not None and name in in_set,
                "predicted": name == found.labels[0],
            }
            for k, name in sorted(enumerate(found.classes), key=lambda item: -p[item[0]])
        ],
        "set": in_set,
        "refer": None if found.refer is None else bool(found.refer[0]),
        "calibration": found.calibration,
        "notes": found.notes,
        "entropy": {
            "total": f"{data + model:.2f}",
            "most": f"{most:.2f}",
            "share": f"{100 * (data + model) / most:.0f} %",
            "data": f"{data:.3f}",
            "model": f"{model:.3f}",
            "data_width": f"{100 * data / most:.1f}",
            "model_width": f"{100 * model / most:.1f}",
            "model_left": f"{100 * data / most:.1f}",
        },
        "contributions": [] if explanation is None else _contributions(explanation),
        "explains": "" if explanation is None else explanation.predicted,
    }


def _contributions(explanation: Any) -> list[dict[str, str]]:
    widest = max((abs(share) for share in explanation.shapley.values()), default=0.0) or 1.0
    found = []
    for name, share in explanation.shapley.items():
        width = 50 * abs(share) / max(widest, 0.05)
        spread = explanation.shapley_spread[name]
        found.append(
            {
                "name": name,
                "value": f"{share:+.2f}" + (f" ± {spread:.2f}" if spread > 0 else ""),
                "left": f"{50 - width if share < 0 else 50:.1f}",
                "width": f"{width:.1f}",
                "sign": "against" if share < 0 else "for",
                "alone": f"{explanation.leave_one_out[name]:+.2f}",
            }
        )
    return found


def _likeness(predictions: Predictions) -> dict[str, Any] | None:
    scores = predictions.out_of_distribution
    if scores is None:
        return None
    p = float(scores.p_value[0])
    return {
        "p": f"{p:.2f}" if p >= 0.01 else f"{p:.3f}",
        "percent": f"{100 * p:.0f} %" if p >= 0.01 else f"{100 * p:.1f} %",
        "width": f"{100 * p:.1f}",
        "limit": f"{100 * FLAGGED_BELOW:.0f}",
        "flagged": bool(scores.flagged[0]),
    }


def _pictures(
    description: Description, answered: Answered, explained: Explained | None
) -> list[dict[str, Any]]:
    found = []
    for spec in description.modalities:
        picture = answered.case.pictures.get(spec.name)
        if picture is None or isinstance(spec, TabularSpec):
            continue
        try:
            size = picture_size(picture)
        except ValueError:
            continue
        facts = answered.case.facts[spec.name]
        heats = []
        for task, explanation in ({} if explained is None else explained.tasks).items():
            heat_map = explanation.maps.get(spec.name)
            if heat_map is not None and heat_map.mean.max() > 0:
                fit = description.readings[spec.name].fit
                source = data_uri(overlay(np.asarray(heat_map.mean), size, fit))
                heats.append({"task": task, "class": explanation.predicted, "source": source})
        found.append(
            {
                "name": spec.name,
                "source": data_uri(picture),
                "height": size[0],
                "width": size[1],
                "shape": TIMES.join(map(str, facts.get("size", []))),
                "read": TIMES.join(map(str, spec.shape[:-1])),
                "window": str(facts.get("window", "")),
                "slice": facts.get("slice"),
                "slices": facts.get("slices"),
                "notes": [str(note) for note in facts.get("notes", [])],
                "heats": heats,
            }
        )
    return found


def _without(answered: Answered, explained: Explained | None) -> list[dict[str, Any]]:
    if explained is None:
        return []
    now = answered.predictions.tasks
    return [
        {
            "name": name,
            "answers": [
                {
                    "task": task,
                    "predicted": other.labels[0],
                    "percent": percent(other.probabilities[0].max()),
                    "changes": other.labels[0] != now[task].labels[0],
                    "still": percent(
                        other.probabilities[0][now[task].classes.index(now[task].labels[0])]
                    ),
                }
                for task, other in found.tasks.items()
            ],
        }
        for name, found in explained.without.items()
    ]


def form_view(description: Description) -> list[dict[str, Any]]:
    """What is asked for: a file of each modality, or the fields of a table."""
    asked = []
    for spec in description.modalities:
        reading = description.readings[spec.name]
        if isinstance(spec, TabularSpec):
            columns, encoding = reading.encoding.columns, reading.encoding
            scales = zip(encoding.means, encoding.deviations, strict=True)
            numeric = [
                {"name": name, "hint": f"about {mean:.4g} ± {deviation:.2g} in training"}
                for name, (mean, deviation) in zip(columns.numeric, scales, strict=True)
            ]
            chosen = [
                {"name": name, "choices": known}
                for name, known in zip(columns.categorical, encoding.categories, strict=True)
            ]
            asked.append({"name": spec.name, "numeric": numeric, "chosen": chosen, "table": True})
            continue
        asked.append(
            {
                "name": spec.name,
                "table": False,
                "volume": reading.volume,
                "read": TIMES.join(map(str, spec.shape[:-1])),
                "formats": _formats(reading),
                "sliced": not reading.volume,
            }
        )
    return asked


def _formats(reading: Any) -> str:
    if reading.volume:
        return {"image": "a .npy volume", "dicom": "a DICOM series", "nifti": "NIfTI"}.get(
            reading.format, "NIfTI or a DICOM series"
        )
    return {"dicom": "DICOM", "nifti": "NIfTI"}.get(reading.format, "PNG, JPEG, DICOM or NIfTI")
