"""Is the uncertainty of a run worth acting on? Answers on its test split, as Markdown.

    python benchmarks/uncertainty_study.py RUN [RUN...] [--foreign mri=FOLDER] [--figure OUT.png]

Every rule (temperature, sets, referral threshold) is fitted on the validation split and frozen.
Foreign images take the place of one modality in the test records; so do corrupted ones.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from drifa_jax.compilation import use_compilation_cache
from drifa_jax.data.dataset import open_dataset
from drifa_jax.data.decode import decode_file
from drifa_jax.models.pixels import scale_pixels
from drifa_jax.predict.inputs import find_cases
from drifa_jax.predict.predictor import load
from drifa_jax.uncertainty import calibration, conformal, ood, selective

MEASURES = (
    "predictive_entropy",
    "expected_entropy",
    "mutual_information",
    "predictive_variance",
    "variation_ratio",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--records", type=int, default=500, help="test records at most")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--foreign", action="append", default=[], metavar="MODALITY=FOLDER")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    use_compilation_cache()
    predictor = load(*options.runs, num_samples=options.samples)
    dataset = open_dataset(predictor.restored.config.data)
    test = Split(predictor, dataset.test, options.records, seed=0)
    print(
        f"{'SYNTHETIC. ' * dataset.synthetic}{test.count} test records, "
        f"{predictor.num_members} member(s) x {predictor.num_samples} samples.\n"
    )
    print_tasks(predictor, test)
    print_foreign(predictor, dataset, test, options.foreign)
    if options.figure:
        draw(predictor, test, options.figure, dataset.synthetic)


class Split:
    """Some records of a source, read once, with what the ensemble says of them."""

    def __init__(self, predictor, source, limit: int, seed: int):
        rows = np.random.default_rng(seed).permutation(len(source))[:limit]
        records = [source[int(row)] for row in np.sort(rows)]
        specs = predictor.description.modalities
        self.count = len(records)
        self.ids = [record.record_id for record in records]
        self.pixels = {
            s.name: np.stack([r.images.get(s.name, np.zeros(s.shape, np.uint8)) for r in records])
            for s in specs
        }
        self.present = {s.name: np.array([s.name in r.images for r in records]) for s in specs}
        self.labels = {
            task: np.array([r.labels.get(task, -1) for r in records])
            for task in predictor.description.tasks
        }
        self.uncertainty = predictor.uncertainty(self.pixels, self.present, self.ids)

    def known(self, task: str):
        """Uncertainty measures, mean probabilities, labels and errors of labelled records."""
        of, labels = self.uncertainty[task], self.labels[task]
        rows = labels >= 0
        p = of.probabilities[rows]
        return (
            {name: value[rows] for name, value in of.measures().items()},
            p,
            labels[rows],
            p.argmax(1) != labels[rows],
        )


def print_tasks(predictor, test: Split) -> None:
    for task in predictor.description.tasks:
        measures, p, y, wrong = test.known(task)
        rules = predictor.decisions[task]
        mended = rules.calibrator(p)
        print(f"### {task}: {len(y)} labelled records, error {wrong.mean():.1%}\n")
        print("| does it rank errors? | AUROC | AURC | AUGRC |\n| --- | --- | --- | --- |")
        for name in MEASURES:
            auroc = selective.error_detection_auroc(measures[name], wrong)
            print(
                f"| {name.replace('_', ' ')} | {number(auroc)} | "
                f"{selective.aurc(measures[name], wrong):.3f} | "
                f"{selective.augrc(measures[name], wrong):.3f} |"
            )
        referral = selective.refer(measures["predictive_entropy"], wrong, rules.referral)
        table = selective.certainty_table(measures["predictive_entropy"], wrong, rules.referral)
        print(
            f"\nReferral at the frozen threshold: {referral.referred:.1%} of the records go to a "
            f"human; error falls from {referral.error_before:.1%} to "
            f"{number(referral.error_after, '.1%')}, {number(referral.errors_caught, '.0%')} of "
            f"the errors are among them (precision {number(table.precision, '.2f')}, "
            f"specificity {number(table.specificity, '.2f')})."
        )
        before = calibration.calibration_metrics(p, y)
        after = calibration.calibration_metrics(mended, y)
        print("\n| calibration | " + " | ".join(before) + " |\n" + "| --- " * 6 + "|")
        for name, of in (("raw", before), ("temperature", after)):
            print(f"| {name} | " + " | ".join(f"{v:.3f}" for v in of.values()) + " |")
        print(
            f"\nTemperature {rules.calibrator.constants['temperature']:.2f}, fitted on "
            f"{rules.num_validation} validation records.\n"
        )
        print("| sets, 90 % promised | coverage | standard error | mean size |")
        print("| --- | --- | --- | --- |")
        for method in conformal.METHODS:
            extra = {"penalty": 0.05, "free_classes": 1} if method == "raps" else {}
            fitted = conformal.fit_conformal(*validation(predictor, task), method=method, **extra)
            sets = fitted(p)
            # Both the validation records and these are a draw.
            error = np.sqrt(0.09 / rules.num_validation + 0.09 / len(y))
            print(
                f"| {method.upper()} | {conformal.coverage(sets, y):.3f} | {error:.3f} | "
                f"{conformal.mean_size(sets):.2f} |"
            )
        print()


_VALIDATION: dict = {}


def validation(predictor, task):
    """Mean probabilities and labels of all validation records, predicted once."""
    if not _VALIDATION:
        source = open_dataset(predictor.restored.config.data).validation
        _VALIDATION["split"] = Split(predictor, source, len(source), 0)
    split = _VALIDATION["split"]
    return split.uncertainty[task].probabilities, split.labels[task]


def print_foreign(predictor, dataset, test: Split, foreign: list[str]) -> None:
    """How well scores tell known test records from those with a foreign or corrupted image."""
    scores = out_of_distribution_scores(predictor, dataset, test)
    known = scores(test.pixels, test.uncertainty)
    draw = np.random.default_rng(1)
    names = [spec.name for spec in predictor.description.modalities]
    changed = {}
    for argument in foreign:
        name, _, folder = argument.partition("=")
        spec = {s.name: s for s in predictor.description.modalities}[name]
        paths = find_cases([folder], [name]).images[name]
        paths = [paths[int(i)] for i in draw.permutation(len(paths))[: test.count]]
        images = np.stack([decode_file(path, spec) for path in paths])
        changed[f"{name} is {Path(folder).name}"] = (
            name,
            images[np.arange(test.count) % len(images)],
        )
    for name in names:
        pixels = test.pixels[name].astype(float)
        noisy = np.clip(pixels + draw.normal(0, 60, pixels.shape), 0, 255).astype(np.uint8)
        changed[f"{name} with noise"] = (name, noisy)
        changed[f"{name} black"] = (name, np.zeros_like(test.pixels[name]))
        changed[f"{name} negative"] = (name, 255 - test.pixels[name])
    print("### Foreign and corrupted images: AUROC (FPR95) of telling them from test records\n")
    print("| images | " + " | ".join(known) + " |\n| --- " + "| --- " * len(known) + "|")
    for title, (name, images) in changed.items():
        pixels = {**test.pixels, name: images}
        uncertainty = predictor.uncertainty(pixels, test.present, test.ids)
        cells = [
            f"{ood.detection_auroc(known[k], v):.2f} ({ood.fpr_at_95_tpr(known[k], v):.2f})"
            for k, v in scores(pixels, uncertainty).items()
        ]
        print(f"| {title} | " + " | ".join(cells) + " |", flush=True)
    print()


def out_of_distribution_scores(predictor, dataset, test: Split):
    """A function from pixels and uncertainty to scores by name, summed over the tasks."""
    restored = predictor.restored
    first = jax.tree.map(lambda leaf: leaf[0], (restored.params, restored.statistics))
    masks = predictor.description.may_lack_modalities

    @jax.jit
    def one_pass(pixels, present):
        (logits, seen), _ = restored.network.apply(
            *first, scale_pixels(pixels), train=False, present=present if masks else None
        )
        return logits, seen["pooled"]

    def passes(pixels, present):
        parts = []
        for start in range(0, len(next(iter(present.values()))), 50):
            part = slice(start, start + 50)
            parts.append(
                jax.device_get(
                    one_pass(
                        {m: x[part] for m, x in pixels.items()},
                        {m: x[part] for m, x in present.items()},
                    )
                )
            )
        return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)

    rows = np.random.default_rng(0).permutation(len(dataset.train))[:500]
    records = [dataset.train[int(row)] for row in rows]
    specs = predictor.description.modalities
    pixels = {
        s.name: np.stack([r.images.get(s.name, np.zeros(s.shape, np.uint8)) for r in records])
        for s in specs
    }
    present = {s.name: np.array([s.name in r.images for r in records]) for s in specs}
    _, features = passes(pixels, present)
    task = next(iter(predictor.description.tasks))
    distance = ood.fit_mahalanobis(features, np.array([r.labels[task] for r in records]))

    def scores(pixels, uncertainty):
        logits, features = passes(pixels, test.present)
        return {
            "max softmax": sum(
                ood.max_softmax_score(u.probabilities) for u in uncertainty.values()
            ),
            "energy": sum(ood.energy_score(x) for x in logits.values()),
            "mutual information": sum(u.mutual_information for u in uncertainty.values()),
            "Mahalanobis": distance(features),
        }

    return scores


def draw(predictor, test: Split, path: Path, synthetic: bool) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tasks = list(predictor.description.tasks)
    figure, axes = plt.subplots(len(tasks), 2, figsize=(8, 3.4 * len(tasks)), squeeze=False)
    for (left, right), task in zip(axes, tasks, strict=True):
        measures, p, y, wrong = test.known(task)
        for name, shown in (("raw", p), ("temperature", predictor.decisions[task].calibrator(p))):
            curve = calibration.reliability(shown, y, num_bins=10, binning="mass")
            left.plot(curve.confidence, curve.accuracy, "o-", label=name)
        left.plot([0, 1], [0, 1], "k:", linewidth=1)
        left.set(xlabel="confidence", ylabel="accuracy", title=f"{task}: reliability")
        left.legend()
        for name in ("predictive_entropy", "mutual_information"):
            curve = selective.risk_coverage(measures[name], wrong)
            right.plot(curve.coverage, curve.risk, label=name.replace("_", " "))
        oracle = selective.risk_coverage(wrong, wrong)
        right.plot([0, *oracle.coverage], [0, *oracle.risk], "k:", linewidth=1, label="oracle")
        right.axhline(wrong.mean(), color="grey", linewidth=0.8)
        right.set(xlabel="share of records answered", ylabel="error", title=f"{task}: referral")
        right.legend()
    if synthetic:
        figure.suptitle("SYNTHETIC data")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    print(f"figure: {path}", file=sys.stderr)


def number(value: float | None, how: str = ".3f") -> str:
    """A figure, or "undefined" where there was nothing to count."""
    return "undefined" if value is None else format(value, how)


if __name__ == "__main__":
    main()
