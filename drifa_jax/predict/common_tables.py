"""Members of an ensemble whose tables were encoded by unlike training rows, as one network.

Each fold of a cross-validation scales a column by its own training rows, and knows the categories
of those alone. A row is then encoded once, in what all of them tell apart, and the first matrix of
each member's branch takes the way from there to its own encoding into itself. So each member
answers as it does alone, up to rounding, and learns nothing of the rows that others trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from drifa_jax.data.table import TableEncoding, common_encoding, translation
from drifa_jax.predict.described import Description


def in_common(descriptions: Sequence[Description]) -> list[Description]:
    """The descriptions with one encoding of each table; as they are where its columns differ."""
    tables = [_tables(description) for description in descriptions]
    if len({tuple((name, e.columns) for name, e in own.items()) for own in tables}) > 1:
        return list(descriptions)
    common = {name: common_encoding([own[name] for own in tables]) for name in tables[0]}
    return [
        replace(
            own,
            modalities=tuple(
                common[spec.name].spec if spec.name in common else spec for spec in own.modalities
            ),
            readings=own.readings
            | {name: replace(own.readings[name], encoding=e) for name, e in common.items()},
        )
        for own in descriptions
    ]


def translated(params: Mapping[str, Any], own: Description, common: Description) -> dict[str, Any]:
    """Parameters of members, each `[e, ...]`, for rows that are encoded in common.

    Test: tests/predict/test_common_tables.py.
    """
    branches, theirs = dict(params["branches"]), _tables(common)
    for name, encoding in _tables(own).items():
        if encoding == theirs[name]:
            continue
        matrix, shift = translation(theirs[name], encoding)
        first = branches[name]["embed"]
        kernel = np.asarray(first["kernel"], np.float64)
        bias = np.asarray(first["bias"], np.float64) + shift @ kernel
        branches[name] = {
            **branches[name],
            "embed": {
                "kernel": (matrix @ kernel).astype(first["kernel"].dtype),
                "bias": bias.astype(first["bias"].dtype),
            },
        }
    return {**params, "branches": branches}


def _tables(description: Description) -> dict[str, TableEncoding]:
    return {
        name: reading.encoding
        for name, reading in description.readings.items()
        if reading.encoding is not None
    }
