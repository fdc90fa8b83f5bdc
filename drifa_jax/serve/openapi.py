"""The interface described for programs (OpenAPI 3.1), as this network has it."""

from __future__ import annotations

from typing import Any

from drifa_jax.console import RESEARCH_NOTE
from drifa_jax.data.record import Spec, TabularSpec, VolumeSpec
from drifa_jax.predict.described import Description
from drifa_jax.serve.options import Limits, size_in_words

ERRORS = {
    "400": "The form is damaged, cut short, or gives a field twice.",
    "401": "The token is missing or wrong.",
    "403": "Another site asks.",
    "408": "The request did not arrive in time.",
    "413": "The request, or one of its fields, is too large.",
    "415": "The request is neither a form nor JSON.",
    "421": "The server does not go by that name.",
    "422": "A file cannot be read, or the case does not fit the network.",
    "429": "Too many cases wait; Retry-After says when to come back.",
    "503": "The network is being compiled, the server stops, or memory is full.",
}


def document(description: Description, limits: Limits, *, needs_token: bool) -> dict[str, Any]:
    """The document at `/openapi.json`."""
    readings = description.readings
    form: dict[str, Any] = {"record_id": _RECORD, "explain": _EXPLAIN}
    arrays: dict[str, Any] = {}
    for spec in description.modalities:
        form |= _form_fields(spec, readings[spec.name])
        arrays[spec.name] = _array(spec, readings[spec.name])
    body = {
        "type": "object",
        "required": ["modalities"],
        "additionalProperties": False,
        "properties": {
            "modalities": {
                "type": "object",
                "additionalProperties": False,
                "required": []
                if description.may_lack_modalities
                else [spec.name for spec in description.modalities],
                "properties": arrays,
            },
            "record_id": _RECORD,
            "explain": {
                "type": "boolean",
                "default": False,
                "description": _EXPLAIN["description"],
            },
        },
    }
    predict = {
        "summary": "One case: its answer, as `drifa predict` gives it",
        "description": f"At most {size_in_words(limits.upload_bytes)} a request, "
        f"{size_in_words(limits.json_bytes)} in JSON.",
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": {"type": "object", "properties": form}},
                "application/json": {"schema": body},
            },
        },
        "responses": {
            "200": _answers("The answer.", _answer(description)),
            **{status: _answers(told, _ERROR) for status, told in ERRORS.items()},
        },
    }
    paths = {
        "/v1/predict": {"post": predict},
        "/v1/studies": {
            "post": {
                "summary": "A study of DICOM files: its answer, and objects for its archive",
                "description": "As an archive sends it (STOW-RS). A file belongs to the modality "
                "that its header names. The answer is that of /v1/predict, with `objects`: links "
                "to a structured report (TID 1500) and to secondary captures with Grad-CAM, which "
                "are kept ten minutes.",
                "requestBody": {
                    "required": True,
                    "content": {'multipart/related; type="application/dicom"': {"schema": {}}},
                },
                "responses": predict["responses"],
            }
        },
        "/healthz": {
            "get": {
                "summary": "Whether cases are answered",
                "security": [],
                "responses": {"200": {"description": "ready"}, "503": {"description": "not yet"}},
            }
        },
        "/metrics": {
            "get": {
                "summary": "Counters, in the text format of Prometheus",
                "responses": {"200": {"description": "text"}},
            }
        },
    }
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "drifa serve",
            "version": "1",
            "description": f"{RESEARCH_NOTE} Trained on: {description.data}.",
        },
        "paths": paths,
    }
    if needs_token:
        found["components"] = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
        found["security"] = [{"token": []}]
    return found


_RECORD = {
    "type": "string",
    "maxLength": 200,
    "description": "name of the record, part of the keys of the samples; a fingerprint of its "
    "pixels where it is left out",
}
_EXPLAIN = {
    "type": "string",
    "enum": ["true", "false"],
    "description": "whether Grad-CAM, contributions and the answers without each modality come too",
}
_NUMBER = {"type": "number"}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {"kind": {"type": "string"}, "reason": {"type": "string"}},
        }
    },
}


def _form_fields(spec: Spec, reading) -> dict[str, Any]:
    if isinstance(spec, TabularSpec):
        return {f"{spec.name}.{column}": {"type": "string"} for column in reading.columns}
    file = {"type": "string", "format": "binary", "description": f"{reading.suffixes}"}
    if isinstance(spec, VolumeSpec):
        return {spec.name: {"type": "array", "items": file}}
    number = {"type": "integer", "minimum": 0, "description": "of a volume or of several frames"}
    return {spec.name: file, f"{spec.name}.slice": number}


def _array(spec: Spec, reading) -> dict[str, Any]:
    if isinstance(spec, TabularSpec):
        cell = {"type": ["number", "string", "null"]}
        columns = dict.fromkeys(reading.columns, cell)
        return {"type": "object", "properties": columns, "required": list(columns)}
    shape = "[depth, height, width]" if isinstance(spec, VolumeSpec) else "[height, width(, 3)]"
    return {
        "type": "array",
        "description": f"nested lists {shape} of whole numbers from 0 to 255, of any size; the "
        f"network reads {list(spec.shape)}",
    }


def _answer(description: Description) -> dict[str, Any]:
    tasks = {
        task: {
            "type": "object",
            "properties": {
                "predicted": {"type": "string", "enum": list(classes)},
                "probabilities": {
                    "type": "object",
                    "properties": dict.fromkeys(classes, _NUMBER),
                    "description": "calibrated where `calibration` is not none",
                },
                "uncalibrated": {"type": "object", "properties": dict.fromkeys(classes, _NUMBER)},
                "calibration": {"type": "string"},
                "uncertainty": {
                    "type": "object",
                    "description": "in nats; predictive_entropy = expected_entropy (aleatoric) + "
                    "mutual_information (epistemic)",
                },
                "prediction_set": {"type": ["array", "null"], "items": {"type": "string"}},
                "refer": {"type": ["boolean", "null"]},
                "notes": {"type": "array", "items": {"type": "string"}},
            },
        }
        for task, classes in description.tasks.items()
    }
    return {
        "type": "object",
        "properties": {
            "notice": {"type": "string"},
            "synthetic": {"type": "boolean"},
            "record_id": {"type": "string"},
            "tasks": {"type": "object", "properties": tasks},
            "out_of_distribution": {
                "type": ["object", "null"],
                "properties": {
                    "distance": _NUMBER,
                    "p_value": _NUMBER,
                    "flagged": {"type": "boolean"},
                },
            },
            "modalities": {"type": "object"},
            "rows": {"type": "object"},
            "lacks": {"type": "array", "items": {"type": "string"}},
            "model": {"type": "object"},
            "seconds": {"type": "object"},
            "explanation": {"type": "object", "description": "where `explain` is true"},
        },
    }


def _answers(told: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": told, "content": {"application/json": {"schema": schema}}}
