"""A plan as a config file that a person reads and edits."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from drifa_jax.plan.decisions import Plan
from drifa_jax.whole_files import written_whole

WIDTH = 96


def config_text(plan: Plan, command: str) -> str:
    """Python source of a config file: every setting of the plan below its reason.

    Args:
      plan: the settings.
      command: that made it, for the head of the file.
    """
    lines = [
        f'"""Planned from the data; edit it as you like.\n\n    {command}\n',
        *(_wrapped(warning, "* ", "  ") for warning in plan.warnings),
        '"""\n' if not plan.warnings else '\n"""\n',
        "from drifa_jax.config import default_config, modality\n\n",
        'def get_config(variant: str = ""):',
        "    config = default_config()",
        "    config.data.modalities = {",
    ]
    for name, fields in plan.modalities.items():
        lines.append(f"        {name!r}: modality(")
        for key, value in fields.items():
            lines += _reason(plan, f"data.modalities.{name}.{key}", " " * 12)
            lines.append(f"            {key}={value!r},")
        lines.append("        ),")
    lines.append("    }")
    for key, value in plan.settings.items():
        lines += _reason(plan, key, " " * 4)
        lines.append(f"    config.{key} = {value!r}")
    return "\n".join([*lines, "    return config.lock()\n"])


def write_config(path: Path, text: str) -> None:
    """Writes the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        partial.write_text(text)


def rows(plan: Plan) -> list[tuple[str, str, str]]:
    """(setting, value, reason) of everything decided, for a table."""
    told: list[tuple[str, Any]] = [
        (f"data.modalities.{name}.{key}", value)
        for name, fields in plan.modalities.items()
        for key, value in fields.items()
    ]
    told += plan.settings.items()
    return [(key, _short(value), plan.reasons.get(key, "")) for key, value in told]


def _short(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _reason(plan: Plan, key: str, indent: str) -> list[str]:
    reason = plan.reasons.get(key)
    return [_wrapped(reason, f"{indent}# ", f"{indent}# ")] if reason else []


def _wrapped(text: str, first: str, others: str) -> str:
    # A reason quotes names of the data, which must not end the string or the comment they stand in.
    plain = " ".join(text.split()).replace("\\", "/").replace('"""', "'''")
    return textwrap.fill(plain, WIDTH, initial_indent=first, subsequent_indent=others)
