"""Config files: Python that makes a configuration, with overrides from the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import yaml

from drifa_jax.config import Config, from_mapping
from drifa_jax.errors import UserError
from drifa_jax.plain_values import unknown_field

PRESETS = Path(__file__).parent / "configs"
"""The config files that the package brings along, those of `configs/` in a checkout."""


def presets() -> dict[str, Path]:
    """Name -> config file that the package brings along."""
    return {file.stem: file for file in sorted(PRESETS.glob("*.py"))}


def find_config(path: str) -> Path:
    """The config file of a path, or of a preset that is named as one: `configs/brain.py`, `brain`.

    Raises:
      UserError: if there is neither; it lists the presets.
    """
    file, preset = Path(path), presets().get(Path(path).stem)
    if file.is_file():
        return file
    if preset is not None and file.parent in (Path(), Path("configs")):
        return preset
    raise UserError(
        f"--config: there is no file {path!r}, and no such preset. Try configs/brain.py:quick; "
        f"`drifa configs` lists the presets ({', '.join(presets())})."
    )


def load_config(path: str, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """The configuration in a file, with overrides applied.

    Args:
      path: `FILE.py` or `FILE.py:VARIANT`; the file defines `get_config(variant="")`. A preset
        need not lie in the working directory.
      overrides: `("train.batch_size", "16")` and so on; values are read as their fields' types.

    Raises:
      UserError: naming the file, key or value, and what is accepted.
    """
    file, _, variant = path.partition(":")
    values = _apart(_call_get_config(find_config(file), variant).to_dict())
    for key, text in overrides:
        _override(values, key, text)
    return from_mapping(values)


def run_file(path: str | Path, flag: str) -> types.ModuleType:
    """The module of a Python file, which may register parts of its own.

    Raises:
      UserError: if there is no such file, it is none of Python, or it fails; it names the flag.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{flag}: there is no file {str(path)!r}.")
    spec = importlib.util.spec_from_file_location("drifa_config_file", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{flag}: {file} is not a Python file (its name must end in .py).")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{flag}: {file} failed with {type(error).__name__}: {error}") from error
    return module


def _call_get_config(file: Path, variant: str) -> ml_collections.ConfigDict:
    module = run_file(file, "--config")
    try:
        config = module.get_config(variant)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--config: {file} failed with {type(error).__name__}: {error}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"--config: get_config() in {file} must return a ConfigDict.")
    return config


def _apart(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group whose parts are its own: a file may give two modalities one and the same object."""
    return {name: _apart(v) if isinstance(v, Mapping) else v for name, v in group.items()}


def _override(values: dict[str, Any], key: str, text: str) -> None:
    *parents, name = key.split(".")
    group = values
    for depth, parent in enumerate(parents, start=1):
        if not isinstance(group.get(parent), dict):
            raise _unknown(".".join(key.split(".")[: depth + (parent in group)]), group)
        group = group[parent]
    if name not in group and parents[-1:] not in (["task_weights"], ["expert_weights"]):
        raise _unknown(key, group)
    if isinstance(group.get(name), dict):
        raise UserError(
            f"config: {key!r} is a group; set one of its fields: {', '.join(group[name])}."
        )
    try:
        group[name] = _read(_kind_of(Config, key.split(".")), text)
    except yaml.YAMLError as error:
        raise UserError(
            f"--config.{key}={text}: the value cannot be read. A list is written as [a, b]; a name "
            "in it that holds a comma, a colon or a bracket stands in quotes."
        ) from error


def _kind_of(kind: Any, names: Sequence[str]) -> Any:
    """The type of a field that exists, of dataclasses and mappings in each other."""
    for name in names:
        is_group = dataclasses.is_dataclass(kind)
        kind = typing.get_type_hints(kind)[name] if is_group else typing.get_args(kind)[1]
    return kind


def _read(kind: Any, text: str) -> Any:
    """What a person means who writes `text` in the place of a value of that type.

    A list may be written as in Python, in YAML, or without any brackets: `(9,)`, `[9]`, `9`.
    """
    if kind is str:
        return text
    if typing.get_origin(kind) is tuple:
        inside = text.strip()
        if inside[:1] + inside[-1:] in ("()", "[]"):
            inside = inside[1:-1]
        # Without types, since YAML takes the class `no` for False.
        items = yaml.load(f"[{inside}]", yaml.BaseLoader)
        of_one = typing.get_args(kind)[0]
        return [_read(of_one, item) if isinstance(item, str) else item for item in items]
    value = yaml.safe_load(text) if text else ""
    if kind is float and isinstance(value, str):
        # YAML takes 1e-4, without a point, for text.
        with contextlib.suppress(ValueError):
            value = float(value)
    return value


def _unknown(key: str, group: Mapping[str, Any]) -> UserError:
    return UserError(f"config: {unknown_field(key, group)}")
