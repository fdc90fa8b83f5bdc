"""Codes of classes: of a standard where a file names them, of the model itself elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drifa_jax.archive.identity import ModelIdentity, line
from drifa_jax.archive.places import highdicom
from drifa_jax.data.problems import Problems
from drifa_jax.errors import UserError

CONCEPTS, CLASSES = "99DRIFA", "99DRIFACLASS"
"""Private coding schemes: of what a report says, and of the classes of one model. The version of
the second is the identity of the model, whose tasks and classes it numbers from 1."""

LONGEST_MEANING, LONGEST_CODE, LONGEST_SCHEME = 64, 64, 16


@dataclass(frozen=True)
class Code:
    """A coded concept, as (value, scheme, meaning)."""

    value: str
    scheme: str
    meaning: str
    version: str | None = None


Codes = Mapping[str, Mapping[str, Code]]
"""Task -> class -> its code."""


def concept(value: str, meaning: str) -> Any:
    """What one item of a report says, in the private scheme."""
    return coded(Code(value, CONCEPTS, meaning))


def coded(code: Code) -> Any:
    """A `highdicom.sr.CodedConcept`."""
    made = highdicom().sr.CodedConcept
    return made(code.value, code.scheme, code.meaning, scheme_version=code.version)


def class_codes(model: ModelIdentity, standard: Codes | None = None) -> Codes:
    """Every class of a model; what `standard` does not name has a code of the model's own."""
    version = model.identity[:16] or None
    return {
        task: {
            name: (standard or {}).get(task, {}).get(name)
            or Code(f"{number}.{place}", CLASSES, line(name) or f"class {place}", version)
            for place, name in enumerate(classes, start=1)
        }
        for number, (task, classes) in enumerate(model.tasks.items(), start=1)
    }


def read_codes(path: Path, tasks: Mapping[str, tuple[str, ...]]) -> Codes:
    """Standard codes from a JSON file: `{"tumour": {"glioma": ["393564001", "SCT", "Glioma"]}}`.

    Args:
      path: of the file.
      tasks: task -> class names, of the model. Classes that the file leaves out keep private codes.

    Raises:
      UserError: naming the file and every task, class or code that cannot be.
    """
    form = 'It reads {"task": {"class": ["value", "scheme", "meaning"]}}.'
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--codes {path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise UserError(f"--codes {path}: is no JSON ({error}). {form}") from error
    problems = Problems(f"--codes {path}")
    found: dict[str, dict[str, Code]] = {}
    if not isinstance(document, dict) or not all(isinstance(x, dict) for x in document.values()):
        raise UserError(f"--codes {path}: is no object of objects. {form}")
    for task, classes in document.items():
        if task not in tasks:
            problems.add(repr(task), f"is no task of this network, which answers {list(tasks)}")
            continue
        for name, values in classes.items():
            where = f"{task!r}: {name!r}"
            if name not in tasks[task]:
                problems.add(where, f"is no class; they are {list(tasks[task])}")
            elif wrong := _wrong(values):
                problems.add(where, wrong)
            else:
                found.setdefault(task, {})[name] = Code(*values)
    problems.raise_any(form)
    return found


def _wrong(values: Any) -> str:
    """What is wrong with a code; "" where nothing is."""
    if not (
        isinstance(values, list) and len(values) == 3 and all(isinstance(x, str) for x in values)
    ):
        return "is no list of three texts"
    value, scheme, meaning = values
    if not re.fullmatch(rf"[\w.:/-]{{1,{LONGEST_CODE}}}", value):
        return f"has the value {value!r}, which is no code of up to {LONGEST_CODE} characters"
    if not re.fullmatch(rf"[A-Za-z0-9_.-]{{1,{LONGEST_SCHEME}}}", scheme):
        return f"has the scheme {scheme!r}; a designator such as SCT has up to 16 characters"
    if not meaning.strip() or line(meaning, 10**6) != meaning or len(meaning) > LONGEST_MEANING:
        return f"has a meaning that is no text of up to {LONGEST_MEANING} characters"
    return ""
