"""Dataclasses from plain values, such as JSON, with an error that names the field and the cure."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from drifa_jax.errors import UserError


def from_plain(kind: type, values: Any, where: str = "", problems: list[str] | None = None) -> Any:
    """A dataclass from a mapping, recursively.

    Args:
      kind: the dataclass; its fields are int, float, str, bool, `int | str`, tuples, mappings or
        dataclasses.
      values: field -> value; absent fields take their defaults.
      where: dotted name of the whole in messages.
      problems: collects what `kind` refuses, the refused group taking its defaults, so that all
        problems can be told at once; without a list the first one is raised.

    Raises:
      UserError: for unknown fields, values of the wrong type, and what `kind` refuses.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where} must be a group of fields, not {values!r}.")
    hints = typing.get_type_hints(kind)
    built = {}
    for name, value in values.items():
        dotted = f"{where}.{name}" if where else name
        if name not in hints:
            raise unknown_field(dotted, hints)
        built[name] = _value(hints[name], value, dotted, problems)
    try:
        return kind(**built)
    except ValueError as error:
        message = f"{where}.{error}".lstrip(".")
        if problems is None:
            raise UserError(message) from error
        problems.append(message.rstrip("."))
        return kind()


def unknown_field(dotted: str, known: Mapping[str, Any]) -> UserError:
    """The error for a field that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(dotted.rsplit(".", 1)[-1], list(known), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = f" Known here: {', '.join(known)}." if known else ""
    return UserError(f"there is no field {dotted!r}.{hint}{listed}")


def _value(kind: Any, value: Any, where: str, problems: list[str] | None) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_plain(kind, value, where, problems)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise UserError(f"{where} must be a mapping, not {value!r}.")
        return {k: _value(arguments[1], v, f"{where}.{k}", problems) for k, v in value.items()}
    if origin is tuple:
        alone = value != "" and isinstance(value, str | int | float)
        items = (value,) if alone else value
        if not items:
            return ()
        if not isinstance(items, Sequence):
            raise UserError(f"{where} must be a list, not {value!r}.")
        return tuple(_value(arguments[0], item, where, problems) for item in items)
    if origin is types.UnionType:
        kind = str if isinstance(value, str) else next(k for k in arguments if k is not str)
    accepted = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}[kind]
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, accepted):
        raise UserError(f"{where} is {value!r}; it must be of type {kind.__name__}.")
    return kind(value)
