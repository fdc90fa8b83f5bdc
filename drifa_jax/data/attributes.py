"""What else is known of a record: sex, age, hospital, scanner. For subgroups, never for training.

A source that knows more than images and labels has a method `attributes(index)`, column -> text;
sources that wrap others pass it on. It is no part of the `Source` protocol: most sets have none.
"""

from __future__ import annotations

from collections.abc import Mapping

from drifa_jax.data.record import Source


def attributes_of(source: Source, index: int) -> Mapping[str, str]:
    """The attributes of one record; empty where the source has none.

    Test: tests/data/test_attributes.py.
    """
    method = getattr(source, "attributes", None)
    return {} if method is None else method(index)
