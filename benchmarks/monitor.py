"""How often `drifa monitor` alarms where nothing changed, and where something did.

    python -m benchmarks.monitor runs/brain-quick runs/monitor

Predicts SYNTHETIC phantoms that the run has never seen, as they are and shifted (another window,
another organ, another class mix), and keeps the tables in `runs/monitor/tables`. Then it draws
histories of six periods from them and judges each as the command does:

- resampled: validation records and periods are drawn apart from the unseen records, as many as the
  run has, so that every history has validation records of its own. The rate that is stated is of
  these.
- own: the run's own validation records in every history. Its rate is that of this run alone.
- shifts: the last two periods hold a share of shifted records.

It also writes `runs/monitor/stable` and `runs/monitor/shifted-*`, six tables each, for the command.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from drifa_jax.data.sources.phantoms import PhantomSource
from drifa_jax.evaluate.intervals import group_numbers
from drifa_jax.monitor.limits import Series, judge
from drifa_jax.monitor.reference import reference_of
from drifa_jax.monitor.statistics import LABELLED, statistics_of, values_of
from drifa_jax.predict.predictor import Predictor, load
from drifa_jax.predictions.files import read_predictions, write_predictions
from drifa_jax.predictions.table import Predictions, joined

PERIODS, SEED = 6, 4711
MONTHS = [f"2024-{month:02d}" for month in range(1, PERIODS + 1)]
Images = dict[str, np.ndarray]


def other_window(images: Images) -> Images:
    """CT shown by a window a third as wide about its middle grey."""
    ct = np.clip((images["ct"].astype(float) - 128) * 3 + 128, 0, 255).astype(np.uint8)
    return images | {"ct": ct}


def other_organ(images: Images) -> Images:
    """No head but the same matter torn apart: four quarters exchanged."""
    return {
        name: np.roll(x, (x.shape[0] // 2, x.shape[1] // 2), (0, 1)) for name, x in images.items()
    }


def predicted(
    predictor: Predictor, path: Path, count: int, change: Callable[[Images], Images] = dict
) -> Predictions:
    """Answers to `count` unseen phantoms with their labels, kept in a file."""
    if path.is_file():
        return read_predictions(path)
    source = PhantomSource("test", count, SEED, image_size=64)
    parts = []
    for start in range(0, count, 100):
        records = [source[row] for row in range(start, min(start + 100, count))]
        changed = [change(record.images) for record in records]
        names = [record.record_id for record in records]
        images = {m: np.stack([x[m] for x in changed]) for m in changed[0]}
        found = predictor.predict(*predictor.read(images), names)
        tasks = {
            task: dataclasses.replace(
                answer, truth=np.array([record.labels[task] for record in records])
            )
            for task, answer in found.tasks.items()
        }
        parts.append(dataclasses.replace(found, tasks=tasks))
        print(f"{path.name}: {start + len(records)} of {count}", flush=True)
    whole = joined(parts)
    write_predictions(whole, path)
    return whole


def alarms(
    values: np.ndarray,
    is_share: np.ndarray,
    reference: np.ndarray,
    groups: np.ndarray,
    periods: list[np.ndarray],
    seed: int,
) -> np.ndarray:
    """Which statistics alarm in which period, `[t, s]` bool."""
    cells = [values[rows] for rows in periods]
    series = Series("all", reference, groups, cells)
    return judge([series], is_share, num_histories=1000, seed=seed).series[0].alarm


def rate(found: list[bool]) -> dict[str, float]:
    count, hits = len(found), int(np.sum(found))
    interval = binomtest(hits, count).proportion_ci(0.95, method="exact")
    return {"rate": hits / count, "low": interval.low, "high": interval.high, "of": count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("out", type=Path)
    parser.add_argument("--records", type=int, default=1500, help="unseen phantoms")
    parser.add_argument("--shifted", type=int, default=150, help="of them shifted, by each shift")
    parser.add_argument("--histories", type=int, default=1000)
    parser.add_argument("--shifted-histories", type=int, default=100, help="of each shift")
    parser.add_argument("--period", type=int, default=60, help="records of a period")
    parser.add_argument("--labels", action="store_true", help="judge what needs labels as well")
    options = parser.parse_args()
    folder = options.out / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    predictor = load(options.run)
    reference = reference_of([options.run], predictor.num_samples, predictor.seed, print)
    stable = predicted(predictor, folder / "stable.parquet", options.records)
    changes = {"window": other_window, "organ": other_organ}
    shifted = {
        name: predicted(predictor, folder / f"{name}.parquet", options.shifted, change)
        for name, change in changes.items()
    }
    write_folders(options, stable, shifted)

    statistics = statistics_of(reference.predictions, stable)
    if not options.labels:
        statistics = [s for s in statistics if s.kind not in LABELLED]
    is_share = np.array([s.is_share for s in statistics])
    known, values = (values_of(statistics, p) for p in (reference.predictions, stable))
    groups = group_numbers(reference.predictions.group_ids or reference.predictions.record_ids)
    others = {name: values_of(statistics, table) for name, table in shifted.items()}
    # Another mix needs no other pictures: records of one tumour alone.
    others["class mix"] = values[stable["tumour"].truth == 1]
    draw = np.random.default_rng(SEED)
    found: dict[str, list[bool]] = {}
    by_statistic = np.zeros(len(statistics))
    began = time.perf_counter()
    for history in range(options.histories):
        rows = draw.permutation(len(values))
        periods = np.split(rows[: PERIODS * options.period], PERIODS)
        rest = rows[PERIODS * options.period :][: len(known)]
        alone = np.arange(len(rest))
        alarm = alarms(values, is_share, values[rest], alone, periods, history)
        by_statistic += alarm.any(0)
        found.setdefault("resampled", []).append(bool(alarm.any()))
        alarm = alarms(values, is_share, known, groups, periods, history)
        found.setdefault("own", []).append(bool(alarm.any()))
        if history >= options.shifted_histories:
            continue
        for name, other in others.items():
            for share in (0.1, 0.25, 0.5, 1.0):
                together = np.concatenate([values, other])
                mixed = [period.copy() for period in periods]
                for period in mixed[-2:]:
                    count = round(share * len(period))
                    period[:count] = len(values) + draw.choice(len(other), count)
                alarm = alarms(together, is_share, known, groups, mixed, history)
                found.setdefault(f"{name}, {share:.0%}", []).append(bool(alarm[-2:].any()))
    took = time.perf_counter() - began
    results = {name: rate(hits) for name, hits in found.items()}
    document = {
        "statistics": {s.key: int(n) for s, n in zip(statistics, by_statistic, strict=True)},
        "validation_records": len(known),
        "periods": PERIODS,
        "records_a_period": options.period,
        "stated": 0.05,
        "seconds": took,
        "results": results,
    }
    name = "with-labels.json" if options.labels else "results.json"
    (options.out / name).write_text(json.dumps(document, indent=2) + "\n")
    print(f"{len(statistics)} statistics x {PERIODS} periods of {options.period} records")
    for name, of in results.items():
        print(f"{name:18} {of['rate']:.3f} ({of['low']:.3f} to {of['high']:.3f}) of {of['of']}")


def write_folders(options, stable: Predictions, shifted: dict[str, Predictions]) -> None:
    """Six monthly tables without a shift, and with each from the fifth month on."""
    size = options.period
    months = [stable.take(range(k * size, (k + 1) * size)) for k in range(PERIODS)]
    one_class = stable.take(np.flatnonzero(stable["tumour"].truth == 1))
    ends = {
        "stable": months[4:],
        **{f"shifted-{name}": _months(table, size) for name, table in shifted.items()},
        "shifted-class-mix": _months(one_class.take(range(len(one_class))), size),
    }
    for name, end in ends.items():
        folder = options.out / name
        folder.mkdir(exist_ok=True)
        for month, table in zip(MONTHS, [*months[:4], *end], strict=True):
            # The same phantom comes again in a shifted month, under a name of its own.
            ids = tuple(f"{month}/{record}" for record in table.record_ids)
            without = {t: dataclasses.replace(a, truth=None) for t, a in table.tasks.items()}
            renamed = dataclasses.replace(table, record_ids=ids, tasks=without)
            write_predictions(renamed, folder / f"{month}.parquet")
        _write_labels(options.out / f"{name}-labels.csv", [*months[:4], *end])


def _months(table: Predictions, size: int) -> list[Predictions]:
    half = min(size, len(table) // 2)
    return [table.take(range(half)), table.take(range(half, 2 * half))]


def _write_labels(path: Path, tables: list[Predictions]) -> None:
    lines = ["record_id," + ",".join(tables[0].tasks)]
    for month, table in zip(MONTHS, tables, strict=True):
        for row, record in enumerate(table.record_ids):
            cells = [a.classes[a.truth[row]] for a in table.tasks.values()]
            lines.append(",".join([f"{month}/{record}", *cells]))
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
