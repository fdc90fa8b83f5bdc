"""Explanations as files: a picture of every case and task, and its figures for machines."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drifa_jax.console import RESEARCH_NOTE
from drifa_jax.errors import UserError
from drifa_jax.evaluate.folders import check_replaceable
from drifa_jax.explain.explanation import Explanation
from drifa_jax.predictions.files import write_csv
from drifa_jax.report.canvas import ALARM, FAINT, INK, PAPER, STYLE, SYNTHETIC_STAMP, plain_text
from drifa_jax.report.explanations import map_pictures
from drifa_jax.train.run_directory import write_whole
from drifa_jax.whole_files import folder_replaced

EXPLANATIONS_FILE, CONTRIBUTIONS_FILE = "explanations.json", "contributions.csv"
INCHES = 2.1
"""Side of one picture."""


def write_explanations(
    found: Sequence[Explanation], out: Path, *, num_members: int, synthetic: bool
) -> None:
    """Writes a PNG an explanation, `explanations.json` and `contributions.csv`, all or nothing.

    Raises:
      UserError: when the folder holds something else, or cannot be written.

    Test: tests/report/test_explained_cases.py.
    """
    check_replaceable(out, EXPLANATIONS_FILE)
    names = [f"{i:03d}-{_file_name(case)}.png" for i, case in enumerate(found, start=1)]
    document = {
        "notice": RESEARCH_NOTE,
        "synthetic": synthetic,
        "num_members": num_members,
        "explanations": [_entry(case, name) for case, name in zip(found, names, strict=True)],
    }
    try:
        with folder_replaced(out) as fresh:
            for case, name in zip(found, names, strict=True):
                drawn = explanation_png(case, num_members=num_members, synthetic=synthetic)
                (fresh / name).write_bytes(drawn)
            write_csv([row for case in found for row in rows(case)], fresh / CONTRIBUTIONS_FILE)
            text = json.dumps(document, indent=2, allow_nan=False) + "\n"
            write_whole(fresh / EXPLANATIONS_FILE, text)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}).") from error


def rows(explanation: Explanation) -> list[dict[str, Any]]:
    """One row a modality."""
    return [
        {
            "record_id": explanation.record_id,
            "task": explanation.task,
            "class": explanation.predicted,
            "probability": explanation.probability,
            "modality": modality,
            "shapley": explanation.shapley[modality],
            "shapley_spread": explanation.shapley_spread[modality],
            "leave_one_out": explanation.leave_one_out[modality],
            "factor": explanation.factors.get(modality, ""),
            "trained_without": explanation.trained_without,
        }
        for modality in explanation.shapley
    ]


def explanation_png(explanation: Explanation, *, num_members: int, synthetic: bool) -> bytes:
    """One case and task as a PNG: a row of pictures for each image, then the values of tables."""
    import matplotlib
    from matplotlib.figure import Figure

    pictures = {
        m: map_pictures(image, explanation.maps[m], num_members)
        for m, image in explanation.images.items()
    }
    columns = 3 if num_members > 1 else 2
    lines = [*map(_table_line(explanation), explanation.rows), _warning(explanation), RESEARCH_NOTE]
    lines = [line for line in lines if line]
    width, below = INCHES * columns + 0.4, 0.19 * len(lines) + 0.15
    height = 0.75 + (INCHES + 0.3) * len(pictures) + below
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))

        def write(y: float, text: str, **options: Any) -> None:
            options = {"va": "top", "fontsize": 8.5, "color": INK} | options
            figure.text(0.2 / width, 1 - y / height, text, **options)

        write(
            0.12,
            f"{explanation.task}: {explanation.predicted}, {explanation.probability:.2f}",
            fontsize=12,
            weight="bold",
        )
        write(
            0.42,
            f"{_shortened(explanation.record_id)}; "
            f"entropy {explanation.predictive_entropy:.2f} nats",
        )
        if synthetic:
            figure.text(
                1 - 0.2 / width, 1 - 0.12 / height, SYNTHETIC_STAMP, ha="right", va="top",
                fontsize=8, color=ALARM,
            )  # fmt: skip
        top = 0.75
        for modality, several in pictures.items():
            for column, (pixels, title) in enumerate(several):
                place = (
                    (0.2 + column * INCHES) / width,
                    1 - (top + 0.22 + INCHES) / height,
                    (INCHES - 0.06) / width,
                    INCHES / height,
                )
                axes = figure.add_axes(place)
                axes.imshow(pixels)
                axes.set_axis_off()
                shown = f"{modality} adds {_share(explanation, modality, num_members)}"
                axes.set_title(title if column else shown, fontsize=8.5, color=INK, pad=3)
            top += INCHES + 0.3
        for number, line in enumerate(lines):
            write(top + 0.05 + 0.19 * number, line, fontsize=8, color=FAINT)
        packed = io.BytesIO()
        plain_text(figure)
        figure.savefig(packed, dpi=160, format="png", facecolor=PAPER)
    return packed.getvalue()


def _entry(explanation: Explanation, picture: str) -> dict[str, Any]:
    return {
        "record_id": explanation.record_id,
        "task": explanation.task,
        "class": explanation.predicted,
        "probability_uncalibrated": explanation.probability,
        "predictive_entropy": explanation.predictive_entropy,
        "mutual_information": explanation.mutual_information,
        "rows": {m: dict(row) for m, row in explanation.rows.items()},
        "contributions": explanation.contributions(),
        "factors": dict(explanation.factors),
        "trained_without_modalities": explanation.trained_without,
        "maps": {
            m: {"hottest": x.hottest} for m, x in explanation.maps.items() if x.mean.max() > 0
        },
        "picture": picture,
    }


def _table_line(explanation: Explanation):
    def line(modality: str) -> str:
        values = ", ".join(
            f"{column} {value}" for column, value in explanation.rows[modality].items()
        )
        return f"{modality} adds {explanation.shapley[modality]:+.2f}: {values}"

    return line


def _warning(explanation: Explanation) -> str:
    if explanation.trained_without:
        return ""
    return "Never trained without a modality: what one adds is an extrapolation."


def _share(explanation: Explanation, modality: str, num_members: int) -> str:
    spread = f" ± {explanation.shapley_spread[modality]:.2f}" if num_members > 1 else ""
    return f"{explanation.shapley[modality]:+.2f}{spread}"


def _shortened(name: str) -> str:
    return name if len(name) <= 48 else f"{name[:20]}...{name[-25:]}"


def _file_name(explanation: Explanation) -> str:
    return re.sub(
        r"[^A-Za-z0-9.-]+", "_", f"{_shortened(explanation.record_id)}-{explanation.task}"
    ).strip("._")
