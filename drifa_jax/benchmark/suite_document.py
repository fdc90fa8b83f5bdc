"""All sets of a suite as one JSON, one CSV and one HTML page."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from drifa_jax.benchmark import table
from drifa_jax.benchmark.page import page
from drifa_jax.benchmark.running import SetResult
from drifa_jax.train.run_directory import environment, write_whole


def document(suite: str, results: Sequence[SetResult], seeds: Sequence[int]) -> dict[str, Any]:
    """Of everything that is finished; what is not is named."""
    sets, missing = {}, []
    for result in results:
        of_set = table.of_set(result.found, result.methods, result.num_folds)
        if result.problem:
            missing.append(f"{result.name}: {result.problem}")
            of_set["verdict"] = f"NOT FINISHED: {result.problem} No conclusion can be drawn."
        elif of_set["holes"]:
            missing.append(f"{result.name}: {of_set['verdict']}")
        sets[result.name] = of_set | {
            "num_records": result.num_records,
            "num_groups": result.num_groups,
            "classes": list(result.classes),
        }
    return {
        "suite": suite,
        "branches": "frozen",
        "seeds": list(seeds),
        "sets": sets,
        "not_finished": missing,
        "environment": environment(),
        "made": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def write(found: dict[str, Any], workdir: Path) -> Iterator[str]:
    """Writes the three files; what to say of them."""
    workdir.mkdir(parents=True, exist_ok=True)
    for suffix, text in (
        ("json", table.as_json(found)),
        ("csv", table.as_csv(found)),
        ("html", page(found)),
    ):
        write_whole(workdir / f"benchmark.{suffix}", text)
    for name, of_set in found["sets"].items():
        yield f"{name}: {of_set['verdict']}"
    yield f"Table: {workdir / 'benchmark.html'}"
