"""Do the 95 % intervals hold the truth 95 times in 100? By simulation of patients.

    python -m benchmarks.interval_coverage [--studies 400]

Patients have one to four records, which share a random effect; the network sees a noisy version of
the truth and is well calibrated or far too certain. The true figures are those of 200,000 patients.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np

from drifa_jax.evaluate.intervals import task_metrics
from drifa_jax.evaluate.metrics import METRICS, estimates

SHOWN = ("accuracy", "balanced_accuracy", "auroc", "f1_macro", "mcc", "brier", "nll", "ece")
SHARPNESS = (1.5, 4.0)
CLASSES = ("no", "yes", "late")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--groups", type=int, nargs="+", default=[25, 60, 200])
    options = parser.parse_args()
    print("| patients, sharpness | " + " | ".join(SHOWN) + " |\n| --- |" + " --- |" * len(SHOWN))
    for count, sharpness in itertools.product(options.groups, SHARPNESS):
        p, y, _ = drawn(200_000, sharpness, np.random.default_rng(0))
        truth = estimates(p, y)
        held = {name: [] for name in SHOWN}
        for study in range(options.studies):
            p, y, groups = drawn(count, sharpness, np.random.default_rng([1, count, study]))
            found = task_metrics(
                p,
                y,
                groups.astype(str),
                CLASSES,
                num_resamples=options.resamples,
                seed=study,
                metrics=[METRICS[name] for name in SHOWN],
            )
            for name in SHOWN:
                interval = found.scalars[name]
                if interval.low is not None:
                    held[name].append(interval.low <= truth[name] <= interval.high)
        cells = " | ".join(f"{100 * np.mean(held[name]):.1f}" for name in SHOWN)
        print(f"| {count}, {sharpness:g} | {cells} |", flush=True)


def drawn(num_patients: int, sharpness: float, draw: np.random.Generator):
    """Probabilities, labels and patients; `sharpness` 1.5 is well calibrated, 4 far too certain."""
    groups = np.repeat(np.arange(num_patients), draw.integers(1, 5, num_patients))
    y = draw.integers(0, 3, num_patients)[groups]
    effect = draw.normal(size=(num_patients, 3))[groups]
    logits = 1.8 * np.eye(3)[y] + 0.8 * effect + 0.8 * draw.normal(size=(len(y), 3))
    p = np.exp(sharpness * logits)
    return p / p.sum(1, keepdims=True), y, groups


if __name__ == "__main__":
    main()
